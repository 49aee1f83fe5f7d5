//! Rules as the kernel has them: for each thing that a rule can ask for, the rules that it fulfils.
//!
//! Bit *n* stands for rule *n*. An exec looks up one set of bits for its file, its user and its cgroup,
//! adds the rules that do not ask, and takes the first bit that is in all of them. So its price does not
//! grow with the number of rules, but for one word in 64.

/// How many rules there can be.
pub const MAX_RULES: u32 = 1024;

/// How many words hold one bit for each rule.
pub const RULE_WORDS: usize = MAX_RULES as usize / 64;

/// Room for the name of a file in [`Place`], with the zero at its end.
pub const MAX_PLACE_NAME: usize = 64;

/// Room for the name of a file in [`Script`], with the zero at its end.
pub const MAX_SCRIPT_NAME: usize = 60;

/// Room for the name of a cgroup in [`GroupName`], with the zero at its end.
pub const MAX_GROUP_NAME: usize = 128;

/// What of an exec a set of rules looks at; a bit is also an index of [`RuleSet::any`].
pub mod look {
    /// The file that is executed.
    pub const EXECUTABLE: usize = 0;
    /// The real user.
    pub const USER: usize = 1;
    /// The cgroup.
    pub const GROUP: usize = 2;
    /// The name of the script.
    pub const SCRIPT: usize = 3;
    /// How many there are.
    pub const COUNT: usize = 4;
}

/// Parents in [`GroupName`] that are none of the numbered nodes.
pub mod node {
    /// No path leads here.
    pub const NONE: u32 = 0;
    /// The root of the hierarchy.
    pub const ROOT: u32 = 1;
    /// Anywhere: a systemd unit.
    pub const UNIT: u32 = 2;
    /// Anywhere, after what is different in each instance was cut off: a Flatpak or a Snap.
    pub const STEM: u32 = 3;
    /// The first that stands for a path.
    pub const FIRST: u32 = 4;
}

/// A set of rules.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleBits {
    /// Rule *n* is bit *n* % 64 of word *n* / 64.
    pub words: [u64; RULE_WORDS],
}

impl RuleBits {
    /// No rule.
    pub const NONE: Self = Self {
        words: [0; RULE_WORDS],
    };

    /// Adds rule `rule`.
    pub const fn insert(&mut self, rule: usize) {
        self.words[rule / 64] |= 1 << (rule % 64);
    }

    /// Whether rule `rule` is in it.
    #[must_use]
    pub const fn contains(&self, rule: usize) -> bool {
        self.words[rule / 64] >> (rule % 64) & 1 == 1
    }
}

impl Default for RuleBits {
    fn default() -> Self {
        Self::NONE
    }
}

/// What is to be known of all rules together.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// How many words of bits are in use; 0 if there are no rules.
    pub words: u32,
    /// What is looked at, as bits numbered by [`look`]. For the rest, `any` has all rules.
    pub looks: u32,
    /// The policy of a program that no rule names and that has none; 0 if it gets none.
    pub fallback: u32,
    /// Zero.
    pub padding: u32,
    /// By [`look`], the rules that do not ask.
    pub any: [RuleBits; look::COUNT],
    /// By rule, its policy.
    pub policies: [u8; MAX_RULES as usize],
}

impl Default for RuleSet {
    fn default() -> Self {
        Self {
            words: 0,
            looks: 0,
            fallback: 0,
            padding: 0,
            any: [RuleBits::NONE; look::COUNT],
            policies: [0; MAX_RULES as usize],
        }
    }
}

/// A file, whatever it is called.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Executable {
    /// The slot of its rules.
    pub slot: u32,
    /// `super_block.s_dev`.
    pub device: u32,
    /// The inode.
    pub inode: u64,
}

/// A name in a directory, whatever file is there: a file that an update puts there is known at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The slot of its rules.
    pub slot: u32,
    /// `super_block.s_dev`.
    pub device: u32,
    /// The inode of the directory.
    pub directory: u64,
    /// The name, filled up with zeros.
    pub name: [u8; MAX_PLACE_NAME],
}

/// The last part of the path by which a script was called.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    /// The slot of its rules.
    pub slot: u32,
    /// The name, filled up with zeros.
    pub name: [u8; MAX_SCRIPT_NAME],
}

/// A real user.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The slot of its rules.
    pub slot: u32,
    /// The number.
    pub id: u32,
}

/// A cgroup's name below a node of the tree of paths, or anywhere.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupName {
    /// The slot of its rules.
    pub slot: u32,
    /// The node, or one of [`node`].
    pub parent: u32,
    /// The name, filled up with zeros.
    pub name: [u8; MAX_GROUP_NAME],
}

/// What a cgroup's name leads to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The node of what is below it.
    pub node: u32,
    /// Zero.
    pub padding: u32,
    /// The rules that name it.
    pub bits: RuleBits,
}

/// A cgroup that was walked over.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Of the rules.
    pub generation: u32,
    /// Zero.
    pub padding: u32,
    /// The cgroup's id, which is never used again.
    pub group: u64,
}

const _: () = assert!(size_of::<RuleSet>() == 16 + 4 * 128 + 1024);
const _: () = assert!(size_of::<Executable>() == 16);
const _: () = assert!(size_of::<Place>() == 80);
const _: () = assert!(size_of::<Script>() == 64);
const _: () = assert!(size_of::<GroupName>() == 136);
const _: () = assert!(size_of::<Group>() == 136);
const _: () = assert!(size_of::<Seen>() == 16);

#[cfg(feature = "user")]
mod user {
    use super::{Executable, Group, GroupName, Place, RuleBits, RuleSet, Script, Seen, User};

    // SAFETY: words only, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for RuleBits {}
    // SAFETY: four `u32`, words and 1024 bytes: no padding; every bit pattern is valid.
    unsafe impl aya::Pod for RuleSet {}
    // SAFETY: two `u32` and a `u64`, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for Executable {}
    // SAFETY: two `u32`, a `u64` and 64 bytes, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for Place {}
    // SAFETY: a `u32` and 60 bytes, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for Script {}
    // SAFETY: two `u32`, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for User {}
    // SAFETY: two `u32` and 128 bytes, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for GroupName {}
    // SAFETY: two `u32` and words, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for Group {}
    // SAFETY: two `u32` and a `u64`, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for Seen {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_has_a_bit_of_its_own() {
        let mut bits = RuleBits::NONE;
        for rule in [0, 63, 64, 1023] {
            bits.insert(rule);
        }

        let found = (0..1024).filter(|rule| bits.contains(*rule));

        assert!(found.eq([0, 63, 64, 1023]));
    }
}
