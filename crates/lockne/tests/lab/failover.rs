//! Programs with several tunnels: the first that works, and never the home's own cable.

use std::{
    env,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lockne_core::api::{Explanation, TunnelState};
use lockne_lab::{
    origin::{HTTP_PORT, Service},
    packet::Content,
    probe::{Action, Outcome, Probe},
    program,
    provider::Provider,
};

use crate::{
    fault::{Hammers, with_interface},
    home::{Daemon, Home, wait_until},
    tests,
    way::{HOME, ORIGIN, PLAIN, client},
};

tests! {
    programs_use_the_second_provider_while_the_first_is_dead,
    programs_use_the_second_tunnel_while_the_first_is_down,
    tunnel_whose_probe_is_not_answered_is_left_though_its_far_end_lives,
    connections_are_cut_or_kept_as_the_rule_says needs ["ip"],
    direct_behind_a_tunnel_is_gone_while_it_does_not_work_and_left_again,
    direct_behind_a_tunnel_stays_with_a_dead_daemon_and_ends_with_the_next needs ["ip"],
}

pub(crate) fn addresses(provider: &Provider) -> [IpAddr; 2] {
    [provider.client_v4().into(), provider.client_v6().into()]
}

/// Waits until all kinds of traffic come by this provider, and nothing by another for a while.
pub(crate) fn wait_until_by(home: &Home, provider: &Provider) {
    wait_until_from(home, addresses(provider));
}

fn wait_until_from(home: &Home, wanted: [IpAddr; 2]) {
    let deadline = Instant::now() + Duration::from_mins(2);
    let mut window = Duration::from_millis(500);
    loop {
        home.lab.origin.clear();
        std::thread::sleep(window);
        // An emulated machine does not come to all kinds in less.
        window = Duration::from_secs(8).min(window * 2);
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

/// A configuration of both tunnels, the first with a probe at its far end.
fn configured(home: &Home, rules: &str) -> Daemon {
    let mut text = String::new();
    for (name, provider, more) in [
        ("a", &home.lab.provider_a, "probe = \"10.8.1.1\"\n"),
        ("b", &home.lab.provider_b, ""),
    ] {
        let conf = home.conf(name, provider);
        write!(
            text,
            "[tunnels.{name}]\nconfig = \"{}\"\n{more}",
            conf.display()
        )
        .unwrap();
    }
    let config = home.write("lockne.toml", &(text + rules));
    home.daemon_with(&["--config", config.to_str().unwrap()])
}

fn tunnel_whose_probe_is_not_answered_is_left_though_its_far_end_lives() {
    let home = Home::new();
    let _daemon = configured(&home, "");
    let (a, b) = (&home.lab.provider_a, &home.lab.provider_b);
    assert_eq!(
        client(a)[0].to_string(),
        "10.8.1.2",
        "the probe is its far end"
    );
    let hammers = Hammers::start(&home, "a,b", addresses(a));

    // What goes through the tunnel is carried and answered as before.
    let ignore = "ipv4/icmp_echo_ignore_all";
    a.namespace().set(ignore, "1").unwrap();
    wait_until_by(&home, b);
    // It is asked on, and heard again.
    a.namespace().set(ignore, "0").unwrap();
    wait_until_by(&home, a);
    hammers.finish();
}

fn connections_are_cut_or_kept_as_the_rule_says() {
    let home = Home::new();
    let mut rules = String::new();
    let programs = ["keep", "reset"].map(|existing| {
        let path = home.beside(existing);
        program::copy(&env::current_exe().unwrap(), &path).unwrap();
        write!(rules, "[[rule]]\nname = \"{existing}\"\nexe = \"{}\"\nvia = [\"a\", \"b\"]\nexisting = \"{existing}\"\n",
            path.display()).unwrap();
        // Those with the same terms are one policy, and one of them that cuts is enough for all.
        rules += if existing == "keep" { "" } else { "lan = [\"198.18.0.0/15\"]\n" };
        path
    });
    let _daemon = configured(&home, &rules);
    wait_until("the tunnels are up", || {
        let tunnels = home.status().unwrap().tunnels;
        tunnels.len() == 2 && tunnels.iter().all(|it| it.state == TunnelState::Up)
    });
    let hold = Probe::new(Action::Hold, SocketAddr::new(ORIGIN[0], HTTP_PORT));
    let [kept, reset] = programs.map(|program| {
        let mut running = hold.start_as(home.lab.home.command(program)).unwrap();
        running.wait_until_ready().unwrap();
        running
    });
    let explain = || -> Explanation {
        let text = home.must(["explain", "--json", &kept.pid().to_string()]);
        serde_json::from_str(&text).unwrap()
    };

    home.ip("link set dev a down");

    let report = reset.finish().unwrap();
    assert!(
        matches!(&report.outcome, Outcome::Ended { why, .. } if why == "ECONNABORTED"),
        "{report:?}"
    );
    wait_until("it uses the other tunnel", || {
        explain().tunnel.is_some_and(|it| it.name.as_str() == "b")
    });
    let sockets = explain().sockets;
    let remote = Some(SocketAddr::new(ORIGIN[0], HTTP_PORT));
    assert!(
        sockets
            .iter()
            .any(|it| it.socket.remote == remote && it.socket.state == "established"),
        "{sockets:?}"
    );
    home.assert_no_leak();
}

fn direct_behind_a_tunnel_is_gone_while_it_does_not_work_and_left_again() {
    let home = Home::with_tunnels();
    let a = &home.lab.provider_a;
    let hammers = Hammers::start(&home, "a,direct", addresses(a));
    let hold = Probe::new(Action::Hold, SocketAddr::new(ORIGIN[0], HTTP_PORT));
    // It has to be cut, and not to give up itself.
    let hold = hold.waiting(Duration::from_mins(2));
    let mut connected = home.start(["--via", "a,direct"], &hold);
    connected.wait_until_ready().unwrap();
    let bound = home.start(["--via", "a"], &hold);
    let pid = hammers.pids().pop_first().unwrap().to_string();
    let policy = || {
        let policies = home.status().unwrap().policies;
        policies.into_iter().find(|it| it.terms.or_direct).unwrap()
    };
    assert!(!policy().direct_now);
    assert!(!policy().resolvers.is_empty(), "the tunnel's resolver");
    home.assert_no_leak();

    a.cut().unwrap();
    wait_until_from(&home, HOME);

    assert!(policy().direct_now);
    assert_eq!(policy().resolvers, [] as [IpAddr; 0], "this machine's own");
    let said = home.must(["explain", &pid]);
    assert!(
        said.contains("goes direct now, as no tunnel of it is healthy"),
        "{said}"
    );
    let said = home.must(["status"]);
    assert!(said.contains("any, no tunnel works"), "{said}");
    let said = home.must(["doctor"]);
    assert!(
        said.contains("go via a, else direct go direct now"),
        "{said}"
    );
    let report = connected.finish().unwrap();
    assert!(
        matches!(&report.outcome, Outcome::Ended { why, .. } if why == "ECONNABORTED"),
        "{report:?}"
    );
    // Who did not say so is silent, and nothing of a connection by the tunnel leaves past it.
    for flow in home.leaks() {
        if let Content::Ip(ip) = &flow.packet.content {
            let ends = [ip.source, ip.destination];
            assert!(ends.iter().any(|it| HOME.contains(it)), "{flow:?}");
            assert!(!ends.iter().any(|it| addresses(a).contains(it)), "{flow:?}");
        }
    }
    drop(bound);

    a.restore().unwrap();
    wait_until_by(&home, a);

    assert!(!policy().direct_now);
    assert!(!policy().resolvers.is_empty());
    home.wire.settle().unwrap();
    home.wire.clear();
    hammers.wait_until_they_arrive();
    hammers.finish();
}

/// Nobody is there to see that the tunnel works again; the next daemon believes in it until it has seen otherwise.
fn direct_behind_a_tunnel_stays_with_a_dead_daemon_and_ends_with_the_next() {
    let (home, _link) = with_interface();
    let daemon = home.daemon();
    let hammers = Hammers::start(&home, "p,direct", PLAIN);

    home.ip("link set p down");
    wait_until_from(&home, HOME);
    daemon.kill();
    home.ip("link set p up");
    wait_until_from(&home, HOME);

    let _next = home.daemon();
    wait_until_from(&home, PLAIN);
    home.wire.settle().unwrap();
    home.wire.clear();
    hammers.wait_until_they_arrive();
    hammers.finish();
}
