//! A network namespace for a test, with interfaces as a machine with a VPN has them.

use std::{collections::BTreeSet, pin::Pin, process::Command, thread};

use lockne_abi::MarkField;
use lockne_core::{
    plan::{Desired, Family, Observed, Step, Tunnel, diff},
    policy::{Action, Policy, PolicyId, Terms},
    tunnel::TunnelName,
};
use lockne_daemon::route::Netlink;
use rustix::thread::{UnshareFlags, unshare_unsafe};

pub(crate) const FIELD: MarkField = MarkField::DEFAULT;

/// What these tests need and this machine lacks.
pub(crate) fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root can make a network namespace");
    }
    let found = Command::new("ip").arg("-V").output();
    found.is_err().then_some("there is no `ip` (iproute2)")
}

type Test = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Runs `test` on a thread that has a network namespace of its own, which goes with it.
pub(crate) fn run(test: Test) {
    let thread = thread::spawn(|| {
        // SAFETY: a new network namespace takes no memory and no files from anybody.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the namespace of this thread and returns what it prints.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// An uplink with a default route and a LAN, both families.
pub(crate) fn uplink() {
    ip("link set lo up");
    ip("link add eth0 type veth peer name isp");
    ip("link set isp up");
    ip("link set eth0 up");
    ip("address add 192.0.2.2/24 dev eth0");
    ip("address add 2001:db8::2/64 dev eth0 nodad");
    ip("route add default via 192.0.2.1");
    ip("route add default via 2001:db8::1");
}

/// An interface `name` that stands for a VPN's, both families.
pub(crate) fn tunnel(name: &str) {
    ip(&format!("link add {name} type veth peer name {name}-far"));
    ip(&format!("link set {name}-far up"));
    ip(&format!("link set {name} up"));
    ip(&format!("address add 10.9.0.2/32 dev {name}"));
    ip(&format!("address add fd00:9::2/128 dev {name} nodad"));
}

pub(crate) fn via(id: u8, tunnel: &str, lan: &[&str]) -> Policy {
    let terms = Terms {
        lan: lan.iter().map(|it| it.parse().unwrap()).collect(),
        ..Terms::new(Action::Via(tunnel.parse().unwrap()))
    };
    policy(id, terms)
}

pub(crate) fn policy(id: u8, terms: Terms) -> Policy {
    Policy {
        id: PolicyId(id.try_into().unwrap()),
        terms,
    }
}

/// What the daemon does after each change, with all tunnels made by others.
pub(crate) struct Router {
    pub(crate) netlink: Netlink,
    pub(crate) policies: Vec<Policy>,
}

impl Router {
    pub(crate) fn new(policies: impl Into<Vec<Policy>>) -> Self {
        Self {
            netlink: Netlink::open().unwrap(),
            policies: policies.into(),
        }
    }

    pub(crate) async fn observe(&self) -> Observed {
        let names = self
            .policies
            .iter()
            .filter_map(|it| match &it.terms.action {
                Action::Via(name) => Some(name.clone()),
                _ => None,
            });
        let names: BTreeSet<TunnelName> = names.collect();
        self.netlink.observe(FIELD, &names).await.unwrap()
    }

    pub(crate) fn desired(&self, observed: &Observed) -> Desired {
        let links = observed.links.iter();
        let tunnels = links.map(|(name, link)| (name.clone(), Tunnel::foreign(link)));
        let families = BTreeSet::from(Family::ALL);
        Desired::new(FIELD, &families, &self.policies, &tunnels.collect())
    }

    pub(crate) async fn steps(&self) -> Vec<Step> {
        let observed = self.observe().await;
        diff(&self.desired(&observed), &observed)
    }

    pub(crate) async fn reconcile(&mut self) {
        let steps = self.steps().await;
        self.netlink.apply(&steps).await.unwrap();
    }

    /// Our rules and routes, in words.
    pub(crate) async fn text(&self) -> Vec<String> {
        let observed = self.observe().await;
        let rules = observed.rules.iter();
        let rules = rules.map(|it| format!("{} rule {it}", it.family()));
        let routes = observed.routes.iter();
        let routes = routes.map(|it| format!("{} route {it}", it.family()));
        rules.chain(routes).collect()
    }
}
