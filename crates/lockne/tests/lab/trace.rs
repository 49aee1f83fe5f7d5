//! What `lockne trace` shows.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use lockne_lab::{Namespace, program};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    monitor::{Watcher, lonely},
    tests,
};

tests! {
    start_and_end_of_a_program_are_told,
    refused_pings_get_no_answer_until_it_ends,
}

fn objects(printed: &str) -> Vec<Value> {
    printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn start_and_end_of_a_program_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("told-of");
    program::copy("/bin/sh".as_ref(), &program).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockne"));
    command.args(["trace", "exec", "--json", "--name", "told-of"]);
    let watcher = Watcher::start(command);

    let mut child = Command::new(&program)
        .args(["-c", "exit 3", "a b"])
        .spawn()
        .unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let (printed, said) = watcher.interrupt();

    let events = objects(&printed);
    assert_eq!(events.len(), 2, "{printed}");
    let (start, end) = (&events[0], &events[1]);
    assert_eq!(
        (&start["event"], &end["event"]),
        (&"exec".into(), &"exit".into())
    );
    assert_eq!(start["pid"], pid);
    assert_eq!(start["parent"], std::process::id());
    assert_eq!((&start["uid"], &start["user"]), (&0.into(), &"root".into()));
    assert_eq!(start["executable"], program.to_str().unwrap());
    let arguments = [program.to_str().unwrap(), "-c", "exit 3", "a b"];
    assert_eq!(start["arguments"], serde_json::json!(arguments));
    assert_eq!((&end["pid"], &end["code"]), (&pid.into(), &3.into()));
    assert!(end["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(said, "1 program, 0 lost\n");
}

/// Whether the machine answers a ping from one of its own addresses to itself.
fn is_answered(namespace: &Namespace, address: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    let (domain, protocol, request, reply) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    // The checksum of all that follows: the kernel makes that of ICMPv6.
    let sum = !(u16::from(request) << 8);
    let [high, low] = sum.to_be_bytes();
    let mut socket = namespace
        .run(|| Socket::new(domain, Type::RAW, Some(protocol)).unwrap())
        .unwrap();
    socket.bind(&SocketAddr::new(address, 0).into()).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let text = [request, 0, high, low, 0, 0, 0, 0];
    let to = match address {
        IpAddr::V4(_) => SocketAddr::new("127.0.0.1".parse().unwrap(), 0),
        IpAddr::V6(_) => SocketAddr::new("::1".parse().unwrap(), 0),
    };
    socket.send_to(&text, &to.into()).unwrap();
    let mut buffer = [0; 128];
    while let Ok(length) = std::io::Read::read(&mut socket, &mut buffer) {
        let start = if address.is_ipv4() { 20 } else { 0 };
        if length > start && buffer[start] == reply {
            return true;
        }
    }
    false
}

fn refused_pings_get_no_answer_until_it_ends() {
    let namespace = lonely();
    let mut command = namespace.command(env!("CARGO_BIN_EXE_lockne"));
    command.args(["trace", "ping", "--json", "--iface", "lo"]);
    command.args(["--drop-from", "127.0.0.2", "--drop-from", "::1"]);
    let watcher = Watcher::start(command);

    assert!(is_answered(&namespace, "127.0.0.1"));
    assert!(!is_answered(&namespace, "127.0.0.2"));
    assert!(!is_answered(&namespace, "::1"));
    let (printed, said) = watcher.interrupt();

    let told: Vec<_> = objects(&printed)
        .iter()
        .map(|ping| (ping["source"].clone(), ping["refused"].clone()))
        .collect();
    let expected = [("127.0.0.1", false), ("127.0.0.2", true), ("::1", true)];
    assert_eq!(
        told,
        expected.map(|(source, refused)| (source.into(), refused.into()))
    );
    assert_eq!(said, "3 pings, 2 refused, 0 lost\n");
    for address in ["127.0.0.2", "::1"] {
        assert!(is_answered(&namespace, address));
    }
}
