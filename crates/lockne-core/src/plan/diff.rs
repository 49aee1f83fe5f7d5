//! The steps from what is to what should be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::IpNet;

use super::{Desired, Observed, Route, Rule, Sysctl, Target};

/// One change of the kernel's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Adds a rule.
    AddRule(Rule),
    /// Deletes a rule.
    DeleteRule(Rule),
    /// Adds a route.
    AddRoute(Route),
    /// Puts a route in the place of the one with the same table, prefix and metric.
    ReplaceRoute(Route),
    /// Deletes a route.
    DeleteRoute(Route),
    /// Changes a sysctl and remembers its value from before.
    SetSysctl(Sysctl, i32),
    /// Gives a sysctl its value from before.
    RestoreSysctl(Sysctl, i32),
}

/// Lists the steps from `observed` to `desired`; none if it is satisfied.
///
/// After each step a packet with the mark of a policy goes where the policy says or nowhere, if it
/// did so before: what refuses is added first and deleted last, and a step that fails can be left out.
#[must_use]
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Step> {
    let mut steps = rules(&desired.rules, &observed.rules);
    steps.extend(routes(&desired.routes, &observed.routes));
    steps.extend(sysctls(&desired.sysctls, observed));
    steps.sort_by_key(Step::turn);
    steps
}

impl Step {
    /// When its turn is, among the steps of one plan.
    fn turn(&self) -> u8 {
        match self {
            Self::AddRule(rule) if rule.refuses() => 0,
            Self::AddRoute(route) if route.target == Target::Unreachable => 1,
            Self::SetSysctl(..) => 2,
            Self::AddRoute(_) | Self::ReplaceRoute(_) => 3,
            Self::AddRule(rule) if !rule.lets_through() => 4,
            Self::AddRule(_) => 5,
            Self::DeleteRule(rule) if rule.lets_through() => 6,
            Self::DeleteRoute(route) if route.target != Target::Unreachable => 7,
            Self::DeleteRule(rule) if !rule.refuses() => 8,
            Self::DeleteRoute(_) => 9,
            Self::DeleteRule(_) => 10,
            Self::RestoreSysctl(..) => 11,
        }
    }
}

fn rules(desired: &BTreeSet<Rule>, observed: &BTreeSet<Rule>) -> Vec<Step> {
    let added = desired.difference(observed).copied().map(Step::AddRule);
    let deleted = observed.difference(desired).copied();
    added.chain(deleted.map(Step::DeleteRule)).collect()
}

fn routes(desired: &BTreeSet<Route>, observed: &BTreeSet<Route>) -> Vec<Step> {
    let mut stale: BTreeMap<(u32, IpNet, u32), Vec<&Route>> = BTreeMap::new();
    for route in observed.difference(desired) {
        stale.entry(route.key()).or_default().push(route);
    }
    let mut steps = Vec::new();
    for route in desired.difference(observed) {
        let replaced = stale.get_mut(&route.key()).and_then(Vec::pop);
        steps.push(match replaced {
            Some(_) => Step::ReplaceRoute(route.clone()),
            None => Step::AddRoute(route.clone()),
        });
    }
    let deleted = stale.into_values().flatten().cloned();
    steps.extend(deleted.map(Step::DeleteRoute));
    steps
}

fn sysctls(desired: &BTreeMap<Sysctl, i32>, observed: &Observed) -> Vec<Step> {
    let changed = desired
        .iter()
        .filter(|(sysctl, value)| observed.sysctls.get(sysctl) != Some(value))
        .map(|(sysctl, value)| Step::SetSysctl(sysctl.clone(), *value));
    let restored = observed
        .originals
        .iter()
        .filter(|(sysctl, _)| !desired.contains_key(sysctl))
        .map(|(sysctl, value)| Step::RestoreSysctl(sysctl.clone(), *value));
    changed.chain(restored).collect()
}

/// Prints the command of ip(8) or sysctl(8) that does the same.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddRule(rule) => write!(f, "ip {} rule add {rule}", rule.family()),
            Self::DeleteRule(rule) => write!(f, "ip {} rule del {rule}", rule.family()),
            Self::AddRoute(route) => write!(f, "ip {} route add {route}", route.family()),
            Self::ReplaceRoute(route) => write!(f, "ip {} route replace {route}", route.family()),
            Self::DeleteRoute(route) => write!(f, "ip {} route del {route}", route.family()),
            Self::SetSysctl(sysctl, value) | Self::RestoreSysctl(sysctl, value) => {
                write!(f, "sysctl -w {sysctl}={value}")
            }
        }
    }
}
