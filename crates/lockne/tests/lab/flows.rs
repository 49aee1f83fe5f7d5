//! Connections as `lockne flows` shows them.

use std::{
    io::Write as _,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    thread,
};

use lockne_lab::{
    Namespace,
    probe::{Action, Outcome},
};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::{
    home::Home,
    monitor::{Watcher, lonely},
    tests,
    way::{ORIGIN, probe},
};

tests! {
    datagrams_are_counted_exactly_and_for_their_process needs ["ip"],
    connection_of_a_millisecond_is_seen_whole needs ["ip"],
    connection_that_was_there_before_is_known needs ["ip"],
    storm_of_connections_is_seen_whole_or_its_loss_is_told needs ["ip"],
    connection_of_a_tunnel_says_policy_and_tunnel,
}

/// Addresses that no other test of this process has, as all are watched together, whatever their namespace.
const OWN: [Ipv4Addr; 3] = [
    Ipv4Addr::new(127, 5, 0, 1),
    Ipv4Addr::new(127, 5, 0, 2),
    Ipv4Addr::new(127, 5, 0, 3),
];

fn watch(namespace: &Namespace, arguments: &[&str]) -> Watcher {
    let mut command: Command = namespace.command(env!("CARGO_BIN_EXE_lockne"));
    command
        .args(["--state-dir", "/nonexistent", "flows", "--json"])
        .args(arguments);
    Watcher::start(command).read_along()
}

fn events(printed: &str) -> Vec<Value> {
    printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The hooks see the whole machine; these are ours.
fn with<'a>(events: &'a [Value], event: &str, side: &str, address: &str) -> Vec<&'a Value> {
    let own = u64::from(std::process::id());
    events
        .iter()
        .filter(|it| it["event"] == event && it[side] == address && it["pid"] == own)
        .collect()
}

fn datagrams_are_counted_exactly_and_for_their_process() {
    const DATAGRAMS: u64 = 12_345;
    let namespace = lonely();
    let watcher = watch(&namespace, &["--follow"]);

    let (from, to) = namespace
        .run(|| {
            let socket = UdpSocket::bind((OWN[0], 0)).unwrap();
            let sink = UdpSocket::bind((OWN[0], 0)).unwrap();
            let to = sink.local_addr().unwrap();
            // One after the other, as a busy machine may drop what waits in its queue.
            for _ in 0..DATAGRAMS {
                socket.send_to(&[0; 100], to).unwrap();
                sink.recv(&mut [0; 100]).unwrap();
            }
            (socket.local_addr().unwrap(), to)
        })
        .unwrap();
    let (printed, said) = watcher.interrupt();

    let events = events(&printed);
    let ends = with(&events, "end", "local", &from.to_string());
    assert_eq!(ends.len(), 1, "{printed}");
    let end = ends[0];
    assert_eq!(end["remote"], to.to_string());
    assert_eq!(end["tx_packets"], DATAGRAMS);
    assert_eq!(end["tx_bytes"], DATAGRAMS * 128);
    assert_eq!(end["rx_packets"], 0);
    let own = std::env::current_exe().unwrap();
    assert_eq!(end["program"], own.to_str().unwrap());
    assert_eq!(end["user"], "root");
    let arrived = with(&events, "end", "local", &to.to_string());
    assert_eq!(arrived.len(), 1, "{printed}");
    assert_eq!(arrived[0]["tx_packets"], 0);
    assert_eq!(arrived[0]["rx_packets"], DATAGRAMS);
    assert!(said.ends_with(" 0 lost\n"), "{said}");
}

fn connection_of_a_millisecond_is_seen_whole() {
    let namespace = lonely();
    let watcher = watch(&namespace, &["--follow"]);

    let (from, to) = namespace
        .run(|| {
            let listener = TcpListener::bind("[::1]:0").unwrap();
            let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            stream.write_all(&[0; 1000]).unwrap();
            let ends = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            let accepted = listener.accept().unwrap().0;
            stream.shutdown(Shutdown::Both).unwrap();
            drop(accepted);
            ends
        })
        .unwrap();
    let (printed, _) = watcher.interrupt();

    let events = events(&printed);
    for event in ["begin", "end"] {
        let seen = with(&events, event, "local", &from.to_string());
        assert_eq!(seen.len(), 1, "{event}: {printed}");
        assert_eq!(seen[0]["remote"], to.to_string());
        assert_eq!(seen[0]["way"], "local");
    }
    let end = with(&events, "end", "local", &from.to_string())[0];
    assert_eq!(end["state"], "closed");
    // SYN, ACK and FIN have headers only, or with data.
    assert!(end["tx_bytes"].as_u64().unwrap() > 1000 + 3 * 60, "{end}");
    // What was accepted belongs to who listened.
    let accepted = with(&events, "end", "remote", &from.to_string());
    assert_eq!(accepted.len(), 1, "{printed}");
    assert!(
        accepted[0]["rx_bytes"].as_u64().unwrap() > 1000,
        "{printed}"
    );
}

fn connection_that_was_there_before_is_known() {
    let namespace = lonely();
    let (stream, _accepted) = namespace
        .run(|| {
            let listener = TcpListener::bind((OWN[1], 0)).unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (stream, listener.accept().unwrap().0)
        })
        .unwrap();

    let mut command = namespace.command(env!("CARGO_BIN_EXE_lockne"));
    command.args(["--state-dir", "/nonexistent", "flows", "--json"]);
    let output = command.output().unwrap();

    let connections: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let ends = [stream.local_addr(), stream.peer_addr()].map(|end| end.unwrap().to_string());
    let known: Vec<_> = connections
        .iter()
        .filter(|it| it["local"] == ends[0] && it["remote"] == ends[1])
        .collect();
    assert_eq!(known.len(), 1, "{connections:?}");
    assert_eq!(known[0]["existing"], true);
    assert_eq!(known[0]["pid"], std::process::id());
    assert_eq!(known[0]["state"], "established");
}

fn storm_of_connections_is_seen_whole_or_its_loss_is_told() {
    const THREADS: u64 = 4;
    const EACH: u64 = 2500;
    let namespace = lonely();
    let watcher = watch(&namespace, &["--follow"]);

    let address = namespace
        .run(|| {
            let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            listener
                .bind(&SocketAddr::from((OWN[2], 0)).into())
                .unwrap();
            listener.listen(4096).unwrap();
            let listener = TcpListener::from(listener);
            let address = listener.local_addr().unwrap();
            listener.set_nonblocking(true).unwrap();
            let connect = || {
                for _ in 0..EACH {
                    let stream = TcpStream::connect(address).unwrap();
                    // No TIME_WAIT, so that ports do not run out.
                    socket2::SockRef::from(&stream)
                        .set_linger(Some(std::time::Duration::ZERO))
                        .unwrap();
                }
            };
            thread::scope(|scope| {
                // In the namespace of the one that starts them.
                let connects: Vec<_> = (0..THREADS).map(|_| scope.spawn(connect)).collect();
                // Some of them are not there any more when they would be accepted.
                while connects.iter().any(|connect| !connect.is_finished()) {
                    drop(listener.accept());
                }
            });
            address
        })
        .unwrap();
    let (printed, said) = watcher.interrupt();

    let events = events(&printed);
    let ended = with(&events, "end", "remote", &address.to_string()).len() as u64;
    let lost: u64 = said
        .trim_end()
        .rsplit(", ")
        .next()
        .and_then(|lost| lost.split(' ').next()?.parse().ok())
        .unwrap();
    assert!(ended <= THREADS * EACH, "{ended}");
    assert!(ended + lost >= THREADS * EACH, "{ended} ended, {said}");
    assert!(ended > 0);
}

fn connection_of_a_tunnel_says_policy_and_tunnel() {
    let home = Home::with_tunnels();
    let watcher = Watcher::start(home.lockne(["flows", "--follow", "--json"])).read_along();

    let mut command = home.lockne(["run"]);
    command.args(["--via", "a", "--"]);
    let running = probe(Action::UdpConnected, ORIGIN[0])
        .start_behind(command)
        .unwrap();
    let report = running.finish().unwrap();
    assert!(
        matches!(report.outcome, Outcome::Answered { .. }),
        "{report:?}"
    );
    let (printed, _) = watcher.interrupt();

    let events = events(&printed);
    let ours: Vec<_> = events
        .iter()
        .filter(|it| it["event"] == "end" && it["tunnel"] == "a")
        .collect();
    assert_eq!(ours.len(), 1, "{printed}");
    assert_eq!(ours[0]["way"], "tunnelled");
    assert_eq!(ours[0]["action"], "via a");
    assert_eq!(
        (&ours[0]["tx_packets"], &ours[0]["rx_packets"]),
        (&1.into(), &1.into())
    );
    assert!(
        ours[0]["remote"]
            .as_str()
            .unwrap()
            .starts_with(&ORIGIN[0].to_string())
    );
}
