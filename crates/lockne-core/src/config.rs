//! The configuration: `lockne.toml`, and the files of `lockne.d` beside it.
//!
//! ```toml
//! [tunnels.work]
//! config = "/etc/wireguard/work.conf"     # lockne brings it up
//! users = ["ada"]                         # who may use it without being root
//! [tunnels.corp]
//! interface = "tun0"                      # somebody else does
//! dns = ["10.8.0.1"]
//! lan = ["192.168.1.0/24"]
//!
//! [[rule]]
//! name = "browser"
//! exe = "/usr/lib/firefox/firefox"
//! via = "work"
//! [[rule]]
//! name = "seeding"
//! unit = "transmission-daemon.service"
//! via = ["work", "corp"]                  # in this order, never direct
//!
//! [default]                               # what no rule matches; without it, that stays as it is
//! via = "direct"
//! ```
//!
//! Nothing here looks at the system: texts come in, and either a whole configuration comes out or every problem
//! of it.

pub mod assign;
mod permission;
mod problem;
mod program;
mod read;
mod value;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use ipnet::IpNet;

pub use self::{
    permission::Who,
    problem::{Error, Problem},
    program::{Miss, Program},
};
use crate::{
    policy::Terms,
    rule::{Existing, Rule, RuleName},
    tunnel::TunnelName,
};

/// A file of the configuration, with its text.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Text {
    /// Where it is, for messages.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

/// What the files say, as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Tunnels by the names that rules use.
    pub tunnels: BTreeMap<TunnelName, Tunnel>,
    /// Rules in their order; the first that matches decides.
    pub rules: Vec<Rule>,
    /// What programs get that no rule matches; `None` leaves them as they are.
    pub default: Option<Fallback>,
    /// Who may use `direct` without being root.
    pub direct: Who,
    /// Who may use `block` without being root.
    pub block: Who,
    /// Where each rule stands.
    pub places: BTreeMap<RuleName, Place>,
}

/// A tunnel that rules can name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Who makes it.
    pub source: Source,
    /// The resolvers that programs in it ask, where their rule names none.
    pub dns: Vec<IpAddr>,
    /// Prefixes that every program in it reaches directly.
    pub lan: BTreeSet<IpNet>,
    /// An address behind it that answers pings while it works.
    pub probe: Option<IpAddr>,
    /// Who may use it without being root.
    pub who: Who,
}

/// Who makes a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// lockne, from a wg-quick file; its interface has the tunnel's name.
    File {
        /// The file.
        path: PathBuf,
        /// Whether the commands in it may run, as root.
        allow_hooks: bool,
    },
    /// Somebody else; this is its interface.
    Interface(TunnelName),
}

/// What programs get that no rule matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// What they may do.
    pub terms: Terms,
    /// What becomes of connections that they have when it reaches them.
    pub existing: Existing,
}

/// Where something stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1 on.
    pub line: usize,
}

impl Config {
    /// Reads the texts as one configuration: rules in the order of the files.
    ///
    /// # Errors
    ///
    /// Returns every problem that was found, not only the first.
    pub fn parse(texts: &[Text]) -> Result<Self, Error> {
        read::config(texts)
    }

    /// The interface of the tunnel that a user calls `name`, which may be an interface already.
    #[must_use]
    pub fn interface(&self, name: &TunnelName) -> TunnelName {
        match self.tunnels.get(name).map(|tunnel| &tunnel.source) {
            Some(Source::Interface(interface)) => interface.clone(),
            Some(Source::File { .. }) | None => name.clone(),
        }
    }

    /// The tunnel with this interface.
    #[must_use]
    pub fn tunnel_of(&self, interface: &TunnelName) -> Option<(&TunnelName, &Tunnel)> {
        self.tunnels
            .iter()
            .find(|(name, tunnel)| match &tunnel.source {
                Source::Interface(it) => it == interface,
                Source::File { .. } => *name == interface,
            })
    }

    /// The interfaces that rules use.
    #[must_use]
    pub fn used(&self) -> BTreeSet<TunnelName> {
        let rules = self.rules.iter().map(|rule| &rule.terms);
        let default = self.default.iter().map(|default| &default.terms);
        let terms = rules.chain(default);
        terms.flat_map(Terms::tunnels).cloned().collect()
    }
}
