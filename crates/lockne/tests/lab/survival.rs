//! Daemons that are killed, stopped, replaced and doubled: what holds, and what is left at the end.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use lockne_core::api::{DaemonStatus, Status, TunnelState};
use lockne_lab::{
    internet::{HOME_V4, HOME_V6, ORIGIN_V4, PLAIN_V4, PLAIN_V6},
    origin::{ADDRESS_PORT, HTTP_PORT, Service},
    packet::{Content, Direction, Packet, Transport},
    probe::{Action, Outcome, Probe},
};

use crate::{
    fault::{Hammers, with_interface},
    footprint::{Footprint, InKernel},
    home::{Home, text, wait_until},
    tests, way,
};

tests! {
    interface_carries_on_without_a_daemon_and_own_tunnel_falls_silent,
    new_daemon_takes_over_policies_processes_counters_and_tunnels,
    down_leaves_nothing_and_frees_living_processes needs ["ip", "bpftool"],
    down_without_a_daemon_leaves_nothing_and_frees_living_processes needs ["ip", "bpftool"],
    terminated_daemon_keeps_all_while_a_policed_process_lives,
    terminated_daemon_takes_all_back_when_no_policed_process_lives needs ["ip", "bpftool"],
    run_without_a_daemon_leaves_nothing_when_its_program_ends needs ["ip"],
    ten_runs_at_once_share_one_daemon needs ["ip"],
    last_segments_of_an_ended_program_do_not_leak needs ["bash"],
    server_that_closes_late_draws_nothing_out needs ["bash"],
    kernels_answer_to_a_late_packet_takes_the_tunnel needs ["bash"],
    second_daemon_on_the_same_state_directory_is_refused,
    second_daemon_in_the_same_namespace_is_refused,
    rule_of_others_on_our_bits_keeps_the_daemon_from_starting needs ["ip"],
    other_mark_bits_work,
}

const PLAIN: [IpAddr; 2] = [IpAddr::V4(PLAIN_V4), IpAddr::V6(PLAIN_V6)];

/// A home with its own tunnels `a` and `b`, an interface `p`, and a daemon that stays.
fn with_all_tunnels() -> (Home, crate::home::Daemon) {
    let (home, _link) = with_interface();
    let daemon = home.daemon();
    home.tunnel_up("a", &home.lab.provider_a);
    home.tunnel_up("b", &home.lab.provider_b);
    (home, daemon)
}

fn own_addresses(home: &Home) -> [IpAddr; 2] {
    let provider = &home.lab.provider_a;
    [provider.client_v4().into(), provider.client_v6().into()]
}

fn gone(home: &Home) -> Status {
    let status = home.status().unwrap();
    assert_eq!(status.daemon, DaemonStatus::Gone);
    status
}

fn processes(status: &Status) -> BTreeSet<u32> {
    let policies = status.policies.iter();
    let all = policies.flat_map(|policy| &policy.processes);
    all.map(|process| process.pid).collect()
}

fn interface_carries_on_without_a_daemon_and_own_tunnel_falls_silent() {
    let (home, daemon) = with_all_tunnels();
    let own = Hammers::through_a(&home);
    let to = SocketAddr::new(ORIGIN_V4.into(), HTTP_PORT);
    let download = Probe::new(Action::Hold, to).waiting(Duration::from_secs(3));
    let mut through_interface = home.start(["--via", "p"], &download);
    let mut through_own = home.start(["--via", "a"], &download);
    through_interface.wait_until_ready().unwrap();
    through_own.wait_until_ready().unwrap();
    let interface = Hammers::start_beside(&home, "p", PLAIN);
    let pids: BTreeSet<u32> = [through_interface.pid(), through_own.pid()].into();
    let pids = &(&pids | &own.pids()) | &interface.pids();

    daemon.kill();

    let report = through_own.finish().unwrap();
    assert!(
        matches!(&report.outcome, Outcome::Ended { why, .. } if why == "silence"),
        "{report:?}"
    );
    interface.wait_until_they_arrive();
    // Three seconds without a byte would have ended it.
    let status = gone(&home);
    let living = processes(&status);
    assert!(living.contains(&through_interface.pid()), "{status:?}");
    assert!(living.is_subset(&pids), "{living:?}, {pids:?}");
    assert!(living.is_superset(&interface.pids()) && living.is_superset(&own.pids()));
    let said = home.must(["status"]);
    for word in ["daemon is gone", "via a", "via p", "take"] {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    drop(through_interface);
    own.finish_beside(&PLAIN);
    interface.finish_beside(&own_addresses(&home));
}

fn new_daemon_takes_over_policies_processes_counters_and_tunnels() {
    let (home, first) = with_all_tunnels();
    let hammers = Hammers::through_a(&home);
    let before = home.status().unwrap();
    first.kill();
    let meanwhile = gone(&home);

    let _second = home.daemon();

    let after = home.status().unwrap();
    for status in [&meanwhile, &after] {
        assert_eq!(processes(status), hammers.pids());
        for (old, new) in before.policies.iter().zip(&status.policies) {
            assert_eq!(
                (old.id, &old.terms, old.mark),
                (new.id, &new.terms, new.mark)
            );
            assert!(new.traffic.tx_packets >= old.traffic.tx_packets && old.traffic.tx_packets > 0);
            assert!(new.traffic.refused >= old.traffic.refused && old.traffic.refused > 0);
        }
        assert_eq!(before.policies.len(), status.policies.len());
    }
    for name in ["a", "b"] {
        let tunnel = after.tunnels.iter().find(|it| it.name.as_str() == name);
        assert_eq!(
            tunnel.map(|it| it.state),
            Some(TunnelState::Up),
            "{after:?}"
        );
    }
    hammers.wait_until_they_arrive();
    hammers.finish();
}

/// Starts programs through everything, ends the daemon if asked, and takes it all back.
fn take_down(daemon: Ending) {
    let (home, link) = with_interface();
    link.near().is_running().unwrap();
    let before = Footprint::of(&home);
    let standing = home.daemon();
    home.tunnel_up("a", &home.lab.provider_a);
    home.tunnel_up("b", &home.lab.provider_b);
    let own = Hammers::through_a(&home);
    let interface = Hammers::start_beside(&home, "p", PLAIN);
    let pids = &own.pids() | &interface.pids();
    for action in ["--direct", "--block"] {
        let output = home.lockne(["run", action, "--", "true"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
    home.assert_no_leak();
    let kernel = InKernel::of(&home);
    if daemon == Ending::Killed {
        standing.kill();
        gone(&home);
    }

    let removed = home.must(["down", "--json"]);

    let removed: serde_json::Value = serde_json::from_str(&removed).unwrap();
    assert_eq!(removed["processes"], pids.len(), "{removed}");
    assert_eq!(removed["tunnels"], serde_json::json!(["a", "b"]));
    before.assert_same(&Footprint::of(&home));
    kernel.wait_until_gone();
    assert_eq!(home.status(), None);
    // Free means the machine's own address.
    let free: [IpAddr; 2] = [HOME_V4.into(), HOME_V6.into()];
    let arrived = home.lab.origin.wait_until(Duration::from_secs(10), |seen| {
        free.iter()
            .all(|address| seen.iter().any(|visit| visit.source == *address))
    });
    assert!(arrived.is_ok(), "{arrived:?}");
}

#[derive(PartialEq)]
enum Ending {
    Serving,
    Killed,
}

fn down_leaves_nothing_and_frees_living_processes() {
    take_down(Ending::Serving);
}

fn down_without_a_daemon_leaves_nothing_and_frees_living_processes() {
    take_down(Ending::Killed);
}

fn terminated_daemon_keeps_all_while_a_policed_process_lives() {
    let (home, daemon) = with_all_tunnels();
    let own = Hammers::through_a(&home);
    let interface = Hammers::start_beside(&home, "p", PLAIN);

    assert!(daemon.terminate().success());

    let status = gone(&home);
    assert_eq!(processes(&status), &own.pids() | &interface.pids());
    interface.wait_until_they_arrive();
    let _second = home.daemon();
    own.wait_until_they_arrive_beside(&PLAIN);
    own.finish_beside(&PLAIN);
    interface.finish_beside(&own_addresses(&home));
}

fn terminated_daemon_takes_all_back_when_no_policed_process_lives() {
    let (home, _link) = with_interface();
    let before = Footprint::of(&home);
    let daemon = home.daemon();
    home.tunnel_up("a", &home.lab.provider_a);
    for via in ["a", "p"] {
        home.must(["run", "--via", via, "true"]);
    }
    let kernel = InKernel::of(&home);

    assert!(daemon.terminate().success());

    before.assert_same(&Footprint::of(&home));
    kernel.wait_until_gone();
}

fn run_without_a_daemon_leaves_nothing_when_its_program_ends() {
    let home = Home::new();
    let before = Footprint::of(&home);
    let conf = home.conf("a", &home.lab.provider_a);
    let to = SocketAddr::new(ORIGIN_V4.into(), ADDRESS_PORT);

    let report = home.run(
        ["--via", conf.to_str().unwrap()],
        &Probe::new(Action::Tcp, to),
    );

    assert!(
        matches!(report.outcome, Outcome::Answered { .. }),
        "{report:?}"
    );
    let address = home.lab.provider_a.client_v4();
    assert_eq!(home.lab.origin.times(Service::Tcp, address), 1);
    wait_until("the daemon ends", || !home.state_dir().exists());
    before.assert_same(&Footprint::of(&home));
    home.assert_no_leak();
}

fn ten_runs_at_once_share_one_daemon() {
    let home = Home::new();
    let before = Footprint::of(&home);
    let conf = home.conf("a", &home.lab.provider_a);
    let probe = Probe::new(Action::Tcp, (ORIGIN_V4, ADDRESS_PORT));

    let running = [(); 10].map(|()| home.start(["--via", conf.to_str().unwrap()], &probe));

    for program in running {
        let report = program.finish().unwrap();
        assert!(
            matches!(report.outcome, Outcome::Answered { .. }),
            "{report:?}"
        );
    }
    let address = home.lab.provider_a.client_v4();
    assert_eq!(home.lab.origin.times(Service::Tcp, address), 10);
    wait_until("the daemon ends", || !home.state_dir().exists());
    before.assert_same(&Footprint::of(&home));
    home.assert_no_leak();
}

/// A server that takes one caller, reads nothing until it is told to, and says how much came.
fn slow_server(home: &Home, port: u16) -> (mpsc::Sender<()>, mpsc::Receiver<usize>) {
    let listener = home
        .lab
        .internet
        .run(|| TcpListener::bind((ORIGIN_V4, port)).unwrap())
        .unwrap();
    let (go, gone) = mpsc::channel();
    let (came, coming) = mpsc::channel();
    thread::spawn(move || {
        let (mut caller, _) = listener.accept().unwrap();
        // The sender may be gone because the test failed.
        let _ = gone.recv();
        let mut bytes = Vec::new();
        let _ = caller.read_to_end(&mut bytes);
        let _ = caller.write_all(b"bye");
        let _ = came.send(bytes.len());
    });
    (go, coming)
}

fn bash(home: &Home, via: &str, script: &str) {
    let output = home
        .lockne(["run", "--via", via, "--", "bash", "-c", script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

fn last_segments_of_an_ended_program_do_not_leak() {
    let home = Home::new();
    let conf = home.conf("a", &home.lab.provider_a);
    let (go, came) = slow_server(&home, 9001);

    // More than the server takes, so that the rest waits in the socket when the program has ended.
    bash(
        &home,
        conf.to_str().unwrap(),
        "exec 3<>/dev/tcp/203.0.113.10/9001; timeout 0.5 head -c 4000000 /dev/zero >&3; true",
    );

    // The daemon that `run` started looks much more often whether its last job has ended.
    thread::sleep(Duration::from_secs(1));
    go.send(()).unwrap();
    let came = came.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(came > 100_000, "{came} bytes");
    wait_until("the daemon ends", || !home.state_dir().exists());
    home.assert_no_leak();
}

fn server_that_closes_late_draws_nothing_out() {
    let (home, link) = with_interface();
    let (go, came) = slow_server(&home, 9002);

    bash(
        &home,
        "p",
        "exec 3<>/dev/tcp/203.0.113.10/9002; echo hello >&3",
    );

    // Without the connection, the daemon that `run` started would have ended by now.
    thread::sleep(Duration::from_secs(1));
    let sniffer = link.sniffer().unwrap();
    go.send(()).unwrap();
    assert_eq!(came.recv_timeout(Duration::from_secs(30)), Ok(6));
    wait_until("the end of the connection is acknowledged", || {
        sniffer.settle().unwrap();
        sniffer.count(|packet| packet.direction == Direction::Received) > 0
    });
    home.assert_no_leak();
}

fn kernels_answer_to_a_late_packet_takes_the_tunnel() {
    let (home, link) = with_interface();
    let _daemon = home.daemon();
    for to in way::ORIGIN {
        let bind = || UdpSocket::bind((to, 9003)).unwrap();
        let server = home.lab.internet.run(bind).unwrap();
        server
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        bash(
            &home,
            "p",
            &format!("exec 3<>/dev/udp/{to}/9003; echo hello >&3"),
        );
        let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
        let sniffer = link.sniffer().unwrap();

        // Nobody has the port any more, so that the kernel answers by an error of ICMP.
        server.send_to(b"late", from).unwrap();

        wait_until("the error is there", || {
            sniffer.settle().unwrap();
            let is_error = |packet: &Packet| {
                packet.direction == Direction::Received
                    && matches!(&packet.content, Content::Ip(ip)
                        if matches!(ip.transport, Transport::Icmp { about: Some(_), .. }))
            };
            sniffer.count(is_error) > 0
        });
    }
    home.assert_no_leak();
}

/// What a command says that must fail, and must not go on to serve.
fn refused(mut command: Command) -> String {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!(
                "{command:?} goes on: {}",
                text(&child.wait_with_output().unwrap())
            );
        }
        thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success(), "{}", text(&output));
    text(&output)
}

fn second_daemon_on_the_same_state_directory_is_refused() {
    let home = Home::new();
    let _daemon = home.daemon();
    let DaemonStatus::Running { pid, .. } = home.status().unwrap().daemon else {
        panic!("it is gone");
    };

    let said = refused(home.lockne(["daemon"]));

    assert!(said.contains("already runs"), "{said}");
    assert!(said.contains(&pid.to_string()), "{said}");
    assert!(matches!(
        home.status().unwrap().daemon,
        DaemonStatus::Running { .. }
    ));
}

fn second_daemon_in_the_same_namespace_is_refused() {
    let home = Home::with_tunnels();
    let hammers = Hammers::through_a(&home);
    let other = tempfile::tempdir().unwrap();
    let place = other.path().join("state");

    let mut second = home.lab.home.command(env!("CARGO_BIN_EXE_lockne"));
    second.arg("--state-dir").arg(&place).arg("daemon");
    let said = refused(second);

    assert!(said.contains("another lockne"), "{said}");
    hammers.wait_until_they_arrive();
    hammers.finish();
    let left: Vec<_> = std::fs::read_dir(&place).into_iter().flatten().collect();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(place.to_str().unwrap()), "{left:?}");
}

fn rule_of_others_on_our_bits_keeps_the_daemon_from_starting() {
    let home = Home::new();
    let ip = |arguments: &str| {
        let mut ip: Command = home.lab.home.command("ip");
        let output = ip.args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", text(&output));
    };
    for family in ["-4", "-6"] {
        ip(&format!(
            "{family} rule add fwmark 0x05000000/0xff000000 lookup main"
        ));

        for command in [&["daemon"][..], &["run", "--block", "true"]] {
            let mut lockne = home.lockne([]);
            lockne.args(command);
            let said = refused(lockne);
            assert!(said.contains("0x5000000/0xff000000"), "{said}");
            assert!(said.contains("--mark-bit"), "{said}");
        }

        ip(&format!(
            "{family} rule del fwmark 0x05000000/0xff000000 lookup main"
        ));
    }
    let _daemon = home.daemon();
}

fn other_mark_bits_work() {
    let (home, _link) = with_interface();
    let _daemon = home.daemon_with(&["--mark-bit", "8"]);
    home.tunnel_up("a", &home.lab.provider_a);
    let own = Hammers::through_a(&home);
    let interface = Hammers::start_beside(&home, "p", PLAIN);

    let status = home.status().unwrap();
    assert_eq!(status.mark_mask, 0xff00);
    let marks: Vec<u32> = status.policies.iter().map(|policy| policy.mark).collect();
    assert_eq!(marks, [0x100, 0x200]);
    own.finish_beside(&PLAIN);
    interface.finish_beside(&own_addresses(&home));
}
