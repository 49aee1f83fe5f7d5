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

/// Names shorter than this are in the kernel's `struct dentry` itself (`DNAME_INLINE_LEN`).
pub const SHORT_NAME: u32 = 32;

/// Room for the name of a file in [`Script`], with the zero at its end.
pub const MAX_SCRIPT_NAME: usize = 60;

/// Room for the name of a cgroup in [`GroupName`], with the zero at its end.
pub const MAX_GROUP_NAME: usize = 128;

/// What of an exec a set of rules looks at; a bit of [`Outline::looks`] is also an index of [`RuleSet::any`].
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

/// Some of the rules.
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

/// What there is of rules, in one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// Of the rules that are in force; the last bit is their slot. As long as it is the same, only the other slot
    /// may change.
    pub generation: u32,
    /// Zero.
    pub padding: u32,
    /// By slot.
    pub outlines: [Outline; 2],
}

/// What is to be known of a set of rules at each exec.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// What is looked at, as bits numbered by [`look`]; 0 if there are no rules. For the rest, [`RuleSet::any`] has all
    /// rules.
    pub looks: u8,
    /// How many words of bits are in use.
    pub words: u8,
    /// The policy of a program that no rule names and that has none; 0 if it gets none.
    pub fallback: u8,
    /// The policy of the first rule that names every program; 0 if none does.
    pub everybody: u8,
    /// Zero.
    pub padding: u32,
    /// For each user that a rule names, the bit that [`user_bit`] says.
    pub users: u64,
}

/// What stands for a user among others, some of whom share it.
#[inline]
#[must_use]
pub const fn user_bit(id: u32) -> u64 {
    1 << (id % 64)
}

/// A set of rules.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// By [`look`], the rules that do not ask.
    pub any: [RuleBits; look::COUNT],
    /// By rule, its policy.
    pub policies: [u8; MAX_RULES as usize],
    /// The files and places of all rules.
    pub filter: Filter,
}

impl Default for RuleSet {
    fn default() -> Self {
        Self {
            any: [RuleBits::NONE; look::COUNT],
            policies: [0; MAX_RULES as usize],
            filter: Filter::NONE,
        }
    }
}

/// Tells of most things that no rule names them, by one bit. A hash map takes several cache lines for that,
/// and at an exec none of them is near.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    words: [u64; FILTER_WORDS],
}

/// With 1024 rules for files, one exec in 17 looks things up in vain.
const FILTER_WORDS: usize = 1024;

impl Filter {
    /// Of nothing.
    pub const NONE: Self = Self {
        words: [0; FILTER_WORDS],
    };

    /// Adds what has this hash.
    pub const fn insert(&mut self, hash: Hash) {
        let (word, bit) = Self::at(hash);
        self.words[word] |= 1 << bit;
    }

    /// Whether what has this hash may have been added.
    #[inline]
    #[must_use]
    pub const fn may_contain(&self, hash: Hash) -> bool {
        let (word, bit) = Self::at(hash);
        self.words[word] >> bit & 1 == 1
    }

    #[inline]
    const fn at(hash: Hash) -> (usize, u64) {
        // Of a product, the upper bits depend on all others.
        let bit = hash.0.wrapping_mul(ODD) >> (64 - (FILTER_WORDS * 64).ilog2());
        ((bit / 64) as usize % FILTER_WORDS, bit % 64)
    }
}

/// The golden ratio, which spreads neighbours far (Knuth, The Art of Computer Programming, 6.4).
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a [`Filter`] knows something by.
#[derive(Clone, Copy, Debug)]
pub struct Hash(u64);

impl Hash {
    /// Of a file, or a directory.
    #[inline]
    #[must_use]
    pub const fn of_file(device: u32, inode: u64) -> Self {
        Self(device as u64).and(0).and(inode)
    }

    /// Of a name in this directory. Long names, which the kernel keeps elsewhere, have the directory's own.
    #[must_use]
    pub fn of_place(self, name: &[u8]) -> Self {
        if name.len() < SHORT_NAME as usize {
            name.iter()
                .fold(self, |hash, byte| hash.and((*byte).into()))
        } else {
            self
        }
    }

    /// With one thing more.
    #[inline]
    #[must_use]
    pub const fn and(self, next: u64) -> Self {
        let mixed = (self.0 ^ next).wrapping_mul(ODD);
        Self(mixed ^ mixed >> 32)
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

/// How many cgroups [`Unnamed`] has room for.
pub const UNNAMED_GROUPS: usize = 512;

/// Cgroups that no rule of a slot names: a cgroup's id, or 0, where its remainder says.
pub type Unnamed = [u64; UNNAMED_GROUPS];

const _: () = assert!(size_of::<RuleSet>() == 8 * 1024 + 4 * 128 + 1024);
const _: () = assert!(size_of::<InForce>() == 40);
const _: () = assert!(size_of::<Executable>() == 16);
const _: () = assert!(size_of::<Place>() == 80);
const _: () = assert!(size_of::<Script>() == 64);
const _: () = assert!(size_of::<GroupName>() == 136);
const _: () = assert!(size_of::<Group>() == 136);
const _: () = assert!(size_of::<Seen>() == 16);

#[cfg(feature = "user")]
mod user {
    use super::{
        Executable, Group, GroupName, InForce, Place, RuleBits, RuleSet, Script, Seen, User,
    };

    // SAFETY: words only, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for RuleBits {}
    // SAFETY: words, 1024 bytes and words: no padding; every bit pattern is valid.
    unsafe impl aya::Pod for RuleSet {}
    // SAFETY: `u32`, bytes and `u64` at their places: no padding; every bit pattern is valid.
    unsafe impl aya::Pod for InForce {}
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

    #[test]
    fn filter_knows_what_it_was_told_and_little_else() {
        let hashes = |device| (0..1024).map(move |inode| Hash::of_file(device, inode));
        let mut filter = Filter::NONE;
        hashes(7).for_each(|hash| filter.insert(hash));

        assert!(hashes(7).all(|hash| filter.may_contain(hash)));
        let wrong = hashes(8).filter(|hash| filter.may_contain(*hash)).count();
        assert!(wrong < 50, "{wrong} of 1024");
    }
}
