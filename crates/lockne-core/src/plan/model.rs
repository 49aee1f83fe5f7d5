//! Every history of policies and tunnels, against a small model of the kernel's routing.

use std::net::IpAddr;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::policy::Terms;

const FIELD: MarkField = MarkField::DEFAULT;
const TUNNELS: [&str; 3] = ["work", "home", "corp"];
const LANS: [&[&str]; 3] = [&[], &["192.0.2.0/24"], &["192.0.2.0/25", "2001:db8:1::/48"]];
const FAR: [&str; 4] = ["203.0.113.7", "10.1.2.3", "2001:db8:2::7", "192.0.2.7"];
const NEAR: [&str; 2] = ["192.0.2.200", "2001:db8:1::7"];

#[derive(Clone, Debug)]
enum Event {
    /// A policy comes, or changes its local prefixes.
    Policy { id: u8, action: usize, lan: usize },
    /// A policy goes.
    Forget { id: u8 },
    /// An interface is made, or made anew with another index.
    Made {
        tunnel: usize,
        index: u32,
        families: usize,
    },
    /// An interface goes up; its routes stay away.
    Up { tunnel: usize },
    /// An interface goes down and takes its routes with it.
    Down { tunnel: usize },
    /// An interface is deleted.
    Gone { tunnel: usize },
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Each event may strike in the middle of the steps that answer the one before it.
    #[test]
    fn marked_packet_uses_its_tunnel_or_none(history in vec((event(), 0_usize..12), 1..24)) {
        let mut world = World::default();
        let mut events = history.into_iter().peekable();
        while let Some((event, _)) = events.next() {
            world.happen(&event);
            world.check();
            let plan = diff(&world.desired(), &world.observed());
            for (number, step) in plan.iter().enumerate() {
                let strikes = events.next_if(|(next, at)| *at == number && next.is_outside());
                if let Some((next, _)) = strikes {
                    world.happen(&next);
                    world.check();
                }
                world.kernel.apply(step);
                world.check();
            }
            world.settle();
        }
        prop_assert_eq!(diff(&world.desired(), &world.observed()), []);
        prop_assert_eq!(world.kernel.rules.iter().copied().collect::<BTreeSet<_>>(), world.desired().rules);
        prop_assert_eq!(&world.kernel.routes, &world.desired().routes);
    }
}

fn event() -> impl Strategy<Value = Event> {
    let tunnel = 0..TUNNELS.len();
    prop_oneof![
        3 => (1..4_u8, 0..5_usize, 0..LANS.len())
            .prop_map(|(id, action, lan)| Event::Policy { id, action, lan }),
        1 => (1..4_u8).prop_map(|id| Event::Forget { id }),
        3 => (tunnel.clone(), 2..9_u32, 0..4_usize)
            .prop_map(|(tunnel, index, families)| Event::Made { tunnel, index, families }),
        2 => tunnel.clone().prop_map(|tunnel| Event::Up { tunnel }),
        2 => tunnel.clone().prop_map(|tunnel| Event::Down { tunnel }),
        2 => tunnel.prop_map(|tunnel| Event::Gone { tunnel }),
    ]
}

impl Event {
    /// Whether it comes from outside the daemon, so that it can strike at any time.
    fn is_outside(&self) -> bool {
        !matches!(self, Self::Policy { .. } | Self::Forget { .. })
    }
}

#[derive(Default)]
struct World {
    kernel: Kernel,
    policies: BTreeMap<u8, Policy>,
    /// What each policy said when its steps last ran to the end; only those are promised anything.
    held: BTreeMap<u8, Policy>,
    /// Policies whose steps away are running: they hold until the rule that refuses is gone.
    leaving: BTreeMap<u8, Policy>,
}

impl World {
    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Policy { id, action, lan } => {
                let action = match action {
                    0 => Action::Block,
                    1 => Action::Direct,
                    _ => Action::Via(TUNNELS[action - 2].parse().unwrap()),
                };
                let lan = LANS[lan].iter().map(|it| it.parse().unwrap()).collect();
                let policy = Policy {
                    id: PolicyId(id.try_into().unwrap()),
                    terms: Terms {
                        lan,
                        ..Terms::new(action)
                    },
                };
                self.policies.insert(id, policy);
            }
            Event::Forget { id } => {
                self.policies.remove(&id);
                self.leaving
                    .extend(self.held.remove(&id).map(|policy| (id, policy)));
            }
            Event::Made {
                tunnel,
                index,
                families,
            } => {
                self.kernel.remove(TUNNELS[tunnel]);
                if self.kernel.links.values().all(|link| link.ifindex != index) {
                    let addresses = (0..2).filter(|bit| families & (1 << bit) != 0);
                    let link = Link {
                        ifindex: index,
                        state: LinkState::Up,
                        mtu: 1420,
                        addresses: addresses
                            .map(|bit| ["10.9.0.2/32", "fd00:9::2/128"][bit].parse().unwrap())
                            .collect(),
                        gateways: BTreeMap::new(),
                    };
                    self.kernel.links.insert(TUNNELS[tunnel].to_owned(), link);
                }
            }
            Event::Up { tunnel } => {
                if let Some(link) = self.kernel.links.get_mut(TUNNELS[tunnel]) {
                    link.state = LinkState::Up;
                }
            }
            Event::Down { tunnel } => self.kernel.down(TUNNELS[tunnel]),
            Event::Gone { tunnel } => self.kernel.remove(TUNNELS[tunnel]),
        }
    }

    fn settle(&mut self) {
        for step in diff(&self.desired(), &self.observed()) {
            self.kernel.apply(&step);
            self.check();
        }
        assert_eq!(
            diff(&self.desired(), &self.observed()),
            [],
            "one round is enough"
        );
        self.held.clone_from(&self.policies);
        self.leaving.clear();
        self.check();
    }

    fn desired(&self) -> Desired {
        // One tunnel is WireGuard of ours and reaches one network only.
        let tunnels = self.kernel.links.iter().map(|(name, link)| {
            let tunnel = match name.as_str() {
                "corp" => Tunnel::wireguard(link, ["10.0.0.0/8".parse().unwrap()]),
                _ => Tunnel::foreign(link),
            };
            (name.parse().unwrap(), tunnel)
        });
        Desired::new(
            FIELD,
            &BTreeSet::from(Family::ALL),
            self.policies.values(),
            &tunnels.collect(),
        )
    }

    fn observed(&self) -> Observed {
        Observed {
            rules: self.kernel.rules.iter().copied().collect(),
            routes: self.kernel.routes.clone(),
            sysctls: self.desired().sysctls,
            ..Observed::default()
        }
    }

    fn check(&self) {
        self.kernel.check_order();
        for (id, held) in self.held.iter().chain(&self.leaving) {
            let mark = FIELD.mark(*id);
            for to in FAR.iter().chain(&NEAR) {
                let to: IpAddr = to.parse().unwrap();
                let refuses = |rule: &Rule| {
                    rule.mark == mark && rule.pref == PREF_UNREACHABLE && rule.to.contains(&to)
                };
                if self.leaving.contains_key(id) && !self.kernel.rules.iter().any(refuses) {
                    continue;
                }
                let now = self.policies.get(id).unwrap_or(held);
                let may_pass = held
                    .terms
                    .lan
                    .union(&now.terms.lan)
                    .any(|it| it.contains(&to));
                let way = self.kernel.lookup(mark, to);
                // In the middle of a change of terms, the old ones or the new ones hold.
                let changes = held.terms.action != now.terms.action;
                let allowed = [held, now].iter().any(|it| match (&it.terms.action, &way) {
                    (Action::Direct, way) => {
                        *way == Way::Main || changes && *way == Way::Unreachable
                    }
                    (_, Way::Unreachable) => true,
                    (Action::Via(_), Way::Main) => may_pass,
                    (Action::Via(name), Way::Device(ifindex)) => {
                        self.kernel.links.get(name.as_str()).map(|it| it.ifindex) == Some(*ifindex)
                    }
                    (Action::Block, _) => false,
                });
                assert!(allowed, "{held:?}: {to} went {way:?}\n{:#?}", self.kernel);
            }
        }
    }
}

/// Where a packet went.
#[derive(Debug, PartialEq)]
enum Way {
    Main,
    Device(u32),
    Unreachable,
}

/// Rules in the order the kernel asks them, routes, and devices.
#[derive(Debug, Default)]
struct Kernel {
    rules: Vec<Rule>,
    routes: BTreeSet<Route>,
    links: BTreeMap<String, Link>,
}

impl Kernel {
    /// What cannot be done is not done, as when the daemon's view was a moment old.
    fn apply(&mut self, step: &Step) {
        match step {
            Step::AddRule(rule) => {
                let behind = self.rules.partition_point(|it| it.pref <= rule.pref);
                self.rules.insert(behind, *rule);
            }
            Step::DeleteRule(rule) => self.rules.retain(|it| it != rule),
            Step::AddRoute(route) => {
                let taken = self.routes.iter().any(|it| it.key() == route.key());
                assert!(!taken, "{step} hits another route");
                if self.is_possible(route) {
                    self.routes.insert(route.clone());
                }
            }
            Step::ReplaceRoute(route) => {
                if self.is_possible(route) {
                    self.routes.retain(|it| it.key() != route.key());
                    self.routes.insert(route.clone());
                }
            }
            Step::DeleteRoute(route) => {
                self.routes.remove(route);
            }
            Step::SetSysctl(..) | Step::RestoreSysctl(..) => {}
        }
    }

    fn is_possible(&self, route: &Route) -> bool {
        let up = |ifindex| {
            let link = self.links.values().find(|link| link.ifindex == ifindex);
            link.is_some_and(|link| link.state == LinkState::Up)
        };
        match route.target {
            Target::Unreachable => true,
            Target::Device { ifindex, .. } => up(ifindex),
        }
    }

    fn down(&mut self, name: &str) {
        let Some(link) = self.links.get_mut(name) else {
            return;
        };
        link.state = LinkState::Down;
        let down = link.ifindex;
        let uses =
            |it: &Route| matches!(it.target, Target::Device { ifindex, .. } if ifindex == down);
        self.routes.retain(|it| !uses(it));
    }

    fn remove(&mut self, name: &str) {
        self.down(name);
        self.links.remove(name);
    }

    /// What asks a policy's table never stands without what refuses behind it.
    fn check_order(&self) {
        for rule in &self.rules {
            let refuses = |it: &Rule| {
                it.mark == rule.mark
                    && it.family() == rule.family()
                    && it.verdict == Verdict::Unreachable
            };
            if rule.verdict != Verdict::Lookup(TABLE_MAIN) {
                assert!(self.rules.iter().any(refuses), "alone: {rule}\n{self:#?}");
            }
        }
    }

    fn lookup(&self, mark: u32, to: IpAddr) -> Way {
        for rule in &self.rules {
            if mark & rule.mask != rule.mark || !rule.to.contains(&to) {
                continue;
            }
            let table = match rule.verdict {
                Verdict::Unreachable => return Way::Unreachable,
                Verdict::Lookup(TABLE_MAIN) => return Way::Main,
                Verdict::Lookup(table) => table,
            };
            let found = self
                .routes
                .iter()
                .filter(|it| it.table == table && it.prefix.contains(&to))
                .min_by_key(|it| (std::cmp::Reverse(it.prefix.prefix_len()), it.metric));
            match found.map(|it| &it.target) {
                Some(Target::Unreachable) => return Way::Unreachable,
                Some(Target::Device { ifindex, .. }) => return Way::Device(*ifindex),
                None => {}
            }
        }
        Way::Main
    }
}
