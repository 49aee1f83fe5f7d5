//! Packets as `lockne monitor` shows them.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _},
    net::UdpSocket,
    process::{Child, Command, Output, Stdio},
    thread::{self, JoinHandle},
};

use lockne_lab::{
    Namespace,
    probe::{Action, Outcome},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    home::Home,
    tests,
    way::{ORIGIN, probe},
};

tests! {
    every_packet_is_shown_with_its_process,
    chosen_packets_of_a_flood_are_all_shown,
    what_a_slow_reader_misses_is_counted,
    gone_reader_ends_it_quietly,
    device_that_comes_later_is_watched needs ["ip"],
    capture_tells_tshark_the_process needs ["tshark"],
    packets_of_a_tunnel_are_known_by_its_name,
}

/// A namespace with nothing but its loopback, which is up.
pub(crate) fn lonely() -> Namespace {
    let namespace = Namespace::create("lonely").unwrap();
    let mut ip = namespace.command("ip");
    assert!(
        ip.args(["link", "set", "lo", "up"])
            .status()
            .unwrap()
            .success()
    );
    namespace
}

/// A command of lockne that watches.
pub(crate) struct Watcher {
    child: Child,
    said: BufReader<std::process::ChildStderr>,
    reading: Option<JoinHandle<String>>,
}

impl Watcher {
    /// Waits until it says that it watches.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        if !line.starts_with("watching ") {
            // It has ended, and the causes stand below.
            said.read_to_string(&mut line).unwrap();
            panic!("{line}");
        }
        Self {
            child,
            said,
            reading: None,
        }
    }

    /// Reads what it prints as soon as it does, so that it never has to wait.
    pub(crate) fn read_along(mut self) -> Self {
        let mut stdout = self.child.stdout.take().unwrap();
        self.reading = Some(thread::spawn(move || {
            io::read_to_string(&mut stdout).unwrap()
        }));
        self
    }

    fn monitor(namespace: &Namespace, arguments: &[&str]) -> Self {
        let mut command = namespace.command(env!("CARGO_BIN_EXE_lockne"));
        // Without a lockne, no mark has a meaning.
        command
            .args(["--state-dir", "/nonexistent", "monitor"])
            .args(arguments);
        Self::start(command)
    }

    /// Ends it as Ctrl-C does; returns what it printed, and its last words.
    pub(crate) fn interrupt(mut self) -> (String, String) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        self.finish()
    }

    /// The same when it ends by itself.
    pub(crate) fn finish(&mut self) -> (String, String) {
        let printed = match self.reading.take() {
            Some(reading) => reading.join().unwrap(),
            None => io::read_to_string(self.child.stdout.take().unwrap()).unwrap(),
        };
        let said = io::read_to_string(&mut self.said).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {said}");
        (printed, said)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn objects(printed: &str) -> Vec<Value> {
    printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A socket in the namespace.
fn socket(namespace: &Namespace) -> UdpSocket {
    namespace
        .run(|| UdpSocket::bind("127.0.0.1:0").unwrap())
        .unwrap()
}

fn send_to_itself(socket: &UdpSocket, count: usize) {
    let to = socket.local_addr().unwrap();
    let mut buffer = [0; 16];
    for _ in 0..count {
        socket.send_to(b"text", to).unwrap();
        socket.recv(&mut buffer).unwrap();
    }
}

fn every_packet_is_shown_with_its_process() {
    const BEFORE: usize = 6_000;
    const AFTER: usize = 6_345;
    let namespace = lonely();
    let old = socket(&namespace);
    let watcher = Watcher::monitor(&namespace, &["--iface", "lo", "--json", "udp"]);
    let new = socket(&namespace);

    send_to_itself(&old, BEFORE);
    send_to_itself(&new, AFTER);
    let (printed, said) = watcher.interrupt();

    let packets = objects(&printed);
    let name = fs::read_to_string("/proc/self/comm").unwrap();
    for (socket, count) in [(&old, BEFORE), (&new, AFTER)] {
        let port = socket.local_addr().unwrap().port();
        for direction in ["in", "out"] {
            let seen = packets.iter().filter(|packet| {
                packet["source_port"] == port
                    && packet["destination"] == "127.0.0.1"
                    && packet["direction"] == direction
                    && packet["device"] == "lo"
                    && packet["length"] == 46
                    && packet["pid"] == std::process::id()
                    && packet["name"] == name.trim_end()
            });
            assert_eq!(
                seen.count(),
                count,
                "{direction}, the first: {}",
                packets[0]
            );
        }
    }
    assert_eq!(said, format!("{} packets, 0 lost\n", 2 * (BEFORE + AFTER)));
}

fn chosen_packets_of_a_flood_are_all_shown() {
    const ALL: usize = 200_000;
    let namespace = lonely();
    let (sender, rare, frequent) = (socket(&namespace), socket(&namespace), socket(&namespace));
    let rare = rare.local_addr().unwrap();
    let port = rare.port().to_string();
    let filter = [
        "--json",
        "udp",
        "dst",
        "port",
        &port,
        "and",
        "src",
        "host",
        "127.0.0.1",
    ];
    let watcher = Watcher::monitor(&namespace, &filter);

    for number in 0..ALL {
        let to = if number % 100 == 0 {
            rare
        } else {
            frequent.local_addr().unwrap()
        };
        sender.send_to(b"text", to).unwrap();
    }
    let (printed, said) = watcher.interrupt();

    let packets = objects(&printed);
    assert!(
        packets
            .iter()
            .all(|packet| packet["destination_port"] == rare.port())
    );
    let sent = packets.iter().filter(|packet| packet["direction"] == "out");
    assert_eq!(sent.count(), ALL / 100);
    assert!(said.ends_with(" packets, 0 lost\n"), "{said}");
}

fn what_a_slow_reader_misses_is_counted() {
    const ALL: u64 = 200_000;
    let namespace = lonely();
    let (sender, receiver) = (socket(&namespace), socket(&namespace));
    let port = sender.local_addr().unwrap().port().to_string();
    // Nobody reads, so it is stuck as soon as the pipe is full.
    let filter = ["udp", "src", "port", &port];
    let watcher = Watcher::monitor(&namespace, &filter);

    for _ in 0..ALL {
        sender
            .send_to(b"text", receiver.local_addr().unwrap())
            .unwrap();
    }
    let (printed, said) = watcher.interrupt();

    let sent = printed
        .lines()
        .filter(|line| line.contains(" out "))
        .count() as u64;
    let shown = printed.lines().count() as u64;
    let summary = said.lines().last().unwrap();
    let (told, missed) = summary.split_once(" packets, ").unwrap();
    let lost: u64 = missed.trim_end_matches(" lost").parse().unwrap();
    assert_eq!(told, shown.to_string());
    assert!(
        lost > 0 && sent < ALL && shown + lost >= ALL,
        "{sent} sent, {shown} shown: {said}"
    );
}

fn gone_reader_ends_it_quietly() {
    let namespace = lonely();
    for busy in [false, true] {
        let mut watcher = Watcher::monitor(&namespace, &["udp"]);
        drop(watcher.child.stdout.take());
        if busy {
            send_to_itself(&socket(&namespace), 10);
        }
        let said = io::read_to_string(&mut watcher.said).unwrap();
        let status = watcher.child.wait().unwrap();

        assert!(status.success(), "{status}");
        assert!(
            said.ends_with(", 0 lost\n") && !said.contains("error"),
            "{said}"
        );
    }
}

fn device_that_comes_later_is_watched() {
    let namespace = lonely();
    let mut watcher = Watcher::monitor(
        &namespace,
        &[
            "--json",
            "--limit",
            "1",
            "host",
            "192.0.2.1",
            "or",
            "192.0.2.2",
        ],
    );
    let ip = |arguments: &str| {
        let mut ip = namespace.command("ip");
        assert!(ip.args(arguments.split(' ')).status().unwrap().success());
    };

    ip("link add late0 type veth peer name late1");
    ip("addr add 192.0.2.1/24 dev late0");
    ip("link set late1 up");
    ip("link set late0 up");
    let socket = namespace
        .run(|| UdpSocket::bind("192.0.2.1:0").unwrap())
        .unwrap();
    crate::home::wait_until("a packet of the new device is shown", || {
        // Without a neighbour it is a question for one, which counts too.
        drop(socket.send_to(b"text", "192.0.2.2:9"));
        watcher.child.try_wait().unwrap().is_some()
    });
    let (printed, _) = watcher.finish();

    let packets = objects(&printed);
    assert_eq!(packets.len(), 1);
    let device = packets[0]["device"].as_str().unwrap();
    assert!(device.starts_with("late"), "{}", packets[0]);
}

fn capture_tells_tshark_the_process() {
    let namespace = lonely();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("packets.pcapng");
    let watcher = Watcher::monitor(&namespace, &["-w", path.to_str().unwrap(), "udp"]);
    let socket = socket(&namespace);
    send_to_itself(&socket, 5);
    let (printed, said) = watcher.interrupt();
    assert_eq!(
        (printed.as_str(), said.as_str()),
        ("", "10 packets, 0 lost\n")
    );

    let fields = [
        "frame.comment",
        "frame.interface_name",
        "udp.srcport",
        "udp.payload",
    ];
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(&path).args(["-T", "fields"]);
    let Output {
        status,
        stdout,
        stderr,
    } = tshark
        .args(fields.iter().flat_map(|field| ["-e", field]))
        .output()
        .unwrap();

    let complaints = String::from_utf8_lossy(&stderr);
    let complaints = complaints
        .lines()
        .filter(|line| !line.starts_with("Running as user"));
    assert_eq!(complaints.collect::<Vec<_>>(), Vec::<&str>::new());
    assert!(status.success());
    let name = fs::read_to_string("/proc/self/comm").unwrap();
    let line = format!(
        "process {} pid {}\tlo\t{}\t74657874\n",
        name.trim_end(),
        std::process::id(),
        socket.local_addr().unwrap().port(),
    );
    assert_eq!(String::from_utf8(stdout).unwrap(), line.repeat(10));
}

fn packets_of_a_tunnel_are_known_by_its_name() {
    let home = Home::with_tunnels();
    let mut command = home.lockne(["monitor", "--json"]);
    command.args(["tunnel", "a", "and", "udp"]);
    let watcher = Watcher::start(command);

    let to = ORIGIN[0];
    for way in ["--via", "--direct"] {
        let arguments: &[&str] = if way == "--via" {
            &["--via", "a"]
        } else {
            &["--direct"]
        };
        let mut command = home.lockne(["run"]);
        command.args(arguments).arg("--");
        let running = probe(Action::UdpConnected, to)
            .start_behind(command)
            .unwrap();
        let report = running.finish().unwrap();
        assert!(
            matches!(report.outcome, Outcome::Answered { .. }),
            "{report:?}"
        );
    }
    let (printed, _) = watcher.interrupt();

    let packets = objects(&printed);
    for direction in ["in", "out"] {
        let inside = packets.iter().filter(|packet| {
            packet["direction"] == direction
                && packet["device"] == "a"
                && packet["policy"]["via"] == "a"
                && packet["pid"].is_u64()
        });
        assert_eq!(inside.count(), 1, "{direction}: {printed}");
    }
    assert!(
        packets.iter().all(|packet| packet["device"] == "a"),
        "{printed}"
    );
}
