//! What an application may do with the network.

use std::{collections::BTreeSet, fmt, net::IpAddr, num::NonZeroU8};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::tunnel::TunnelName;

/// The number of a policy, as it stands in the mark of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyId(pub NonZeroU8);

impl PolicyId {
    /// The id as a number from 1 to 255.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0.get()
    }
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where the packets of an application go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Through this tunnel, or nowhere.
    Via(TunnelName),
    /// As if no tunnel were there, even where the default route is one.
    Direct,
    /// Nowhere but to this machine itself.
    Block,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Via(tunnel) => write!(f, "via {tunnel}"),
            Self::Direct => f.write_str("direct"),
            Self::Block => f.write_str("block"),
        }
    }
}

/// What a policy says, apart from its number: two requests that say the same share a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Terms {
    /// Where the packets go.
    pub action: Action,
    /// Tunnels to use instead while the one of `action` does not work, the first that works; never with another
    /// action than `via`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub or: Vec<TunnelName>,
    /// Whether the packets go directly while none of these tunnels works; never with another action than `via`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub or_direct: bool,
    /// Prefixes that are reached directly, past the tunnel.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub lan: BTreeSet<IpNet>,
    /// The resolvers that are asked, through the tunnel, whatever resolver the application asks; of each
    /// IP version the first one counts. Where there are none, those of the tunnel's configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
}

impl Terms {
    /// Terms without prefixes past the tunnel and without resolvers of their own.
    #[must_use]
    pub const fn new(action: Action) -> Self {
        Self {
            action,
            or: Vec::new(),
            or_direct: false,
            lan: BTreeSet::new(),
            dns: Vec::new(),
        }
    }

    /// Whether it depends on what works where packets go.
    #[must_use]
    pub const fn has_choice(&self) -> bool {
        !self.or.is_empty() || self.or_direct
    }

    /// The tunnels that packets may take, in the order of preference.
    pub fn tunnels(&self) -> impl Iterator<Item = &TunnelName> {
        let first = match &self.action {
            Action::Via(name) => Some(name),
            Action::Direct | Action::Block => None,
        };
        first
            .into_iter()
            .flat_map(|first| std::iter::once(first).chain(&self.or))
    }
}

/// Prints where packets go, such as `via work, else corp, else direct`.
impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.action.fmt(f)?;
        self.or.iter().try_for_each(|it| write!(f, ", else {it}"))?;
        f.write_str(if self.or_direct { ", else direct" } else { "" })
    }
}

/// A numbered policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Its number.
    pub id: PolicyId,
    /// What it says.
    #[serde(flatten)]
    pub terms: Terms,
}
