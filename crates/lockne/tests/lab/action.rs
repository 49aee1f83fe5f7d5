//! What `--via`, `--direct`, `--block` and `--lan` say, even beside another VPN.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    time::Duration,
};

use lockne_lab::{
    internet::ReversePathFilter,
    probe::{Action, Outcome, Probe},
};

use crate::{
    home::Home,
    tests,
    way::{self, HOME, LAN, ORIGIN, PLAIN, assert_answered, assert_arrives, every_kind},
};

tests! {
    direct_program_goes_past_a_vpn_that_takes_everything,
    blocked_program_reaches_nothing_and_is_told_so_at_once,
    blocked_and_tunnelled_programs_reach_this_machine,
    lan_prefix_is_reached_directly_and_the_rest_by_the_tunnel,
    lan_is_not_reached_past_the_tunnel_unless_asked,
}

fn direct_program_goes_past_a_vpn_that_takes_everything() {
    let home = Home::new();
    let _link = home
        .lab
        .add_plain_tunnel("vpn0", ReversePathFilter::Off)
        .unwrap();
    // As wg-quick does it.
    home.ip_both("route add default dev vpn0 table 51820");
    home.ip_both("rule add not fwmark 0xca6c table 51820");
    home.ip_both("rule add table main suppress_prefixlength 0");
    home.tunnel_up("b", &home.lab.provider_b);

    for (probe, _) in every_kind(ORIGIN) {
        let report = probe.run(&home.lab.home).unwrap();
        assert_answered(&report, probe.to.ip(), PLAIN, &probe);
    }
    assert_arrives(
        &home,
        ["--via", "b"],
        ORIGIN,
        way::client(&home.lab.provider_b),
    );
    assert_arrives(&home, ["--via", "vpn0"], ORIGIN, PLAIN);
    home.assert_no_leak();

    assert_arrives(&home, ["--direct"], ORIGIN, HOME);
}

fn blocked_program_reaches_nothing_and_is_told_so_at_once() {
    let home = Home::new();
    let _daemon = home.daemon();

    for to in [ORIGIN, LAN, HOME.map(neighbour)] {
        for (probe, _) in every_kind(to) {
            let report = home.run(["--block"], &probe);

            assert!(
                matches!(report.outcome, Outcome::Refused { .. }),
                "{probe:?}: {report:?}"
            );
            // A neighbour that is not there is waited for three seconds.
            assert!(report.elapsed_us < 2_000_000, "{probe:?}: {report:?}");
        }
    }

    home.assert_no_leak();
    assert_eq!(home.lab.origin.seen(), []);
}

/// The router next door.
fn neighbour(home: IpAddr) -> IpAddr {
    match home {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1).into(),
    }
}

fn blocked_and_tunnelled_programs_reach_this_machine() {
    let home = Home::with_tunnels();
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for address in loopback.into_iter().chain(HOME) {
        let bind = || TcpListener::bind(SocketAddr::new(address, 0)).unwrap();
        let listener = home.lab.home.run(bind).unwrap();
        let server = listener.local_addr().unwrap();
        let patience = Some(Duration::from_secs(20));
        socket2::SockRef::from(&listener)
            .set_read_timeout(patience)
            .unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2 {
                    let (mut stream, caller) = listener.accept().unwrap();
                    writeln!(stream, "{} {}", caller.ip(), caller.port()).unwrap();
                }
            });
            for arguments in [["--block"].as_slice(), &["--via", "a"]] {
                for action in [Action::Tcp, Action::Ping] {
                    let probe = Probe::new(action, server);
                    let report = match arguments {
                        [one] => home.run([one], &probe),
                        [one, two] => home.run([one, two], &probe),
                        _ => unreachable!("one or two words"),
                    };
                    assert!(
                        matches!(report.outcome, Outcome::Answered { .. }),
                        "{arguments:?} {probe:?}: {report:?}"
                    );
                }
            }
        });
    }
    home.assert_no_leak();
}

fn lan_prefix_is_reached_directly_and_the_rest_by_the_tunnel() {
    const LAN_ARGUMENTS: [&str; 6] = [
        "--via",
        "a",
        "--lan",
        "192.0.2.0/24",
        "--lan",
        "2001:db8:2::/64",
    ];
    let home = Home::with_tunnels();
    let tunnel = way::client(&home.lab.provider_a);

    assert_arrives(&home, LAN_ARGUMENTS, ORIGIN, tunnel);
    home.assert_no_leak();

    assert_arrives(&home, LAN_ARGUMENTS, LAN, HOME);
}

fn lan_is_not_reached_past_the_tunnel_unless_asked() {
    let home = Home::with_tunnels();

    // In this lab a neighbour can be reached from the internet, too.
    assert_arrives(
        &home,
        ["--via", "a"],
        LAN,
        way::client(&home.lab.provider_a),
    );

    home.assert_no_leak();
}
