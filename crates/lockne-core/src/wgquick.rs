//! Configuration files of wg-quick(8), with all of wg(8) in them.
//!
//! What the two tools take is taken, and what they refuse is refused, with the line and the reason.
//! Three things differ: a byte order mark and an empty `AllowedIPs` are no errors, two `[Peer]` sections with the
//! same key are one, and so is a port above 65535 (libc takes it for another port).

mod endpoint;
mod error;
mod field;
mod key;
mod parse;
mod value;
mod write;

use std::{fmt, net::IpAddr, num::NonZeroU16, str::FromStr};

use ipnet::IpNet;

pub use self::{
    endpoint::{Endpoint, Host, Port},
    error::{Error, HookRefused, Reason, Warning, redact},
    field::{Field, Section},
    key::{KEY_BYTES, KEY_CHARS, KeyError, PresharedKey, PrivateKey, PublicKey},
};

/// A tunnel as its configuration file describes it. Debug output hides the secret keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The key of this end.
    pub private_key: PrivateKey,
    /// The UDP port of this end; `None` and 0 mean any.
    pub listen_port: Option<Port>,
    /// The mark of the tunnel's own UDP packets, never 0.
    pub fwmark: Option<u32>,
    /// The addresses of this end inside the tunnel, with the length of their network.
    pub addresses: Vec<IpNet>,
    /// The resolvers inside the tunnel.
    pub dns: Vec<IpAddr>,
    /// The domains to search for short names.
    pub search_domains: Vec<String>,
    /// The largest packet in the tunnel, in bytes.
    pub mtu: Option<u16>,
    /// Where wg-quick would put the routes.
    pub table: Table,
    /// Whether wg-quick would write its state back to the file.
    pub save_config: bool,
    /// The commands that wg-quick would run, in the order of the file.
    pub hooks: Vec<Hook>,
    /// The other ends.
    pub peers: Vec<Peer>,
    /// What is no error but worth a word, in the order of the file.
    pub warnings: Vec<Warning>,
}

/// The other end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The line of the file on which its section begins.
    pub line: usize,
    /// Who it is.
    pub public_key: PublicKey,
    /// The key that both ends share beside their own.
    pub preshared_key: Option<PresharedKey>,
    /// What may go to it and come from it, without host bits, each prefix at one peer only.
    pub allowed_ips: Vec<IpNet>,
    /// Where it is reached first.
    pub endpoint: Option<Endpoint>,
    /// How often an empty packet keeps firewalls on the way open, in seconds.
    pub persistent_keepalive: Option<NonZeroU16>,
}

/// Where wg-quick puts the routes of a tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Table {
    /// Into the main table, and a default route into one of its own.
    #[default]
    Auto,
    /// Nowhere.
    Off,
    /// Into this table.
    Number(u32),
    /// Into the table with this name in `rt_tables`.
    Name(String),
}

/// A command that wg-quick runs as root.
#[derive(Clone, PartialEq, Eq)]
pub struct Hook {
    /// When it runs.
    pub phase: Phase,
    /// The line of the file it stands on.
    pub line: usize,
    /// The command for a shell; `%i` stands for the interface.
    pub command: String,
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Before the interface is there.
    PreUp,
    /// When all is set up.
    PostUp,
    /// Before anything is taken down.
    PreDown,
    /// When the interface is gone.
    PostDown,
}

/// Whether the commands in a configuration may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HookPolicy {
    /// A configuration with commands is refused.
    #[default]
    Refuse,
    /// Commands run as root.
    Allow,
}

impl Config {
    /// Reads the text of a file.
    ///
    /// # Errors
    ///
    /// Fails with the line and the reason where wg-quick would fail, or if the bytes are not UTF-8.
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Self, Error> {
        parse::config(text.as_ref())
    }

    /// The commands of `phase`, in the order of the file.
    pub fn hooks(&self, phase: Phase) -> impl Iterator<Item = &Hook> {
        self.hooks.iter().filter(move |hook| hook.phase == phase)
    }

    /// Checks that `policy` lets this configuration be used.
    ///
    /// # Errors
    ///
    /// Fails, naming the first command, if there is one and none may run.
    pub fn check_hooks(&self, policy: HookPolicy) -> Result<(), HookRefused> {
        match (policy, self.hooks.first()) {
            (HookPolicy::Refuse, Some(&Hook { phase, line, .. })) => {
                Err(HookRefused { phase, line })
            }
            _ => Ok(()),
        }
    }
}

impl FromStr for Config {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = redact(&self.command);
        write!(f, "line {}: {} = {command}", self.line, self.phase)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PreUp => "PreUp",
            Self::PostUp => "PostUp",
            Self::PreDown => "PreDown",
            Self::PostDown => "PostDown",
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}
