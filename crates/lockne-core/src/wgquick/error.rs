//! What can be wrong with a configuration file, and what is only worth a word.

use std::borrow::Cow;

use ipnet::IpNet;

use super::{
    Phase,
    field::{Field, Section},
    key::KeyError,
};

/// Why a text is no configuration. Names a line, and never holds a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are not text.
    #[error("line {line}: not UTF-8 text")]
    NotText {
        /// The line of the first wrong byte.
        line: usize,
    },
    /// A section is none of ours.
    #[error("line {line}: `{name}` is neither `[Interface]` nor `[Peer]`")]
    Section {
        /// Where.
        line: usize,
        /// What stands there.
        name: String,
    },
    /// A line is no assignment.
    #[error("line {line}: neither a section nor `key = value`")]
    NoAssignment {
        /// Where.
        line: usize,
    },
    /// A key is unknown to wg(8) and wg-quick(8).
    #[error("line {line}: `{name}` is not a key of wg-quick")]
    UnknownKey {
        /// Where.
        line: usize,
        /// What stands there.
        name: String,
    },
    /// A key comes before any section.
    #[error("line {line}: `{field}` stands before any section")]
    NoSection {
        /// Where.
        line: usize,
        /// Which key.
        field: Field,
    },
    /// A key is in the wrong section.
    #[error("line {line}: `{field}` belongs to {}", field.section())]
    WrongSection {
        /// Where.
        line: usize,
        /// Which key.
        field: Field,
    },
    /// A value is missing.
    #[error("line {line}: `{field}` has no value")]
    NoValue {
        /// Where.
        line: usize,
        /// Which key.
        field: Field,
    },
    /// A value cannot be understood.
    #[error("line {line}: `{field}` has `{value}`: {reason}")]
    Value {
        /// Where.
        line: usize,
        /// Which key.
        field: Field,
        /// The value, or that part of a list which is wrong, with what looks like a key hidden.
        value: String,
        /// What is wrong with it.
        reason: Reason,
    },
    /// A cryptographic key cannot be read.
    #[error("line {line}: `{field}`: {reason}")]
    Key {
        /// Where.
        line: usize,
        /// Which key.
        field: Field,
        /// What is wrong with it.
        reason: KeyError,
    },
    /// There is no interface.
    #[error("no `[Interface]` section")]
    NoInterface,
    /// The interface has no private key.
    #[error("line {line}: `[Interface]` has no `PrivateKey`")]
    NoPrivateKey {
        /// Where the section begins.
        line: usize,
    },
    /// A peer has no public key.
    #[error("line {line}: `[Peer]` has no `PublicKey`")]
    NoPublicKey {
        /// Where the section begins.
        line: usize,
    },
    /// Two peers are the same one.
    #[error("line {line}: `[Peer]` has the same `PublicKey` as the one on line {first}")]
    SamePeer {
        /// Where the second begins.
        line: usize,
        /// Where the first begins.
        first: usize,
    },
}

/// What is wrong with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Four numbers that are no address.
    #[error("invalid IPv4 address")]
    Ipv4,
    /// Something with colons that is no address.
    #[error("invalid IPv6 address")]
    Ipv6,
    /// No address at all.
    #[error("not an IP address")]
    Address,
    /// The length of a prefix does not fit its family.
    #[error("invalid prefix length")]
    Prefix,
    /// A host name has characters that cannot be.
    #[error("not a host name or address")]
    HostName,
    /// An endpoint without a port.
    #[error("no port: write `host:port`, or `[address]:port` for IPv6")]
    NoPort,
    /// An endpoint that opens a bracket only.
    #[error("`[` without `]`")]
    NoBracket,
    /// Not a port.
    #[error("not a port from 1 to 65535")]
    Port,
    /// Not a firewall mark.
    #[error("not `off`, a number or `0x` and hexadecimal digits, of 32 bits")]
    FwMark,
    /// Not an interval.
    #[error("not `off` or a number of seconds from 0 to 65535")]
    Keepalive,
    /// Not a packet size.
    #[error("not a number from 68 to 65535")]
    Mtu,
    /// Not a routing table.
    #[error("not `auto`, `off` or a routing table")]
    Table,
    /// Not a truth value.
    #[error("neither `true` nor `false`")]
    Bool,
}

/// Something in a file that is no error but worth a word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// lockne does not write configuration files.
    #[error("line {line}: `SaveConfig` is ignored: lockne does not change the file")]
    SaveConfig {
        /// Where.
        line: usize,
    },
    /// lockne has routing tables of its own.
    #[error("line {line}: `Table` is ignored: lockne routes per application")]
    Table {
        /// Where.
        line: usize,
    },
    /// `wg` takes the last of several values.
    #[error("line {line}: `{field}` replaces the one on line {first}")]
    Replaced {
        /// Where.
        line: usize,
        /// Which key.
        field: Field,
        /// Where the value was that does not count.
        first: usize,
    },
    /// A prefix has bits set behind its length.
    #[error("line {line}: `{given}` means `{meant}`")]
    HostBits {
        /// Where.
        line: usize,
        /// The prefix as it stands there.
        given: IpNet,
        /// The prefix without those bits.
        meant: IpNet,
    },
    /// A prefix can lead to one peer only: the last that asks.
    #[error("`{prefix}` goes to the peer on line {line}, not to the one on line {first}")]
    Moved {
        /// Where the peer begins that has it.
        line: usize,
        /// Where the peer begins that lost it.
        first: usize,
        /// The prefix.
        prefix: IpNet,
    },
}

/// A configuration wants to run commands and may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{phase}` on line {line} would run a command as root")]
pub struct HookRefused {
    /// Which of the four keys.
    pub phase: Phase,
    /// Where.
    pub line: usize,
}

impl HookRefused {
    /// What the user can do.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        "`--allow-hooks` runs it"
    }
}

impl Error {
    /// The line it is about, from 1.
    #[must_use]
    pub const fn line(&self) -> Option<usize> {
        match self {
            Self::NoInterface => None,
            Self::NotText { line }
            | Self::Section { line, .. }
            | Self::NoAssignment { line }
            | Self::UnknownKey { line, .. }
            | Self::NoSection { line, .. }
            | Self::WrongSection { line, .. }
            | Self::NoValue { line, .. }
            | Self::Value { line, .. }
            | Self::Key { line, .. }
            | Self::NoPrivateKey { line }
            | Self::NoPublicKey { line }
            | Self::SamePeer { line, .. } => Some(*line),
        }
    }

    /// What the user can do.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotText { .. } => Some("save the file as UTF-8"),
            Self::NoInterface | Self::NoSection { .. } => {
                Some("a configuration for wg-quick begins with `[Interface]`")
            }
            Self::Key {
                field: Field::PublicKey,
                ..
            } => Some("`wg pubkey` makes public keys"),
            Self::WrongSection { field, .. } => Some(match field.section() {
                Section::Interface => "move it below `[Interface]`",
                Section::Peer => "move it below a `[Peer]`",
            }),
            _ => None,
        }
    }
}

/// Hides every part of `text` that could be a WireGuard key.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    hide_runs(text, 40)
}

/// `text` for an error: short, printable, and without even half a key.
pub(super) fn shown(text: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut text: String = hide_runs(text, 20)
        .chars()
        .map(printable)
        .take(80)
        .collect();
    if text.chars().count() == 80 {
        text.push('…');
    }
    text
}

fn hide_runs(text: &str, length: usize) -> Cow<'_, str> {
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    let mut hidden = Cow::Borrowed("");
    let mut rest = text;
    while let Some(start) = rest.bytes().position(is_base64) {
        let run = &rest[start..];
        let end = run.bytes().position(|byte| !is_base64(byte));
        let (run, after) = run.split_at(end.unwrap_or(run.len()));
        hidden += &rest[..start];
        hidden += if run.len() >= length { "(hidden)" } else { run };
        rest = after;
    }
    hidden += rest;
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_could_be_a_key_is_hidden() {
        let key = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";

        assert_eq!(
            redact(&format!("peer: {key}, endpoint: vpn.example.com:51820")),
            "peer: (hidden), endpoint: vpn.example.com:51820"
        );
        assert_eq!(
            redact("nothing to hide — at all"),
            "nothing to hide — at all"
        );
    }

    #[test]
    fn half_a_key_is_not_shown_in_an_error() {
        assert_eq!(shown("yAnz5TF+lXXJte14tji3zl,1"), "(hidden),1");
        assert_eq!(shown("10.0.0.300/8"), "10.0.0.300/8");
        assert_eq!(shown("a\u{1b}[1m"), "a\u{fffd}[1m");
    }
}
