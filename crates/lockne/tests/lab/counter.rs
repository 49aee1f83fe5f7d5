//! What `lockne status` counts.

use lockne_core::{
    api::{PolicyStatus, Traffic},
    policy::Action as PolicyAction,
};
use lockne_lab::probe::{Action, Options, Outcome, Probe};

use crate::{
    home::{Daemon, Home},
    tests,
    way::{self, HOME, LAN, ORIGIN, assert_answered, probe},
};

tests! {
    packets_and_bytes_are_counted_exactly_and_loopback_is_not,
    refused_packets_and_calls_are_counted,
    policies_of_one_tunnel_are_told_apart,
}

const ROUNDS: u64 = 10;
/// IPv4 or IPv6, UDP, and the question mark.
const QUESTION: [u64; 2] = [20 + 8 + 1, 40 + 8 + 1];

/// Asks the server so often, and gives the bytes of its answers from the IP header on.
fn ask<const N: usize>(home: &Home, arguments: [&str; N], to: way::Pair, from: way::Pair) -> u64 {
    let mut bytes = 0;
    for _ in 0..ROUNDS {
        for (to, header) in to.into_iter().zip([20, 40]) {
            let probe = probe(Action::UdpUnconnected, to);
            let report = home.run(arguments, &probe);
            assert_answered(&report, to, from, &probe);
            if let Outcome::Answered { saw: Some(saw) } = report.outcome {
                bytes += header + 8 + format!("{} {}\n", saw.ip(), saw.port()).len() as u64;
            }
        }
    }
    bytes
}

fn expected(answers: u64) -> Traffic {
    Traffic {
        tx_packets: 2 * ROUNDS,
        tx_bytes: ROUNDS * (QUESTION[0] + QUESTION[1]),
        rx_packets: 2 * ROUNDS,
        rx_bytes: answers,
        refused: 0,
    }
}

fn only_policy(home: &Home) -> PolicyStatus {
    let mut policies = home.status().unwrap().policies;
    assert_eq!(policies.len(), 1, "{policies:?}");
    policies.remove(0)
}

/// A home whose marks no other test uses: their programs run in our hooks, too, which see the same
/// marks and device numbers and count without a look at the namespace.
fn home(mark_bit: &str) -> (Daemon, Home) {
    let home = Home::new();
    let daemon = home.daemon_with(&["--mark-bit", mark_bit]);
    home.tunnels_up();
    (daemon, home)
}

fn packets_and_bytes_are_counted_exactly_and_loopback_is_not() {
    let (_daemon, home) = home("4");
    let via = ["--via", "a"];

    let answers = ask(&home, via, ORIGIN, way::client(&home.lab.provider_a));
    let loopback = ["127.0.0.1", "::1"].map(|it| it.parse().unwrap());
    for to in loopback.into_iter().chain(HOME) {
        let report = home.run(via, &Probe::new(Action::Ping, (to, 0)));
        assert_eq!(report.outcome, Outcome::Answered { saw: None });
    }

    assert_eq!(only_policy(&home).traffic, expected(answers));
}

fn refused_packets_and_calls_are_counted() {
    let (_daemon, home) = home("12");
    let bound = Options {
        bind_device: Some("eth0".to_owned()),
        ..Options::default()
    };
    let kinds = [Action::Tcp, Action::UdpUnconnected, Action::Mptcp];
    for action in kinds {
        for to in ORIGIN {
            let probe = probe(action, to).with(bound.clone());
            let report = home.run(["--via", "a"], &probe);
            assert!(
                matches!(report.outcome, Outcome::Refused { .. }),
                "{probe:?}: {report:?}"
            );
        }
    }

    // The guard's own; of IPv6 the unreachable rule refuses it before.
    let raw = probe(Action::RawPing, ORIGIN[0]).with(bound);
    let report = home.run(["--via", "a"], &raw);
    assert!(
        matches!(report.outcome, Outcome::Refused { .. }),
        "{report:?}"
    );

    let refused = Traffic {
        refused: 2 * kinds.len() as u64 + 1,
        ..Traffic::default()
    };
    assert_eq!(only_policy(&home).traffic, refused);
    home.assert_no_leak();
}

fn policies_of_one_tunnel_are_told_apart() {
    let (_daemon, home) = home("17");
    let tunnel = way::client(&home.lab.provider_a);
    let lan = [
        "--via",
        "a",
        "--lan",
        "192.0.2.0/24",
        "--lan",
        "2001:db8:2::/64",
    ];

    let plain = ask(&home, ["--via", "a"], ORIGIN, tunnel);
    let with_lan = ask(&home, lan, ORIGIN, tunnel);
    let again = ask(&home, lan, ORIGIN, tunnel);
    // Past the tunnel: not the tunnel's traffic.
    ask(&home, lan, LAN, HOME);

    let policies = home.status().unwrap().policies;
    let [first, second] = &policies[..] else {
        panic!("{policies:?}");
    };
    assert!(matches!(&first.terms.action, PolicyAction::Via(name) if name.as_str() == "a"));
    assert!(first.terms.lan.is_empty() && !second.terms.lan.is_empty());
    assert_eq!(first.traffic, expected(plain));
    let twice = expected(with_lan + again);
    assert_eq!(
        second.traffic,
        Traffic {
            tx_packets: 2 * twice.tx_packets,
            tx_bytes: 2 * twice.tx_bytes,
            rx_packets: 2 * twice.rx_packets,
            ..twice
        }
    );
}
