//! Tunnels carry packets.

use std::{
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Child, Command},
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

use crate::{
    Needs, Test,
    conf::{conf, down, peer, public, secret, up},
    side::{Side, eventually},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "embedded_tunnels_carry_ping_udp_and_tcp_of_both_families",
        embedded_tunnels_carry_ping_udp_and_tcp_of_both_families,
        Needs::Nothing,
    ),
    (
        "embedded_tunnel_talks_to_wireguard_go",
        embedded_tunnel_talks_to_wireguard_go,
        Needs::Program("wireguard-go"),
    ),
    (
        "tunnel_carries_on_where_long_sends_are_refused",
        tunnel_carries_on_where_long_sends_are_refused,
        Needs::Nothing,
    ),
    (
        "long_send_of_a_program_arrives_as_its_datagrams",
        long_send_of_a_program_arrives_as_its_datagrams,
        Needs::Nothing,
    ),
    (
        "two_tunnels_run_at_once",
        two_tunnels_run_at_once,
        Needs::Nothing,
    ),
    (
        "no_packet_waits_for_a_process_that_is_busy",
        no_packet_waits_for_a_process_that_is_busy,
        Needs::Nothing,
    ),
    (
        "ipv6_carries_the_tunnel",
        ipv6_carries_the_tunnel,
        Needs::Nothing,
    ),
    (
        "peer_without_endpoint_is_found_by_its_packets",
        peer_without_endpoint_is_found_by_its_packets,
        Needs::Nothing,
    ),
    (
        "preshared_key_must_be_the_same",
        preshared_key_must_be_the_same,
        Needs::Nothing,
    ),
    (
        "wrong_key_gets_no_answer",
        wrong_key_gets_no_answer,
        Needs::Nothing,
    ),
];

/// Ends 1 and 2 of network 9 in the two namespaces, by IPv4.
pub(crate) fn confs() -> (String, String) {
    (
        conf(9, 1, 2, "Endpoint = 192.0.2.2:50009"),
        conf(9, 2, 1, "Endpoint = 192.0.2.1:50009"),
    )
}

fn embedded_tunnels_carry_ping_udp_and_tcp_of_both_families() {
    let (a, b) = Side::pair();
    let (here, there) = confs();
    let here = up(&a, "wg-a", &here);
    let there = up(&b, "wg-b", &there);

    for address in ["10.9.0.2", "fd00:9::2"] {
        assert!(a.pings(address), "{address}");
        udp_echo(&a, &b, address.parse().unwrap());
        tcp_bulk(&a, &b, address.parse().unwrap(), 8 << 20);
    }
    let peer = peer(&a, &here);
    assert!(peer.tx_bytes > 16 << 20, "the bytes took another way");

    down(&a, here);
    down(&b, there);
}

fn embedded_tunnel_talks_to_wireguard_go() {
    let (a, b) = Side::pair();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wg.conf");
    let other = format!(
        "[Interface]\nPrivateKey={}\nListenPort=50009\n[Peer]\nPublicKey={}\nAllowedIPs=10.9.0.1/32,fd00:9::1/128\n",
        secret(2),
        public(1)
    );
    std::fs::write(&file, other).unwrap();
    let name = format!("wggo{}", std::process::id());
    let _daemon = WireguardGo::start(&b, &name);
    b.must("wg", &format!("setconf {name} {}", file.display()));
    b.ip(&format!("address add 10.9.0.2/24 dev {name}"));
    b.ip(&format!("address add fd00:9::2/64 dev {name}"));
    b.ip(&format!("link set {name} mtu 1420 up"));

    let here = up(&a, "wg-a", &confs().0);

    for address in ["10.9.0.2", "fd00:9::2"] {
        assert!(a.pings(address), "{address}");
        tcp_bulk(&a, &b, address.parse().unwrap(), 8 << 20);
    }
    for address in ["10.9.0.1", "fd00:9::1"] {
        assert!(b.pings(address), "{address}");
        tcp_bulk(&b, &a, address.parse().unwrap(), 8 << 20);
    }
    assert!(peer(&a, &here).handshake_age_seconds.is_some());
    assert!(
        b.must("wg", &format!("show {name} endpoints"))
            .contains("192.0.2.1:50009")
    );

    down(&a, here);
}

/// A running wireguard-go. Its socket lies in the one folder of the machine, whatever the namespace.
struct WireguardGo {
    process: Child,
    socket: PathBuf,
}

impl WireguardGo {
    fn start(side: &Side, name: &str) -> Self {
        let mut command = Command::new("wireguard-go");
        command.args(["--foreground", name]);
        let process = side.start(move || command.spawn().unwrap()).join().unwrap();
        let socket = PathBuf::from(format!("/var/run/wireguard/{name}.sock"));
        let this = Self { process, socket };
        eventually("wireguard-go has a socket", || this.socket.exists());
        this
    }
}

impl Drop for WireguardGo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// A narrow cable: the kernel breaks datagrams up into fragments, but not long sends.
fn tunnel_carries_on_where_long_sends_are_refused() {
    let (a, b) = Side::pair();
    let (here, there) = confs();
    let here = up(&a, "wg-a", &here);
    let there = up(&b, "wg-b", &there);
    assert!(a.pings("10.9.0.2"));

    a.ip("link set lan0 mtu 1300");
    b.ip("link set lan0 mtu 1300");

    let [there_v4, here_v6] = ["10.9.0.2", "fd00:9::1"].map(|address| address.parse().unwrap());
    tcp_bulk(&a, &b, there_v4, 4 << 20);
    tcp_bulk(&b, &a, here_v6, 4 << 20);

    down(&a, here);
    down(&b, there);
}

/// Both ends leave it to the device to cut and to join, where this kernel has that for datagrams.
fn long_send_of_a_program_arrives_as_its_datagrams() {
    const COUNT: u8 = 20;
    const SIZE: u16 = 1000;
    let (a, b) = Side::pair();
    let (here, there) = confs();
    let here = up(&a, "wg-a", &here);
    let there = up(&b, "wg-b", &there);

    eventually("the tunnel is there", || a.pings("10.9.0.2"));
    for (any, address) in [("0.0.0.0", "10.9.0.2"), ("::", "fd00:9::2")] {
        let any: IpAddr = any.parse().unwrap();
        let address: IpAddr = address.parse().unwrap();
        let server = b.start(move || UdpSocket::bind((address, 0)).unwrap());
        let server = server.join().unwrap();
        let wait = Some(Duration::from_secs(10));
        server.set_read_timeout(wait).unwrap();
        let to = server.local_addr().unwrap();
        let datagrams: Vec<_> = (0..COUNT).map(|byte| vec![byte; SIZE.into()]).collect();
        let long = datagrams.concat();
        a.start(move || {
            let socket = UdpSocket::bind((any, 0)).unwrap();
            setsockopt(&socket, UdpGsoSegment, &i32::from(SIZE)).unwrap();
            assert_eq!(socket.send_to(&long, to).unwrap(), long.len());
        })
        .join()
        .unwrap();
        for datagram in datagrams {
            let mut buffer = [0; 2 * SIZE as usize];
            let length = server.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length], datagram);
        }
    }

    down(&a, here);
    down(&b, there);
}

fn no_packet_waits_for_a_process_that_is_busy() {
    let (a, b) = Side::pair();
    let (here, there) = confs();
    let here = up(&a, "wg-a", &here);
    let there = up(&b, "wg-b", &there);
    assert!(a.pings("10.9.0.2"));
    let (begin, is_busy) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();

    let answered = thread::scope(|scope| {
        let (a, b) = (&a, &b);
        scope.spawn(move || {
            a.run(async move {
                begin.send(()).unwrap();
                let _ = ended.recv();
            });
        });
        is_busy.recv().unwrap();
        let answered = a.pings("10.9.0.2") && b.pings("10.9.0.1");
        drop(end);
        answered
    });

    assert!(answered);
    down(&a, here);
    down(&b, there);
}

fn two_tunnels_run_at_once() {
    let (a, b) = Side::pair();
    let tunnels = [9, 10].map(|net| {
        let here = conf(net, 1, 2, &format!("Endpoint = 192.0.2.2:500{net:02}"));
        let there = conf(net, 2, 1, "");
        let here = up(&a, &format!("wg{net}"), &here);
        (here, up(&b, &format!("wg{net}"), &there))
    });

    assert!(a.pings("10.9.0.2") && a.pings("10.10.0.2"));
    let (_, bytes) = (peer(&a, &tunnels[0].0), peer(&a, &tunnels[1].0).rx_bytes);
    tcp_bulk(&a, &b, "10.9.0.2".parse().unwrap(), 1 << 20);

    assert!(peer(&a, &tunnels[0].0).tx_bytes > 1 << 20);
    assert!(peer(&a, &tunnels[1].0).rx_bytes < bytes + 1000);

    for (here, there) in tunnels {
        down(&a, here);
        down(&b, there);
    }
}

fn ipv6_carries_the_tunnel() {
    let (a, b) = Side::pair();
    let here = up(&a, "wg0", &conf(9, 1, 2, "Endpoint = [2001:db8::2]:50009"));
    let there = up(&b, "wg0", &conf(9, 2, 1, ""));

    assert!(a.pings("10.9.0.2"));
    assert_eq!(
        peer(&b, &there).endpoint,
        Some("[2001:db8::1]:50009".parse().unwrap())
    );

    down(&a, here);
    down(&b, there);
}

fn peer_without_endpoint_is_found_by_its_packets() {
    let (a, b) = Side::pair();
    let here = up(&a, "wg0", &confs().0);
    let there = up(&b, "wg0", &conf(9, 2, 1, ""));
    assert_eq!(peer(&b, &there).endpoint, None);

    assert!(a.pings("10.9.0.2"));

    let found = Some("192.0.2.1:50009".parse().unwrap());
    assert_eq!(peer(&b, &there).endpoint, found);
    assert!(b.pings("10.9.0.1"));

    down(&a, here);
    down(&b, there);
}

fn preshared_key_must_be_the_same() {
    let (a, b) = Side::pair();
    let with = |conf: &str, key: u8| format!("{conf}PresharedKey = {}\n", secret(key));
    let (here, there) = confs();
    let here = up(&a, "wg0", &with(&here, 7));

    let other = up(&b, "wg0", &with(&there, 8));
    assert!(!a.output("ping", "-n -c 1 -W 2 10.9.0.2").status.success());
    assert_eq!(peer(&a, &here).handshake_age_seconds, None);
    down(&b, other);
    let same = up(&b, "wg0", &with(&there, 7));

    assert!(b.pings("10.9.0.1"));

    down(&a, here);
    down(&b, same);
}

fn wrong_key_gets_no_answer() {
    let (a, b) = Side::pair();
    let here = up(&a, "wg0", &conf(9, 1, 2, "Endpoint = 192.0.2.2:50009"));
    // It has key 3, where end 1 knows end 2 only.
    let there = confs().1.replace(&secret(2), &secret(3));
    let there = up(&b, "wg0", &there);

    assert!(!a.output("ping", "-n -c 1 -W 2 10.9.0.2").status.success());
    assert!(!b.output("ping", "-n -c 1 -W 2 10.9.0.1").status.success());

    assert_eq!(peer(&a, &here).handshake_age_seconds, None);
    assert_eq!(peer(&b, &there).handshake_age_seconds, None);
    assert_eq!(peer(&b, &there).rx_bytes, 0);

    down(&a, here);
    down(&b, there);
}

fn udp_echo(a: &Side, b: &Side, address: IpAddr) {
    let server = b.start(move || UdpSocket::bind((address, 0)).unwrap());
    let server = server.join().unwrap();
    let to = server.local_addr().unwrap();
    let echo = b.start(move || {
        let mut buffer = [0; 2000];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(&buffer[..length], from).unwrap();
    });
    let message = [7; 1300];
    let answer = a.start(move || {
        let any: IpAddr = match to {
            std::net::SocketAddr::V4(_) => "0.0.0.0".parse().unwrap(),
            std::net::SocketAddr::V6(_) => "::".parse().unwrap(),
        };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        socket.send_to(&message, to).unwrap();
        let mut buffer = [0; 2000];
        let length = socket.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    });
    assert_eq!(answer.join().unwrap(), message);
    echo.join().unwrap();
}

/// Sends `count` bytes and checks every one of them.
pub(crate) fn tcp_bulk(a: &Side, b: &Side, address: IpAddr, count: usize) {
    let byte = |place: usize| u8::try_from(place * 31 % 251).unwrap();
    let server = b.start(move || TcpListener::bind((address, 0)).unwrap());
    let server = server.join().unwrap();
    let to = server.local_addr().unwrap();
    let received = b.start(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let bytes: Vec<u8> = (0..count).map(byte).collect();
    let sent = bytes.clone();
    a.start(move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10)).unwrap();
        stream
            .set_write_timeout(Some(Duration::from_mins(1)))
            .unwrap();
        stream.write_all(&sent).unwrap();
    })
    .join()
    .unwrap();
    assert!(received.join().unwrap() == bytes, "the bytes changed");
}
