//! An interface as it was seen, and what of it is a tunnel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{Family, METRIC_TUNNEL, Route, Target};
use crate::tunnel::TunnelName;

/// A network interface as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index, which no later interface gets unless somebody asks for it.
    pub ifindex: u32,
    /// Whether it carries packets.
    pub state: LinkState,
    /// The largest packet in bytes.
    pub mtu: u32,
    /// Its addresses with their prefix lengths.
    pub addresses: BTreeSet<IpNet>,
    /// The gateway of a default route through it that somebody else made, by family.
    pub gateways: BTreeMap<Family, IpAddr>,
}

/// Whether an interface was set up or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Up.
    Up,
    /// Down; the kernel takes all its routes away.
    Down,
}

/// An interface that packets of a policy go into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The index of the interface.
    pub ifindex: u32,
    /// Whether it carries packets.
    pub state: LinkState,
    /// Its addresses with their prefix lengths.
    pub addresses: BTreeSet<IpNet>,
    /// What can be reached through it.
    pub reach: Reach,
}

/// What can be reached through a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// These prefixes, by the tunnel's own configuration.
    Prefixes(BTreeSet<IpNet>),
    /// Everything, through a gateway where there is one.
    Everything(BTreeMap<Family, IpAddr>),
}

impl Tunnel {
    /// Takes an interface that somebody else made for a tunnel to everywhere.
    #[must_use]
    pub fn foreign(link: &Link) -> Self {
        Self::new(link, Reach::Everything(link.gateways.clone()))
    }

    /// Takes a WireGuard interface of ours for a tunnel to what its peers may carry.
    #[must_use]
    pub fn wireguard(link: &Link, allowed_ips: impl IntoIterator<Item = IpNet>) -> Self {
        let prefixes = allowed_ips.into_iter().map(|prefix| prefix.trunc());
        Self::new(link, Reach::Prefixes(prefixes.collect()))
    }

    fn new(link: &Link, reach: Reach) -> Self {
        Self {
            ifindex: link.ifindex,
            state: link.state,
            addresses: link.addresses.clone(),
            reach,
        }
    }

    /// The routes of `family` into the tunnel `name`.
    ///
    /// There are none while it is down, for the kernel would refuse them; and none if it has no
    /// address of the family, for packets would leave with an address that the far end drops.
    pub(super) fn routes(&self, name: &TunnelName, family: Family, table: u32) -> Vec<Route> {
        if self.state == LinkState::Down || !self.addresses.iter().any(|it| is_source(*it, family))
        {
            return Vec::new();
        }
        let route = |prefix, gateway| Route {
            table,
            prefix,
            metric: METRIC_TUNNEL,
            target: Target::Device {
                name: name.to_string(),
                ifindex: self.ifindex,
                gateway,
            },
        };
        match &self.reach {
            Reach::Everything(gateways) => {
                vec![route(family.everything(), gateways.get(&family).copied())]
            }
            Reach::Prefixes(prefixes) => prefixes
                .iter()
                .filter(|prefix| Family::of(**prefix) == family)
                .map(|prefix| route(*prefix, None))
                .collect(),
        }
    }
}

/// Whether packets of `family` to far away could have `address` as their source.
fn is_source(address: IpNet, family: Family) -> bool {
    let link_local = match address {
        IpNet::V4(it) => it.addr().is_link_local(),
        IpNet::V6(it) => it.addr().is_unicast_link_local(),
    };
    Family::of(address) == family && !link_local
}
