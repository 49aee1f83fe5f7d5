//! A routing rule of ours.

use std::fmt;

use ipnet::IpNet;

use super::{Family, PROTOCOL};

/// The preference of rules that let local prefixes through, where nobody else's rules stand before.
pub const PREF_LAN: u32 = 100;

/// The preference of rules that ask a policy's table, where nobody else's rules stand before.
pub const PREF_TABLE: u32 = 101;

/// The preference of rules that refuse what the table did not answer, where nobody else's rules stand
/// before.
pub const PREF_UNREACHABLE: u32 = 102;

/// The table that packets without a policy use.
pub const TABLE_MAIN: u32 = 254;

/// A rule for packets that this machine sends with a policy's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Rules of a lower preference are asked first.
    pub pref: u32,
    /// The policy's mark.
    pub mark: u32,
    /// The bits of the mark that count.
    pub mask: u32,
    /// Where the packet goes; decides the family too.
    pub to: IpNet,
    /// What happens to it.
    pub verdict: Verdict,
}

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Ask this table, and go on to the next rule if it has no answer.
    Lookup(u32),
    /// Refuse the packet.
    Unreachable,
}

impl Rule {
    /// The family whose packets it sees.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(self.to)
    }

    /// Whether it refuses what no rule before it has answered.
    pub(super) fn refuses(&self) -> bool {
        self.verdict == Verdict::Unreachable
    }

    /// Whether it lets a prefix be reached past the tunnel.
    pub(super) fn lets_through(&self) -> bool {
        self.verdict == Verdict::Lookup(TABLE_MAIN) && self.to.prefix_len() != 0
    }
}

/// Prints the arguments of `ip rule add`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pref, mark, mask, ..
        } = self;
        write!(f, "pref {pref} fwmark {mark:#x}/{mask:#x}")?;
        if self.to.prefix_len() != 0 {
            write!(f, " to {}", self.to)?;
        }
        f.write_str(" iif lo ")?;
        match self.verdict {
            Verdict::Lookup(TABLE_MAIN) => f.write_str("lookup main"),
            Verdict::Lookup(table) => write!(f, "lookup {table}"),
            Verdict::Unreachable => f.write_str("unreachable"),
        }?;
        write!(f, " protocol {PROTOCOL}")
    }
}
