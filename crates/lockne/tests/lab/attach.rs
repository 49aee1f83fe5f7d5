//! Programs that run already: attached, they leave nothing by the old way; detached, they are home again.

use std::{net::SocketAddr, os::fd::AsFd as _, process::Stdio, time::Duration};

use lockne_core::{
    api::{Counts, Fate, Moved},
    policy::Action as Way,
    rule::Existing,
};
use lockne_lab::{
    origin::{ADDRESS_PORT, HTTP_PORT},
    probe::{Action, Actor, Outcome, Probe, Running, SocketFrom},
    program::Killed,
};
use rustix::process::{Pid, Signal, kill_process};

use self::{
    socket::{
        connection_to_this_machine_goes_on,
        detached_connection_goes_on_through_the_tunnel_or_is_cut,
        listener_follows_and_its_waiting_connections_are_cut,
        socket_that_somebody_else_has_too_is_told, socket_that_writes_frames_is_named_as_stuck,
    },
    storm::no_child_of_a_fork_storm_escapes,
};
use crate::{
    home::{Home, text, wait_until},
    older::{leave_open, socket},
    tests,
    way::{self, HOME, KINDS, ORIGIN, assert_answered, of_family, probe},
};

mod socket;
mod storm;

tests! {
    sockets_of_a_running_program_take_the_new_way,
    connection_of_a_running_program_is_cut_and_silent,
    kept_connection_goes_on_by_the_old_way_and_reset_cuts_it,
    relatives_of_an_attached_program_follow,
    children_stay_where_they_are_if_asked,
    child_with_a_policy_of_its_own_keeps_it,
    no_child_of_a_fork_storm_escapes needs ["bash"],
    every_program_of_a_name_is_attached,
    detached_program_is_home_again,
    detached_connection_goes_on_through_the_tunnel_or_is_cut,
    listener_follows_and_its_waiting_connections_are_cut,
    connection_to_this_machine_goes_on,
    socket_that_somebody_else_has_too_is_told,
    socket_that_writes_frames_is_named_as_stuck,
    what_cannot_be_attached_is_refused_and_changes_nothing,
    attach_that_is_interrupted_is_done_whole_or_not_at_all,
    two_attaches_at_once_leave_one_policy_and_leak_nothing,
}

fn attach<const N: usize>(home: &Home, pid: u32, arguments: [&str; N]) -> Moved {
    let pid = pid.to_string();
    let mut command = home.lockne(["attach", "--json", "--pid", &pid]);
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn detach<const N: usize>(home: &Home, pid: u32, arguments: [&str; N]) -> Moved {
    let pid = pid.to_string();
    let mut command = home.lockne(["detach", "--json", "--pid", &pid]);
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// An unpoliced program at home that is ready.
fn start(home: &Home, probe: &Probe) -> Running {
    let mut running = probe.start(&home.lab.home).unwrap();
    running.wait_until_ready().unwrap();
    running
}

/// What has passed the home link before does not count any more.
fn forget(home: &Home) {
    home.wire.settle().unwrap();
    home.wire.clear();
}

/// A program at home that does nothing but hold these sockets.
struct Holder(Killed);

impl Holder {
    fn start(home: &Home, sockets: &[&dyn std::os::fd::AsFd]) -> Self {
        let mut command = home.lab.home.command("sleep");
        command.arg("60").stdin(Stdio::null()).stdout(Stdio::null());
        for socket in sockets {
            leave_open(&mut command, socket.as_fd());
        }
        Self(Killed(command.spawn().unwrap()))
    }

    fn pid(&self) -> u32 {
        self.0.0.id()
    }
}

fn sockets_of_a_running_program_take_the_new_way() {
    let home = Home::with_tunnels();
    let tunnel = way::client(&home.lab.provider_a);
    let running: Vec<_> = KINDS
        .into_iter()
        .flat_map(|(action, _)| {
            ORIGIN.map(|to| (action, to, probe(action, to).on(SocketFrom::BeforeGo)))
        })
        .map(|(action, to, probe)| (action, to, start(&home, &probe), probe))
        .collect();
    for (action, _, running, _) in &running {
        let moved = attach(&home, running.pid(), ["--via", "a"]);
        assert_eq!(moved.existing, Existing::Reset);
        assert_eq!(moved.counts.moved, 1, "{action:?}: {moved:#?}");
        assert_eq!(moved.sockets[0].fate, Fate::Moved, "{moved:#?}");
    }
    forget(&home);

    for (_, to, mut running, probe) in running {
        running.go().unwrap();
        assert_answered(&running.finish().unwrap(), to, tunnel, &probe);
    }
    home.assert_no_leak();
}

fn connection_of_a_running_program_is_cut_and_silent() {
    let home = Home::with_tunnels();
    // The web server says nothing unless it is asked, so that the connection is at rest.
    let kinds = [
        (Action::Tcp, HTTP_PORT, "tcp"),
        (Action::UdpConnected, ADDRESS_PORT, "udp"),
    ];
    for arguments in [&["--via", "a"][..], &["--block"]] {
        for (action, port, protocol) in kinds {
            for to in ORIGIN {
                let probe = Probe::new(action, SocketAddr::new(to, port))
                    .on(SocketFrom::ConnectedBeforeGo)
                    .waiting(Duration::from_millis(300));
                let mut running = start(&home, &probe);
                let moved = match *arguments {
                    [one] => attach(&home, running.pid(), [one]),
                    [one, two] => attach(&home, running.pid(), [one, two]),
                    _ => unreachable!("one or two words"),
                };
                // The far end is told, and may answer once more.
                wait_until("the far end knows", || {
                    forget(&home);
                    std::thread::sleep(Duration::from_millis(20));
                    home.leaks().is_empty()
                });

                running.go().unwrap();
                let report = running.finish().unwrap();

                assert_eq!(moved.counts.cut, 1, "{moved:#?}");
                let socket = &moved.sockets[0].socket;
                assert_eq!(socket.protocol, protocol);
                assert_eq!(socket.state, "established");
                assert_eq!(socket.remote, Some(SocketAddr::new(to, port)));
                assert_eq!(socket.local.unwrap().ip(), of_family(HOME, to));
                assert!(
                    matches!(&report.outcome, Outcome::Refused { .. }),
                    "{probe:?}: {report:?}"
                );
                home.assert_no_leak();
            }
        }
    }
}

fn kept_connection_goes_on_by_the_old_way_and_reset_cuts_it() {
    let home = Home::with_tunnels();
    let to = SocketAddr::new(ORIGIN[0], HTTP_PORT);
    let held = start(&home, &Probe::new(Action::Hold, to));
    let to = SocketAddr::new(ORIGIN[1], ADDRESS_PORT);
    let datagrams = Probe::new(Action::UdpConnected, to).on(SocketFrom::ConnectedBeforeGo);
    let mut asking = start(&home, &datagrams);

    for running in [&held, &asking] {
        let moved = attach(&home, running.pid(), ["--via", "a", "--existing", "keep"]);
        assert_eq!(
            moved.counts,
            Counts {
                kept: 1,
                ..Counts::default()
            }
        );
    }

    forget(&home);
    wait_until("the download goes on past the tunnel", || {
        !home.leaks().is_empty()
    });
    asking.go().unwrap();
    assert_answered(&asking.finish().unwrap(), ORIGIN[1], HOME, &datagrams);
    // The same once more, with the other choice.
    let moved = attach(&home, held.pid(), ["--via", "a", "--existing", "reset"]);
    assert_eq!(
        moved.counts,
        Counts {
            cut: 1,
            ..Counts::default()
        }
    );
    let report = held.finish().unwrap();
    assert!(
        matches!(&report.outcome, Outcome::Ended { bytes: 1.., why } if why == "ECONNABORTED"),
        "{report:?}"
    );
    wait_until("the far end knows", || {
        forget(&home);
        std::thread::sleep(Duration::from_millis(20));
        home.leaks().is_empty()
    });
}

fn relatives_of_an_attached_program_follow() {
    let home = Home::with_tunnels();
    let tunnel = way::client(&home.lab.provider_a);
    for actor in [Actor::Child, Actor::Thread, Actor::Program] {
        for (to, from) in ORIGIN
            .into_iter()
            .zip([SocketFrom::BeforeGo, SocketFrom::AfterGo])
        {
            let probe = probe(Action::UdpUnconnected, to).by(actor).on(from);
            let mut running = start(&home, &probe);

            let moved = attach(&home, running.pid(), ["--via", "a"]);

            forget(&home);
            running.go().unwrap();
            assert_answered(&running.finish().unwrap(), to, tunnel, &probe);
            let processes = if actor == Actor::Thread { 1 } else { 2 };
            assert_eq!(moved.processes.len(), processes, "{moved:#?}");
            let threads = if actor == Actor::Thread { 2 } else { 1 };
            assert!(
                moved.processes.iter().all(|it| it.threads == threads),
                "{moved:#?}"
            );
            home.assert_no_leak();
        }
    }
}

fn children_stay_where_they_are_if_asked() {
    let home = Home::with_tunnels();
    let probe = probe(Action::UdpUnconnected, ORIGIN[0])
        .by(Actor::Child)
        .on(SocketFrom::AfterGo);
    let mut running = start(&home, &probe);

    let moved = attach(&home, running.pid(), ["--via", "a", "--no-children"]);

    assert_eq!(moved.processes.len(), 1, "{moved:#?}");
    running.go().unwrap();
    assert_answered(&running.finish().unwrap(), ORIGIN[0], HOME, &probe);
}

fn child_with_a_policy_of_its_own_keeps_it() {
    let home = Home::with_tunnels();
    let probe = probe(Action::UdpUnconnected, ORIGIN[0])
        .by(Actor::Child)
        .on(SocketFrom::AfterGo);
    let mut running = start(&home, &probe);
    let parent = running.pid();
    let child = attach(&home, parent, ["--via", "b"]).processes;
    let child = child.iter().find(|it| it.pid != parent).unwrap().pid;
    detach(&home, parent, ["--no-children"]);

    let moved = attach(&home, parent, ["--via", "a"]);

    assert_eq!(moved.processes.len(), 1, "{moved:#?}");
    assert!(
        moved
            .notices
            .iter()
            .any(|it| it.contains(&child.to_string())),
        "{moved:#?}"
    );
    forget(&home);
    running.go().unwrap();
    let report = running.finish().unwrap();
    assert_answered(
        &report,
        ORIGIN[0],
        way::client(&home.lab.provider_b),
        &probe,
    );
    home.assert_no_leak();
}

fn every_program_of_a_name_is_attached() {
    let home = Home::with_tunnels();
    let tunnel = way::client(&home.lab.provider_a);
    // Others of the same name run in other namespaces, and are not meant.
    let name = std::env::current_exe().unwrap();
    let name = name.file_name().unwrap().to_str().unwrap();
    let running: Vec<_> = ORIGIN
        .into_iter()
        .map(|to| {
            let probe = probe(Action::Tcp, to).on(SocketFrom::AfterGo);
            (start(&home, &probe), to, probe)
        })
        .collect();

    let output = home.must(["attach", "--name", name, "--via", "a", "--json"]);

    let moved: Moved = serde_json::from_str(&output).unwrap();
    let pids: Vec<_> = moved.processes.iter().map(|it| it.pid).collect();
    let mut expected: Vec<_> = running.iter().map(|(it, ..)| it.pid()).collect();
    expected.sort_unstable();
    assert_eq!(pids, expected);
    for (mut running, to, probe) in running {
        running.go().unwrap();
        assert_answered(&running.finish().unwrap(), to, tunnel, &probe);
    }
    home.assert_no_leak();
}

fn detached_program_is_home_again() {
    let home = Home::with_tunnels();
    for (action, _) in KINDS {
        for (to, from) in ORIGIN
            .into_iter()
            .zip([SocketFrom::BeforeGo, SocketFrom::AfterGo])
        {
            let probe = probe(action, to).on(from);
            let mut running = home.start(["--via", "a"], &probe);
            running.wait_until_ready().unwrap();

            let moved = detach(&home, running.pid(), []);

            running.go().unwrap();
            assert_answered(&running.finish().unwrap(), to, HOME, &probe);
            assert_eq!((moved.policy, moved.mark), (None, 0));
        }
    }
    let status = home.status().unwrap();
    assert!(
        status.policies.iter().all(|it| it.processes.is_empty()),
        "{status:#?}"
    );
}

fn what_cannot_be_attached_is_refused_and_changes_nothing() {
    let home = Home::with_tunnels();
    let to = ORIGIN[0];
    let held = socket(&home, Action::UdpConnected, to);
    held.connect(&SocketAddr::new(to, ADDRESS_PORT).into())
        .unwrap();
    let holder = Holder::start(&home, &[&held]);
    let free = holder.pid().to_string();
    let before = home.status().unwrap();
    let daemon = match before.daemon {
        lockne_core::api::DaemonStatus::Running { pid, .. } => pid.to_string(),
        lockne_core::api::DaemonStatus::Gone => panic!("{before:?}"),
    };
    // This test itself is in another network namespace.
    let me = std::process::id().to_string();
    let refusals: [(&[&str], &str); 10] = [
        (
            &["attach", "--via", "a", "--pid", "4194303"],
            "there is no process 4194303",
        ),
        (
            &["attach", "--via", "a", "--pid", "2"],
            "is a part of the kernel",
        ),
        (
            &["attach", "--via", "a", "--pid", "1"],
            "parent of all others",
        ),
        (
            &["attach", "--via", "a", "--pid", &daemon],
            "lockne's own daemon",
        ),
        (
            &["attach", "--via", "a", "--pid", &me],
            "another network namespace",
        ),
        (
            &["attach", "--via", "a", "--name", "no-such-program"],
            "no process is called",
        ),
        (
            &["attach", "--via", "nosuch", "--pid", &free],
            "there is no tunnel or interface",
        ),
        (
            &["attach", "--block", "--lan", "0.0.0.0/0", "--pid", &free],
            "is everything",
        ),
        (&["detach", "--pid", &free], "has no policy"),
        (
            &["detach", "--pid", "4194303"],
            "there is no process 4194303",
        ),
    ];

    for (arguments, expected) in refusals {
        let output = home.lockne([]).args(arguments).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(1),
            "{arguments:?}: {}",
            text(&output)
        );
        assert!(
            text(&output).contains(expected),
            "{arguments:?}: {}",
            text(&output)
        );
        assert!(
            text(&output).contains("hint: "),
            "{arguments:?}: {}",
            text(&output)
        );
    }

    let after = home.status().unwrap();
    assert_eq!(
        (after.policies, after.tunnels.len()),
        (before.policies, before.tunnels.len())
    );
    assert_eq!(held.mark().unwrap(), 0);
    assert!(held.peer_addr().is_ok());
}

fn attach_that_is_interrupted_is_done_whole_or_not_at_all() {
    let home = Home::with_tunnels();
    let tunnel = way::client(&home.lab.provider_a);
    let mut outcomes = [0, 0];
    for (round, to) in ORIGIN.into_iter().cycle().take(12).enumerate() {
        let probe = probe(Action::UdpUnconnected, to)
            .by(Actor::Child)
            .on(SocketFrom::BeforeGo);
        let mut running = start(&home, &probe);
        let pid = running.pid().to_string();
        let mut command = home.lockne(["attach", "--pid", &pid, "--via", "a"]);
        let mut client = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(round as u64 * 4));
        // It may have ended.
        let _ended = kill_process(Pid::from_child(&client), Signal::INT);
        client.wait().unwrap();
        // One loop answers all: what was under way is done when this is answered.
        let status = home.status().unwrap();
        let policed: usize = status.policies.iter().map(|it| it.processes.len()).sum();
        assert!([0, 2].contains(&policed), "{status:#?}");

        forget(&home);
        running.go().unwrap();
        let report = running.finish().unwrap();
        let from = if policed == 0 { HOME } else { tunnel };
        assert_answered(&report, to, from, &probe);
        if policed > 0 {
            home.assert_no_leak();
        }
        outcomes[usize::from(policed > 0)] += 1;
    }
    assert_eq!(outcomes.iter().sum::<u32>(), 12);
}

fn two_attaches_at_once_leave_one_policy_and_leak_nothing() {
    let home = Home::with_tunnels();
    for to in ORIGIN.into_iter().cycle().take(6) {
        let probe = probe(Action::UdpUnconnected, to)
            .by(Actor::Child)
            .on(SocketFrom::BeforeGo);
        let mut running = start(&home, &probe);
        let pid = running.pid().to_string();

        let clients = ["a", "b"].map(|tunnel| {
            let mut command = home.lockne(["attach", "--pid", &pid, "--via", tunnel]);
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        for client in clients {
            let output = client.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
        }

        let status = home.status().unwrap();
        let used: Vec<_> = status
            .policies
            .iter()
            .filter(|it| !it.processes.is_empty())
            .collect();
        let [policy] = used[..] else {
            panic!("{status:#?}");
        };
        assert_eq!(policy.processes.len(), 2);
        let provider = match &policy.terms.action {
            Way::Via(name) if name.as_str() == "a" => &home.lab.provider_a,
            _ => &home.lab.provider_b,
        };
        forget(&home);
        running.go().unwrap();
        assert_answered(
            &running.finish().unwrap(),
            to,
            way::client(provider),
            &probe,
        );
        home.assert_no_leak();
    }
}
