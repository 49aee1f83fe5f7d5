//! Tunnels, links and addresses that go and come back while programs send: silence, never a leak.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use lockne_core::api::{TunnelState, TunnelStatus};
use lockne_lab::{
    device::Device,
    internet::{ORIGIN_V4, ORIGIN_V6, PLAIN_V4, PLAIN_V6, ReversePathFilter},
    link::Link,
    origin::{ADDRESS_PORT, HTTP_PORT, Service},
    probe::{Action, Options, Outcome, Probe, Running},
};

use crate::{
    home::{Home, text, wait_until},
    tests,
};

tests! {
    download_stalls_and_nothing_leaks_when_the_provider_is_cut_off,
    own_tunnel_that_is_deleted_comes_back_with_another_index_and_carries_again,
    own_tunnel_is_silent_while_it_is_set_down,
    own_tunnel_is_silent_while_it_has_another_name,
    interface_that_is_deleted_carries_again_when_it_is_back_with_another_index,
    interface_is_silent_while_it_is_set_down,
    interface_is_silent_while_it_has_another_name,
    another_interface_by_the_tunnels_name_is_used_and_the_renamed_one_is_not,
    tunnel_carries_again_when_the_cable_is_back,
    tunnel_carries_on_from_another_address_of_the_machine needs ["ip"],
    tunnel_that_is_taken_down_silences_its_programs_until_it_is_up_again,
}

const ORIGINS: [IpAddr; 2] = [IpAddr::V4(ORIGIN_V4), IpAddr::V6(ORIGIN_V6)];
const PLAIN: [IpAddr; 2] = [IpAddr::V4(PLAIN_V4), IpAddr::V6(PLAIN_V6)];
const FLAPS: u32 = 4;

/// Programs that send through a tunnel by every way, all the time.
pub(crate) struct Hammers<'a> {
    home: &'a Home,
    tunnel: &'static str,
    addresses: [IpAddr; 2],
    running: Vec<Running>,
}

impl<'a> Hammers<'a> {
    /// Starts them: by IPv4 and IPv6, and each once more bound to the home link, which the guard
    /// alone holds back.
    pub(crate) fn start(home: &'a Home, tunnel: &'static str, addresses: [IpAddr; 2]) -> Self {
        let hammers = Self::start_beside(home, tunnel, addresses);
        hammers.assert_addresses(&[]);
        hammers
    }

    /// The same while other programs use other tunnels.
    pub(crate) fn start_beside(
        home: &'a Home,
        tunnel: &'static str,
        addresses: [IpAddr; 2],
    ) -> Self {
        let bound = Options {
            bind_device: Some("eth0".to_owned()),
            ..Options::default()
        };
        let mut running = Vec::new();
        for options in [Options::default(), bound] {
            for to in ORIGINS {
                let probe = Probe::new(Action::Hammer, SocketAddr::new(to, ADDRESS_PORT));
                running.push(home.start(["--via", tunnel], &probe.with(options.clone())));
            }
        }
        for hammer in &mut running {
            hammer.wait_until_ready().unwrap();
        }
        let hammers = Self {
            home,
            tunnel,
            addresses,
            running,
        };
        hammers.wait();
        hammers
    }

    /// The same for the first provider's customer.
    pub(crate) fn through_a(home: &'a Home) -> Self {
        let provider = &home.lab.provider_a;
        let addresses = [provider.client_v4().into(), provider.client_v6().into()];
        Self::start(home, "a", addresses)
    }

    /// Their processes.
    pub(crate) fn pids(&self) -> BTreeSet<u32> {
        self.running.iter().map(Running::pid).collect()
    }

    /// Waits until TCP, UDP and pings of both families have come through anew.
    pub(crate) fn wait_until_they_arrive(&self) {
        self.wait();
        self.assert_addresses(&[]);
    }

    /// The same while others come from `others`.
    pub(crate) fn wait_until_they_arrive_beside(&self, others: &[IpAddr]) {
        self.wait();
        self.assert_addresses(others);
    }

    fn wait(&self) {
        self.home.lab.origin.clear();
        let patience = Duration::from_secs(20);
        let arrived = self.home.lab.origin.wait_until(patience, |seen| {
            [Service::Tcp, Service::Udp, Service::Ping]
                .iter()
                .all(|service| {
                    self.addresses.iter().all(|address| {
                        seen.iter()
                            .any(|visit| visit.service == *service && visit.source == *address)
                    })
                })
        });
        assert!(arrived.is_ok(), "in vain: only {arrived:?}");
    }

    /// Waits until nothing comes through, and sees to it that nothing does for a while.
    pub(crate) fn assert_silence(&self) {
        let origin = &self.home.lab.origin;
        wait_until("silence", || {
            origin.clear();
            // An emulated machine has more on its way, and stops in between.
            std::thread::sleep(Duration::from_secs(1));
            origin.seen().is_empty()
        });
        for to in ORIGINS {
            for action in [Action::Tcp, Action::UdpUnconnected, Action::RawPing] {
                let probe = Probe::new(action, SocketAddr::new(to, ADDRESS_PORT));
                let probe = probe.waiting(Duration::from_millis(100));
                let report = self.home.run(["--via", self.tunnel], &probe);
                let answered = matches!(report.outcome, Outcome::Answered { .. });
                assert!(!answered, "{action:?} {to}: {report:?}");
            }
        }
        assert_eq!(origin.seen(), [], "not silent");
    }

    /// Ends them, and fails if anything of theirs took another way at any time.
    pub(crate) fn finish(self) {
        self.finish_beside(&[]);
    }

    /// The same while others come from `others`.
    pub(crate) fn finish_beside(self, others: &[IpAddr]) {
        let home = self.home;
        self.assert_addresses(others);
        self.end();
        home.assert_no_leak();
    }

    /// Ends them.
    pub(crate) fn end(mut self) {
        for mut hammer in std::mem::take(&mut self.running) {
            hammer.go().unwrap();
            let report = hammer.finish().unwrap();
            assert!(matches!(report.outcome, Outcome::Sent { .. }), "{report:?}");
        }
    }

    fn assert_addresses(&self, others: &[IpAddr]) {
        let seen = self.home.lab.origin.seen();
        let is_known = |address| self.addresses.contains(address) || others.contains(address);
        let unknown: Vec<_> = seen
            .iter()
            .filter(|visit| !is_known(&visit.source))
            .collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}

fn tunnel(home: &Home, name: &str) -> TunnelStatus {
    let tunnels = home.status().unwrap().tunnels;
    let found = tunnels.into_iter().find(|it| it.name.as_str() == name);
    found.unwrap()
}

fn device(home: &Home, name: &str) -> Device {
    Device::find(&home.lab.home, name).unwrap().unwrap()
}

/// A home with an interface `p` that somebody else made, which leads to the first provider.
pub(crate) fn with_interface() -> (Home, Link) {
    let home = Home::new();
    let link = home.lab.add_plain_tunnel("p", ReversePathFilter::Off);
    let link = link.unwrap();
    (home, link)
}

fn download_stalls_and_nothing_leaks_when_the_provider_is_cut_off() {
    let home = Home::with_tunnels();
    let patience = Duration::from_secs(1);
    let start = |to| {
        let probe = Probe::new(Action::Hold, SocketAddr::new(to, HTTP_PORT)).waiting(patience);
        let mut download = home.start(["--via", "a"], &probe);
        download.wait_until_ready().unwrap();
        download
    };
    let downloads = ORIGINS.map(start);
    let hammers = Hammers::through_a(&home);

    home.lab.provider_a.cut().unwrap();

    for download in downloads {
        let report = download.finish().unwrap();
        let Outcome::Ended { bytes, why } = &report.outcome else {
            panic!("{report:?}");
        };
        assert!(*bytes > 0 && why == "silence", "{report:?}");
    }
    hammers.assert_silence();
    home.lab.provider_a.restore().unwrap();
    hammers.wait_until_they_arrive();
    hammers.finish();
}

fn own_tunnel_that_is_deleted_comes_back_with_another_index_and_carries_again() {
    let home = Home::with_tunnels();
    let hammers = Hammers::through_a(&home);

    for _ in 0..FLAPS {
        let old = device(&home, "a");
        old.delete().unwrap();
        wait_until("the tunnel is up again", || {
            let status = tunnel(&home, "a");
            status.state == TunnelState::Up && status.ifindex != Some(old.index())
        });
        hammers.wait_until_they_arrive();
    }
    hammers.finish();
}

fn own_tunnel_is_silent_while_it_is_set_down() {
    let home = Home::with_tunnels();
    let hammers = Hammers::through_a(&home);
    let device = device(&home, "a");

    for _ in 0..FLAPS {
        device.down().unwrap();
        hammers.assert_silence();
        device.up().unwrap();
        hammers.wait_until_they_arrive();
    }
    hammers.finish();
}

fn own_tunnel_is_silent_while_it_has_another_name() {
    let home = Home::with_tunnels();
    let hammers = Hammers::through_a(&home);
    let device = device(&home, "a");

    for _ in 0..FLAPS {
        device.rename("z").unwrap();
        hammers.assert_silence();
        device.rename("a").unwrap();
        hammers.wait_until_they_arrive();
    }
    hammers.finish();
}

fn interface_that_is_deleted_carries_again_when_it_is_back_with_another_index() {
    let (home, mut link) = with_interface();
    let _daemon = home.daemon();
    let hammers = Hammers::start(&home, "p", PLAIN);

    for _ in 0..FLAPS {
        let old = link.near().index();
        link.near().delete().unwrap();
        hammers.assert_silence();
        let anew = home.lab.add_plain_tunnel_anew("p", ReversePathFilter::Off);
        link = anew.unwrap();
        assert_ne!(link.near().index(), old);
        hammers.wait_until_they_arrive();
    }
    hammers.finish();
}

fn interface_is_silent_while_it_is_set_down() {
    let (home, link) = with_interface();
    let _daemon = home.daemon();
    let hammers = Hammers::start(&home, "p", PLAIN);

    for _ in 0..FLAPS {
        link.near().down().unwrap();
        hammers.assert_silence();
        link.near().up().unwrap();
        hammers.wait_until_they_arrive();
    }
    hammers.finish();
}

fn interface_is_silent_while_it_has_another_name() {
    let (home, link) = with_interface();
    let _daemon = home.daemon();
    let hammers = Hammers::start(&home, "p", PLAIN);

    for _ in 0..FLAPS {
        link.near().rename("z").unwrap();
        hammers.assert_silence();
        link.near().rename("p").unwrap();
        hammers.wait_until_they_arrive();
    }
    hammers.finish();
}

fn another_interface_by_the_tunnels_name_is_used_and_the_renamed_one_is_not() {
    let home = Home::with_tunnels();
    let hammers = Hammers::through_a(&home);
    let (a, b) = (device(&home, "a"), device(&home, "b"));

    a.rename("old").unwrap();
    b.rename("a").unwrap();

    // The other provider's customer has other addresses.
    let other = &home.lab.provider_b;
    let addresses = [other.client_v4().into(), other.client_v6().into()];
    let moved = home.lab.origin.wait_until(Duration::from_secs(10), |seen| {
        addresses
            .iter()
            .all(|address| seen.iter().any(|visit| visit.source == *address))
    });
    assert!(moved.is_ok(), "{moved:?}");
    wait_until("nothing more comes by the renamed one", || {
        home.lab.origin.clear();
        std::thread::sleep(Duration::from_millis(100));
        let seen = home.lab.origin.seen();
        !seen.is_empty() && seen.iter().all(|visit| addresses.contains(&visit.source))
    });
    Hammers {
        addresses,
        ..hammers
    }
    .finish();
}

fn tunnel_carries_again_when_the_cable_is_back() {
    let home = Home::with_tunnels();
    let hammers = Hammers::through_a(&home);

    for _ in 0..FLAPS {
        home.lab.home_link.unplug().unwrap();
        hammers.assert_silence();
        home.lab.home_link.replug().unwrap();
        hammers.wait_until_they_arrive();
    }
    hammers.finish();
}

fn tunnel_carries_on_from_another_address_of_the_machine() {
    let home = Home::with_tunnels();
    let hammers = Hammers::through_a(&home);
    let ip = |arguments: &str| {
        let mut ip: Command = home.lab.home.command("ip");
        let output = ip.args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", text(&output));
    };
    let mut old = "192.0.2.2";

    for new in ["192.0.2.77", "192.0.2.78", "192.0.2.2"] {
        ip(&format!("address del {old}/24 dev eth0"));
        hammers.assert_silence();
        ip(&format!("address add {new}/24 dev eth0"));
        ip("route replace default via 192.0.2.1");
        hammers.wait_until_they_arrive();
        old = new;
    }
    hammers.finish();
}

fn tunnel_that_is_taken_down_silences_its_programs_until_it_is_up_again() {
    let home = Home::with_tunnels();
    let hammers = Hammers::through_a(&home);

    for _ in 0..FLAPS {
        let said = home.must(["tunnel", "down", "a"]);
        assert!(said.contains("silent"), "{said}");
        hammers.assert_silence();
        home.tunnel_up("a", &home.lab.provider_a);
        hammers.wait_until_they_arrive();
    }
    hammers.finish();
}
