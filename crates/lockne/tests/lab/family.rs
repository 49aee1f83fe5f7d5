//! A policy holds for everything that a program starts, however it does that, from the first packet on.

use std::time::Duration;

use lockne_core::api::DaemonStatus;
use lockne_lab::{
    packet::{Content, Transport},
    probe::{Action, Actor, Outcome, SocketFrom},
    sniffer::Sniffer,
};

use crate::{
    home::{Home, wait_until},
    tests,
    way::{self, ORIGIN, PLAIN, assert_answered, probe},
};

tests! {
    relatives_of_a_tunnelled_program_are_tunnelled,
    children_that_send_at_once_are_tunnelled_from_the_first_packet,
    orphan_stays_bound_and_keeps_the_daemon_alive,
}

fn relatives_of_a_tunnelled_program_are_tunnelled() {
    let home = Home::with_tunnels();
    let tunnel = way::client(&home.lab.provider_a);
    let relatives = [Actor::Child, Actor::Orphan, Actor::Thread, Actor::Program];
    for actor in relatives {
        for to in ORIGIN {
            for action in [Action::Tcp, Action::UdpUnconnected, Action::RawPing] {
                let probe = probe(action, to).by(actor);

                let report = home.run(["--via", "a"], &probe);

                assert_answered(&report, to, tunnel, &probe);
            }
        }
    }
    home.assert_no_leak();
}

fn children_that_send_at_once_are_tunnelled_from_the_first_packet() {
    const LOOPS: usize = 3;
    const CHILDREN: u32 = 10_000;
    let home = Home::new();
    let link = home.add_corp0();
    // Behind the device a queue may overflow; what goes into it is all there.
    let tunnel = Sniffer::on(link.near()).unwrap();
    let _daemon = home.daemon();

    let forks = probe(Action::Forks(CHILDREN), ORIGIN[0]);
    let running: Vec<_> = (0..LOOPS)
        .map(|_| home.start(["--via", "corp0"], &forks))
        .collect();
    for running in running {
        let report = running.finish().unwrap();
        let all = Outcome::Sent {
            sent: CHILDREN,
            refused: 0,
        };
        assert_eq!(report.outcome, all);
    }

    home.assert_no_leak();
    let seen = home.lab.origin.seen();
    assert!(
        matches!(seen[..], [visit] if visit.source == PLAIN[0]),
        "{seen:?}"
    );
    tunnel.settle().unwrap();
    let children = tunnel.count(|packet| match &packet.content {
        Content::Ip(ip) => {
            let udp = matches!(ip.transport, Transport::Udp { .. });
            udp && ip.source == PLAIN[0] && ip.destination == ORIGIN[0]
        }
        _ => false,
    });
    assert_eq!(children, u64::from(CHILDREN) * LOOPS as u64);
    let status = home.status().unwrap();
    assert!(status.policies[0].processes.is_empty(), "{status:?}");
}

fn orphan_stays_bound_and_keeps_the_daemon_alive() {
    /// Several times as long as the daemon takes to notice that its last job has ended.
    const LONG_ENOUGH: Duration = Duration::from_secs(1);
    let home = Home::new();
    let conf = home.conf("a", &home.lab.provider_a);
    let via = ["--via", conf.to_str().unwrap()];
    let orphan = probe(Action::Tcp, ORIGIN[0])
        .by(Actor::Orphan)
        .on(SocketFrom::AfterGo);

    let mut running = home.start(via, &orphan);
    running.wait_until_ready().unwrap();
    let first = running.pid();
    let processes = || home.status().unwrap().policies[0].processes.clone();
    wait_until("the first program has ended", || {
        processes().iter().all(|process| process.pid != first)
    });
    assert_eq!(processes().len(), 1);
    std::thread::sleep(LONG_ENOUGH);

    let status = home.status().unwrap();
    assert!(
        matches!(
            status.daemon,
            DaemonStatus::Running {
                ephemeral: true,
                ..
            }
        ),
        "{status:?}"
    );
    running.go().unwrap();
    let report = running.finish().unwrap();
    assert_answered(
        &report,
        ORIGIN[0],
        way::client(&home.lab.provider_a),
        &orphan,
    );
    home.assert_no_leak();
    wait_until("the daemon ends with its last job", || {
        !home.state_dir().exists()
    });
}
