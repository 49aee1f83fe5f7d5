//! What the kernel's rules, routes and sysctls should be, and the steps from what they are to that.
//!
//! A policy with a tunnel is held by two things that do not depend on the tunnel: an
//! unreachable route that ends its table, and an unreachable rule behind the rule that asks the
//! table. The rule also holds when somebody flushes the table, and for IPv6 sockets that are bound
//! to a device: their lookup passes over an unreachable route, which belongs to `lo`, and asks the
//! next rule. A policy that blocks is that rule alone.
//!
//! All rules say `iif lo`, which means "sent by this machine". So a packet that arrived from the
//! tunnel and was stamped with the policy's mark is never forwarded back into the tunnel.

mod diff;
mod link;
mod route;
mod rule;
mod sysctl;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod model;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::IpNet;
use lockne_abi::MarkField;

pub use self::{
    diff::{Step, diff},
    link::{Link, LinkState, Reach, Tunnel},
    route::{METRIC_TUNNEL, METRIC_UNREACHABLE, Route, Target, is_our_table, table},
    rule::{PREF_LAN, PREF_TABLE, PREF_UNREACHABLE, Rule, TABLE_MAIN, Verdict},
    sysctl::{ParseSysctlError, Sysctl},
};
use crate::{
    policy::{Action, Policy, PolicyId},
    tunnel::TunnelName,
};

/// The origin of every rule and route of ours, `RTA_PROTOCOL` and `FRA_PROTOCOL` in the kernel.
///
/// It is how they are found again without any state.
pub const PROTOCOL: u8 = 108;

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of `prefix`.
    #[must_use]
    pub const fn of(prefix: IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// The prefix that holds every address of the family.
    #[must_use]
    pub fn everything(self) -> IpNet {
        match self {
            Self::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
            Self::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
        }
    }
}

/// Prints the option of ip(8).
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        })
    }
}

/// What should be true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Rules of both families.
    pub rules: BTreeSet<Rule>,
    /// Routes of both families.
    pub routes: BTreeSet<Route>,
    /// Values of sysctls.
    pub sysctls: BTreeMap<Sysctl, i32>,
    /// The policy whose mark is stamped on what arrives on a device, by the device's index.
    pub stamps: BTreeMap<u32, PolicyId>,
    /// What the guard lets out, by policy.
    pub devices: BTreeMap<PolicyId, lockne_abi::Policy>,
}

/// What is true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our rules: those with our [`PROTOCOL`] and our mask.
    pub rules: BTreeSet<Rule>,
    /// Our routes: those with our [`PROTOCOL`] in tables of ours.
    pub routes: BTreeSet<Route>,
    /// The current values of the sysctls that a plan could change.
    pub sysctls: BTreeMap<Sysctl, i32>,
    /// The values from before we changed them.
    pub originals: BTreeMap<Sysctl, i32>,
    /// The lowest preference of a rule of others that packets of this machine meet before the main
    /// table, but for 0, where the kernel's own rule for local addresses stands.
    pub first_foreign: Option<u32>,
    /// The families that the kernel has.
    pub families: BTreeSet<Family>,
    /// The interfaces that were asked for, as far as they are there.
    pub links: BTreeMap<TunnelName, Link>,
}

impl Observed {
    /// The policies that have a rule of ours.
    ///
    /// On a daemon that has made none yet these are leftovers, maybe of another state directory.
    #[must_use]
    pub fn policies(&self, field: MarkField) -> BTreeSet<PolicyId> {
        self.rules
            .iter()
            .filter_map(|rule| std::num::NonZeroU8::new(field.policy(rule.mark)))
            .map(PolicyId)
            .collect()
    }
}

impl Desired {
    /// Works out what `policies` need, given the `tunnels` that are there.
    ///
    /// A family that is not in `families` gets nothing: where the kernel has no IPv6, nothing of it
    /// can leak, and every request about it would fail.
    #[must_use]
    pub fn new<'a>(
        field: MarkField,
        families: &BTreeSet<Family>,
        policies: impl IntoIterator<Item = &'a Policy>,
        tunnels: &BTreeMap<TunnelName, Tunnel>,
    ) -> Self {
        let mut desired = Self::default();
        let mut users: BTreeMap<u32, BTreeSet<PolicyId>> = BTreeMap::new();
        let mut has_tunnel = false;
        for policy in policies {
            has_tunnel |= matches!(policy.terms.action, Action::Via(_));
            let guard = match &policy.terms.action {
                Action::Direct => lockne_abi::Policy::DIRECT,
                Action::Block => lockne_abi::Policy::BLOCK,
                Action::Via(name) => match tunnels.get(name) {
                    None => lockne_abi::Policy::BLOCK,
                    Some(tunnel) => {
                        users.entry(tunnel.ifindex).or_default().insert(policy.id);
                        desired
                            .sysctls
                            .insert(Sysctl::SrcValidMark(name.clone()), 1);
                        lockne_abi::Policy::tunnel(tunnel.ifindex)
                    }
                },
            };
            desired.devices.insert(policy.id, guard);
            for &family in families {
                desired.add(field, family, policy, tunnels);
            }
        }
        for (ifindex, policies) in users {
            if policies.len() > 1 {
                for id in &policies {
                    desired
                        .devices
                        .entry(*id)
                        .and_modify(|guard| *guard = guard.shared());
                }
            }
            desired
                .stamps
                .extend(policies.first().map(|id| (ifindex, *id)));
        }
        // While no tunnel is there, too: one that got another name is still stamped, and a reply to what
        // arrives there must carry the stamp.
        if has_tunnel {
            let reflect = families
                .iter()
                .map(|family| (Sysctl::FwmarkReflect(*family), 1));
            desired.sysctls.extend(reflect);
        }
        desired
    }

    /// Moves the rules before those of others, which start at the preference `first_foreign`.
    ///
    /// A rule that is added without a preference gets one before all that are there; so do those of
    /// wg-quick, which ask for everything without its own mark. Below 1 there is no room: there the
    /// guard still holds, and programs fall silent.
    #[must_use]
    pub fn before(mut self, first_foreign: Option<u32>) -> Self {
        let room = first_foreign.unwrap_or(u32::MAX);
        let shift = (PREF_UNREACHABLE + 1)
            .saturating_sub(room)
            .min(PREF_LAN - 1);
        let moved = |rule: Rule| Rule {
            pref: rule.pref - shift,
            ..rule
        };
        self.rules = self.rules.into_iter().map(moved).collect();
        self
    }

    fn add(
        &mut self,
        field: MarkField,
        family: Family,
        policy: &Policy,
        tunnels: &BTreeMap<TunnelName, Tunnel>,
    ) {
        let rule = |pref, to, verdict| Rule {
            pref,
            mark: field.mark(policy.id.get()),
            mask: field.mask(),
            to,
            verdict,
        };
        let everything = family.everything();
        let table = table(policy.id);
        if policy.terms.action == Action::Direct {
            let main = Verdict::Lookup(TABLE_MAIN);
            self.rules.insert(rule(PREF_TABLE, everything, main));
            return;
        }
        self.rules
            .insert(rule(PREF_UNREACHABLE, everything, Verdict::Unreachable));
        let Action::Via(name) = &policy.terms.action else {
            return;
        };
        self.routes.insert(Route::unreachable(family, table));
        self.rules
            .insert(rule(PREF_TABLE, everything, Verdict::Lookup(table)));
        let lan = policy
            .terms
            .lan
            .iter()
            .filter(|to| Family::of(**to) == family);
        for to in lan {
            let main = Verdict::Lookup(TABLE_MAIN);
            self.rules.insert(rule(PREF_LAN, to.trunc(), main));
        }
        if let Some(tunnel) = tunnels.get(name) {
            self.routes.extend(tunnel.routes(name, family, table));
        }
    }
}

/// Prints one thing a line, in the manner of ip(8) and sysctl(8).
impl fmt::Display for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.rules {
            writeln!(f, "{} rule {rule}", rule.family())?;
        }
        for route in &self.routes {
            writeln!(f, "{} route {route}", route.family())?;
        }
        for (sysctl, value) in &self.sysctls {
            writeln!(f, "sysctl {sysctl}={value}")?;
        }
        for (ifindex, id) in &self.stamps {
            writeln!(f, "stamp if{ifindex} policy {id}")?;
        }
        for (id, guard) in &self.devices {
            let shared = if guard.is_shared() { " shared" } else { "" };
            match guard.ifindex() {
                0 if guard.is_direct() => writeln!(f, "guard policy {id} any"),
                0 => writeln!(f, "guard policy {id} none"),
                ifindex => writeln!(f, "guard policy {id} if{ifindex}{shared}"),
            }?;
        }
        Ok(())
    }
}
