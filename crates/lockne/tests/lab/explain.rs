//! What `lockne explain` says is what happens.

use std::net::SocketAddr;

use lockne_core::api::{Explanation, SocketWay, TunnelState, Verdict};
use lockne_lab::{
    origin::ADDRESS_PORT,
    probe::{Action, Actor, Outcome, Probe, SocketFrom},
};

use crate::{
    home::{Home, text, wait_until},
    tests,
    way::{self, HOME, ORIGIN, assert_answered, of_family, probe},
};

tests! {
    tunnelled_program_is_explained_by_its_tunnel,
    silence_is_explained_and_is_silence,
    connection_past_the_policy_is_shown_with_what_cuts_it,
    free_program_is_told_why_it_is_free,
    without_a_daemon_what_still_holds_is_told,
}

fn explain(home: &Home, pid: u32) -> Explanation {
    serde_json::from_str(&home.must(["explain", "--json", &pid.to_string()])).unwrap()
}

fn tunnelled_program_is_explained_by_its_tunnel() {
    let home = Home::with_tunnels();
    let tunnel = way::client(&home.lab.provider_a);
    let probe = probe(Action::UdpUnconnected, ORIGIN[0])
        .by(Actor::Child)
        .on(SocketFrom::BeforeGo);
    let mut running = home.start(["--via", "a"], &probe);
    running.wait_until_ready().unwrap();

    let it = explain(&home, running.pid());

    let policy = it.policy.as_ref().unwrap();
    assert_eq!(policy.terms.action.to_string(), "via a");
    assert_eq!(policy.device.as_deref(), Some("a"));
    assert_eq!(policy.table, Some(108_000 + u32::from(policy.id.get())));
    assert_eq!(it.tunnel.as_ref().unwrap().state, TunnelState::Up);
    assert_eq!(it.descendants.len(), 1, "{it:#?}");
    assert_eq!(it.descendants[0].policy, Some(policy.id));
    for route in &it.routes {
        assert_eq!(route.verdict, Verdict::Leaves, "{it:#?}");
        assert_eq!(route.device.as_deref(), Some("a"));
        assert_eq!(route.source, Some(of_family(tunnel, route.to)));
    }
    assert!(it.why.ends_with("Its way is open now."), "{}", it.why);
    let child = explain(&home, it.descendants[0].pid);
    assert_eq!(child.parent, running.pid());
    let [socket] = &child.sockets[..] else {
        panic!("{child:#?}");
    };
    assert_eq!(
        (socket.way, socket.socket.mark),
        (SocketWay::Policy, policy.mark)
    );
    let words = home.must(["explain", &running.pid().to_string()]);
    for expected in ["via a", "leaves by a", "108", "way is open"] {
        assert!(words.contains(expected), "{expected}: {words}");
    }
    running.go().unwrap();
    assert_answered(&running.finish().unwrap(), ORIGIN[0], tunnel, &probe);
}

fn silence_is_explained_and_is_silence() {
    let home = Home::with_tunnels();
    let probe = probe(Action::UdpUnconnected, ORIGIN[0]).on(SocketFrom::AfterGo);
    let mut running = home.start(["--via", "a"], &probe);
    running.wait_until_ready().unwrap();

    home.ip("link set dev a down");
    wait_until("the daemon has noticed", || {
        explain(&home, running.pid())
            .policy
            .unwrap()
            .device
            .is_none()
    });

    let it = explain(&home, running.pid());
    assert!(
        it.routes.iter().all(|it| it.verdict != Verdict::Leaves),
        "{it:#?}"
    );
    assert!(it.why.contains("Now it is silent"), "{}", it.why);
    assert!(
        it.advice
            .iter()
            .any(|it| it.contains("ip link set dev a up")),
        "{:?}",
        it.advice
    );
    running.go().unwrap();
    let report = running.finish().unwrap();
    assert!(
        !matches!(report.outcome, Outcome::Answered { .. }),
        "{report:?}"
    );
    home.assert_no_leak();
}

fn connection_past_the_policy_is_shown_with_what_cuts_it() {
    let home = Home::with_tunnels();
    let to = SocketAddr::new(ORIGIN[0], ADDRESS_PORT);
    let probe = Probe::new(Action::UdpConnected, to).on(SocketFrom::ConnectedBeforeGo);
    let mut running = probe.start(&home.lab.home).unwrap();
    running.wait_until_ready().unwrap();
    let pid = running.pid().to_string();
    home.must(["attach", "--pid", &pid, "--via", "a", "--existing", "keep"]);

    let it = explain(&home, running.pid());

    assert_eq!(it.sockets[0].way, SocketWay::Free, "{it:#?}");
    let advice = format!("`lockne attach --pid {pid} --via a --existing reset`");
    assert!(
        it.advice.iter().any(|it| it.contains(&advice)),
        "{:?}",
        it.advice
    );
    home.must(["attach", "--pid", &pid, "--via", "a", "--existing", "reset"]);
    let it = explain(&home, running.pid());
    assert_eq!(it.sockets[0].way, SocketWay::Policy, "{it:#?}");
    assert!(
        it.advice.iter().all(|it| !it.contains("lockne attach")),
        "{:?}",
        it.advice
    );
}

fn free_program_is_told_why_it_is_free() {
    let home = Home::with_tunnels();
    let probe = probe(Action::UdpUnconnected, ORIGIN[1]).on(SocketFrom::BeforeGo);
    let mut running = probe.start(&home.lab.home).unwrap();
    running.wait_until_ready().unwrap();

    let it = explain(&home, running.pid());

    assert!(
        it.policy.is_none() && it.why.contains("has no policy"),
        "{it:#?}"
    );
    assert_eq!(it.sockets[0].way, SocketWay::Free);
    for route in &it.routes {
        assert_eq!(route.device.as_deref(), Some("eth0"), "{it:#?}");
        assert_eq!(route.source, Some(of_family(HOME, route.to)));
    }
    running.go().unwrap();
    assert_answered(&running.finish().unwrap(), ORIGIN[1], HOME, &probe);
    // This test itself is in another network namespace.
    let me = explain(&home, std::process::id());
    assert!(
        me.is_elsewhere && me.why.contains("another network namespace"),
        "{me:#?}"
    );
    let output = home.lockne(["explain", "4194303"]).output().unwrap();
    assert!(
        text(&output).contains("there is no process 4194303"),
        "{}",
        text(&output)
    );
}

fn without_a_daemon_what_still_holds_is_told() {
    let home = Home::new();
    let output = home.lockne(["explain", "1"]).output().unwrap();
    assert!(
        text(&output).contains("lockne is not active"),
        "{}",
        text(&output)
    );
    let daemon = home.daemon();
    let probe = probe(Action::UdpUnconnected, ORIGIN[0]).on(SocketFrom::AfterGo);
    let mut running = home.start(["--block"], &probe);
    running.wait_until_ready().unwrap();
    daemon.kill();

    let output = home
        .lockne(["explain", &running.pid().to_string()])
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("to: block"), "{}", text(&output));
}
