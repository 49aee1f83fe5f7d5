//! Every kind of traffic takes the way its policy says, with the right source address.

use std::net::IpAddr;

use lockne_lab::{
    internet::ReversePathFilter,
    origin::Service,
    probe::{Action, Outcome, SocketFrom},
};

use crate::{
    home::Home,
    tests,
    way::{self, HOME, ORIGIN, PLAIN, assert_answered, assert_arrives, probe},
};

tests! {
    tunnelled_program_arrives_with_the_tunnels_address,
    any_interface_is_a_tunnel,
    strict_reverse_path_filter_lets_answers_in,
    unpoliced_program_beside_a_tunnelled_one_goes_direct,
    programs_started_at_once_each_take_their_own_way,
}

fn tunnelled_program_arrives_with_the_tunnels_address() {
    let home = Home::with_tunnels();

    assert_arrives(
        &home,
        ["--via", "a"],
        ORIGIN,
        way::client(&home.lab.provider_a),
    );

    home.assert_no_leak();
}

fn any_interface_is_a_tunnel() {
    arrives_by_a_plain_interface(ReversePathFilter::Off);
}

fn strict_reverse_path_filter_lets_answers_in() {
    arrives_by_a_plain_interface(ReversePathFilter::Strict);
}

fn arrives_by_a_plain_interface(filter: ReversePathFilter) {
    let home = Home::new();
    let _link = home.lab.add_plain_tunnel("corp0", filter).unwrap();
    let _daemon = home.daemon();

    assert_arrives(&home, ["--via", "corp0"], ORIGIN, PLAIN);

    home.assert_no_leak();
}

fn unpoliced_program_beside_a_tunnelled_one_goes_direct() {
    let home = Home::with_tunnels();
    let tunnel = way::client(&home.lab.provider_a);
    for (action, to) in [Action::Tcp, Action::UdpUnconnected]
        .into_iter()
        .zip(ORIGIN)
    {
        let before = home.leaks();
        let tunnelled = probe(action, to).on(SocketFrom::AfterGo);
        let mut running = home.start(["--via", "a"], &tunnelled);
        running.wait_until_ready().unwrap();
        assert_eq!(home.leaks(), before);

        let direct = probe(action, to);
        assert_answered(&direct.run(&home.lab.home).unwrap(), to, HOME, &direct);
        let after = home.leaks();

        running.go().unwrap();
        assert_answered(&running.finish().unwrap(), to, tunnel, &tunnelled);
        assert_eq!(home.leaks(), after);
    }
}

fn programs_started_at_once_each_take_their_own_way() {
    const EACH: usize = 5;
    let home = Home::new();
    let (provider_a, provider_b) = (&home.lab.provider_a, &home.lab.provider_b);
    let a = home.conf("a", provider_a);
    let b = home.conf("b", provider_b);
    let (a, b) = (a.to_str().unwrap(), b.to_str().unwrap());
    let a_with_lan = ["--via", a, "--lan", "192.0.2.50/32"];

    // No daemon runs yet: all of them start one, and one of those stays.
    let mut running = Vec::new();
    for to in ORIGIN.into_iter().cycle().take(EACH) {
        let tcp = probe(Action::Tcp, to);
        let mut add = |started, from| running.push((started, to, from));
        add(
            home.start(["--via", a], &tcp),
            Some(way::client(provider_a)),
        );
        add(
            home.start(["--via", b], &tcp),
            Some(way::client(provider_b)),
        );
        add(home.start(a_with_lan, &tcp), Some(way::client(provider_a)));
        add(home.start(["--direct"], &tcp), Some(HOME));
        add(home.start(["--block"], &tcp), None);
    }

    for (running, to, from) in running {
        let report = running.finish().unwrap();
        match from {
            Some(from) => assert_answered(&report, to, from, &probe(Action::Tcp, to)),
            None => assert!(
                matches!(report.outcome, Outcome::Refused { .. }),
                "{report:?}"
            ),
        }
    }
    let times = |source: IpAddr| home.lab.origin.times(Service::Tcp, source);
    let sum = |pair: way::Pair| pair.map(times).iter().sum::<u64>();
    assert_eq!(sum(way::client(provider_a)), 2 * EACH as u64);
    assert_eq!(sum(way::client(provider_b)), EACH as u64);
    assert_eq!(sum(HOME), EACH as u64);
}
