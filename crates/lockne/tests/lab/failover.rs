//! Programs with several tunnels: the first that works, and never the home's own cable.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use lockne_lab::{origin::Service, provider::Provider};

use crate::{fault::Hammers, home::Home, tests};

tests! {
    programs_use_the_second_provider_while_the_first_is_dead,
    programs_use_the_second_tunnel_while_the_first_is_down,
}

pub(crate) fn addresses(provider: &Provider) -> [IpAddr; 2] {
    [provider.client_v4().into(), provider.client_v6().into()]
}

/// Waits until all kinds of traffic come by this provider, and nothing by another for a while.
pub(crate) fn wait_until_by(home: &Home, provider: &Provider) {
    let wanted = addresses(provider);
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        home.lab.origin.clear();
        std::thread::sleep(Duration::from_millis(500));
        let seen = home.lab.origin.seen();
        let all = [Service::Tcp, Service::Udp, Service::Ping]
            .iter()
            .all(|service| {
                wanted.iter().all(|address| {
                    let mut seen = seen.iter();
                    seen.any(|visit| visit.service == *service && visit.source == *address)
                })
            });
        if all && seen.iter().all(|visit| wanted.contains(&visit.source)) {
            return;
        }
        assert!(Instant::now() < deadline, "in vain: {seen:?}");
    }
}

fn programs_use_the_second_provider_while_the_first_is_dead() {
    let home = Home::with_tunnels();
    let (a, b) = (&home.lab.provider_a, &home.lab.provider_b);
    let hammers = Hammers::start(&home, "a,b", addresses(a));

    a.cut().unwrap();

    wait_until_by(&home, b);
    // None works: silence, until one does.
    b.cut().unwrap();
    hammers.assert_silence();
    b.restore().unwrap();
    wait_until_by(&home, b);
    // The first one works again, for good.
    a.restore().unwrap();
    wait_until_by(&home, a);
    hammers.finish();
}

fn programs_use_the_second_tunnel_while_the_first_is_down() {
    let home = Home::new();
    let _daemon = home.daemon();
    home.tunnels_up();
    let (a, b) = (&home.lab.provider_a, &home.lab.provider_b);
    let hammers = Hammers::start(&home, "a,b", addresses(a));

    home.must(["tunnel", "down", "a"]);

    wait_until_by(&home, b);
    home.must(["tunnel", "down", "b"]);
    hammers.assert_silence();
    home.tunnel_up("a", a);
    wait_until_by(&home, a);
    hammers.finish();
}
