//! A route of ours.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use super::{Family, PROTOCOL};
use crate::policy::PolicyId;

/// The metric of routes into a tunnel.
///
/// It is what the kernel takes for IPv6 when none is given, so both families say the same.
pub const METRIC_TUNNEL: u32 = 1024;

/// The metric of the route that ends a table.
pub const METRIC_UNREACHABLE: u32 = u32::MAX;

const FIRST_TABLE: u32 = 108_000;

/// The routing table of the policy `id`.
#[must_use]
pub fn table(id: PolicyId) -> u32 {
    FIRST_TABLE + u32::from(id.get())
}

/// Whether `table` could be the table of a policy.
#[must_use]
pub const fn is_our_table(table: u32) -> bool {
    table > FIRST_TABLE && table <= FIRST_TABLE + 255
}

/// A route in the table of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// The table it stands in.
    pub table: u32,
    /// Where the packet goes; decides the family too.
    pub prefix: IpNet,
    /// Of two routes to one prefix the lower metric wins.
    pub metric: u32,
    /// What happens to the packet.
    pub target: Target,
}

/// What a route says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Send the packet by a device.
    Device {
        /// The name of the device.
        name: String,
        /// Its index, which is what the kernel goes by.
        ifindex: u32,
        /// The neighbour to send it to, where the device has neighbours.
        gateway: Option<IpAddr>,
    },
    /// Refuse the packet.
    Unreachable,
}

impl Route {
    /// The route that ends `table`.
    #[must_use]
    pub fn unreachable(family: Family, table: u32) -> Self {
        Self {
            table,
            prefix: family.everything(),
            metric: METRIC_UNREACHABLE,
            target: Target::Unreachable,
        }
    }

    /// The family whose packets it sees.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(self.prefix)
    }

    /// What two routes cannot have in common: the kernel keeps one route for each.
    #[must_use]
    pub const fn key(&self) -> (u32, IpNet, u32) {
        (self.table, self.prefix, self.metric)
    }
}

/// Prints the arguments of `ip route add`.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.target == Target::Unreachable {
            f.write_str("unreachable ")?;
        }
        if self.prefix.prefix_len() == 0 {
            f.write_str("default")?;
        } else {
            write!(f, "{}", self.prefix)?;
        }
        if let Target::Device { name, gateway, .. } = &self.target {
            if let Some(gateway) = gateway {
                write!(f, " via {gateway}")?;
            }
            write!(f, " dev {name}")?;
            if gateway.is_some() {
                f.write_str(" onlink")?;
            }
        }
        let Self { table, metric, .. } = self;
        write!(f, " table {table} metric {metric} protocol {PROTOCOL}")
    }
}
