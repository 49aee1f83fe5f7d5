//! Ways past the routes that a program can choose for itself, without privileges.

use std::{net::IpAddr, time::Duration};

use lockne_lab::probe::{Action, Form, Options, Outcome};

use crate::{
    home::Home,
    tests,
    way::{self, HOME, ORIGIN, every_kind, of_family, probe},
};

tests! {
    socket_bound_to_another_device_sends_nothing,
    socket_that_prefers_another_device_does_not_leak,
    datagram_for_another_device_does_not_leak,
    socket_bound_to_the_home_address_does_not_leak,
    second_uplink_is_no_way_out,
    multipath_tcp_is_refused_so_that_programs_take_tcp,
}

/// What a way out was answered with, if the server did not see the program past its tunnel.
type Allowed = fn(Action, &Outcome) -> bool;

/// Runs every kind of traffic with `options` and fails if it is seen on the home link, or by the server
/// from another address than the tunnel's.
fn assert_closed(home: &Home, options: impl Fn(IpAddr) -> Options, allowed: Allowed) {
    let tunnel = way::client(&home.lab.provider_a);
    home.lab.origin.clear();
    let probes = every_kind(ORIGIN).into_iter().map(|(probe, _)| {
        let to = probe.to.ip();
        let form = probe.options.form;
        let options = Options {
            form,
            ..options(to)
        };
        probe.with(options).waiting(Duration::from_millis(300))
    });
    let running: Vec<_> = probes
        .map(|probe| (home.start(["--via", "a"], &probe), probe))
        .collect();
    for (running, probe) in running {
        let report = running.finish().unwrap();
        let from = of_family(tunnel, probe.to.ip());
        let through_the_tunnel = match &report.outcome {
            Outcome::Answered { saw } => saw.is_none_or(|saw| saw.ip() == from),
            _ => true,
        };
        assert!(
            through_the_tunnel && allowed(probe.action, &report.outcome),
            "{probe:?}: {report:?}"
        );
    }
    let seen = home.lab.origin.seen();
    assert!(
        seen.iter().all(|visit| tunnel.contains(&visit.source)),
        "{seen:?}"
    );
    home.assert_no_leak();
}

fn is_refused(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused { .. })
}

fn bound_to(device: &str) -> impl Fn(IpAddr) -> Options {
    move |_| Options {
        bind_device: Some(device.to_owned()),
        ..Options::default()
    }
}

fn preferring(device: &str) -> impl Fn(IpAddr) -> Options {
    move |_| Options {
        unicast_device: Some(device.to_owned()),
        ..Options::default()
    }
}

fn each_by(device: &str) -> impl Fn(IpAddr) -> Options {
    move |_| Options {
        packet_device: Some(device.to_owned()),
        ..Options::default()
    }
}

fn socket_bound_to_another_device_sends_nothing() {
    let home = Home::with_tunnels();

    assert_closed(&home, bound_to("eth0"), |_, outcome| is_refused(outcome));

    assert_eq!(home.lab.origin.seen(), []);
}

fn socket_that_prefers_another_device_does_not_leak() {
    let home = Home::with_tunnels();

    // TCP does not ask for the preference.
    assert_closed(&home, preferring("eth0"), |action, outcome| {
        action == Action::Tcp || is_refused(outcome)
    });
}

fn datagram_for_another_device_does_not_leak() {
    let home = Home::with_tunnels();

    // A connected socket has its route already.
    assert_closed(&home, each_by("eth0"), |action, outcome| {
        matches!(action, Action::Tcp | Action::UdpConnected) || is_refused(outcome)
    });
}

fn socket_bound_to_the_home_address_does_not_leak() {
    let home = Home::with_tunnels();
    let bound = |to| Options {
        source: Some(of_family(HOME, to)),
        ..Options::default()
    };

    // It goes into the tunnel, and the provider drops an address that is not the customer's.
    assert_closed(&home, bound, |_, outcome| {
        !matches!(outcome, Outcome::Answered { .. })
    });
}

fn second_uplink_is_no_way_out() {
    let home = Home::with_tunnels();
    let link = home.lab.add_second_uplink().unwrap();
    home.ip("-4 route add default via 203.0.113.129 dev eth1 metric 4000");
    home.ip("-6 route add default via 2001:db8:3::1 dev eth1 metric 4000");
    let wire = link.sniffer().unwrap();

    assert_closed(&home, bound_to("eth1"), |_, outcome| is_refused(outcome));
    assert_closed(&home, preferring("eth1"), |_, _| true);
    assert_closed(&home, each_by("eth1"), |_, _| true);

    wire.settle().unwrap();
    let leaks = home.lab.leaks(&wire);
    assert!(leaks.is_empty(), "leaked: {leaks:#?}");
}

fn multipath_tcp_is_refused_so_that_programs_take_tcp() {
    let home = Home::with_tunnels();
    let mapped = Options {
        form: Form::V4Mapped,
        ..Options::default()
    };
    let probes = [
        probe(Action::Mptcp, ORIGIN[0]),
        probe(Action::Mptcp, ORIGIN[1]),
        probe(Action::Mptcp, ORIGIN[0]).with(mapped),
    ];
    for probe in probes {
        let report = home.run(["--via", "a"], &probe);

        let refused = Outcome::Refused {
            call: "socket".to_owned(),
            errno: "EPROTONOSUPPORT".to_owned(),
        };
        assert_eq!(report.outcome, refused, "{probe:?}");
    }
    home.assert_no_leak();
}
