//! Demo 04, the load balancer.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use lockne_lab::Namespace;
use socket2::{Domain, Socket, Type};

use crate::{
    run::{Demo, Ended, command},
    traffic::{alone, assert_untouched, connect, ip},
};

const PATH: &str = env!("CARGO_BIN_EXE_04-xdp-balancer");

const V4: [&str; 3] = ["192.0.2.100:80", "10.1.0.2", "10.2.0.2"];
const V6: [&str; 3] = ["[2001:db8::100]:80", "fd00:1::2", "fd00:2::2"];

crate::tests! {
    both_back_ends_get_their_share_of_v4,
    both_back_ends_get_their_share_of_v6,
    connection_stays_with_its_back_end,
    two_back_ends_must_be_named,
    its_time_ends_it,
}

fn both_back_ends_get_their_share_of_v4() {
    share(V4);
}

fn both_back_ends_get_their_share_of_v6() {
    share(V6);
}

fn share(addresses: [&str; 3]) {
    let site = Site::new();
    let _services = site.serve_udp(addresses[0]);
    let demo = site.start(addresses);

    let mut answers = [0; 2];
    for _ in 0..100 {
        answers[site.ask_udp(addresses[0])] += 1;
    }

    let ended = demo.interrupt().well();
    for (backend, count) in addresses[1..].iter().zip(answers) {
        ended.says(&format!("{backend}: {count} packets"));
        assert!((25..=75).contains(&count), "{answers:?}");
    }
    ended.says("0 lost");
    assert_untouched(&site.balancer, "client");
}

fn connection_stays_with_its_back_end() {
    let site = Site::new();
    let address: SocketAddr = V4[0].parse().unwrap();
    for (name, backend) in (0..).zip(&site.backends) {
        let listener = backend.run(|| TcpListener::bind(address).unwrap()).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let mut question = [0];
                    while stream.read_exact(&mut question).is_ok() {
                        stream.write_all(&[name]).unwrap();
                    }
                });
            }
        });
    }
    let demo = site.start(V4);

    // As a client's kernel chooses them: even and close to each other.
    let mut seen = [0; 2];
    for port in (40_000..).step_by(2).take(20) {
        let mut stream = site.client.run(|| connect_from(port, address)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut answers = [9; 10];
        for answer in &mut answers {
            stream.write_all(b"?").unwrap();
            stream.read_exact(std::slice::from_mut(answer)).unwrap();
        }
        assert_eq!(answers, [answers[0]; 10]);
        seen[usize::from(answers[0])] += 1;
    }

    demo.interrupt().well().says("0 lost");
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

fn connect_from(port: u16, service: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let source = SocketAddr::from(([0, 0, 0, 0], port));
    socket.bind(&source.into()).unwrap();
    socket.connect(&service.into()).unwrap();
    socket.into()
}

fn two_back_ends_must_be_named() {
    let arguments = ["--service", V4[0], "--backend", V4[1]];

    let ended = Demo::spawn(command(&alone(), PATH, &arguments)).finish();

    assert!(!ended.status.success());
    ended.complains("error: there must be 2 back ends, not 1");
}

fn its_time_ends_it() {
    let site = Site::new();

    let ended: Ended = site
        .start_with(V4, &["--duration", "200ms"])
        .finish()
        .well();

    ended.says("10.1.0.2: 0 packets");
    assert_untouched(&site.balancer, "client");
}

/// A client, a load balancer, and two back ends behind it.
struct Site {
    client: Namespace,
    balancer: Namespace,
    backends: [Namespace; 2],
}

impl Site {
    fn new() -> Self {
        let [client, balancer, first, second] = [(); 4].map(|()| alone());
        for (number, name, end) in [
            (0, "client", &client),
            (1, "first", &first),
            (2, "second", &second),
        ] {
            connect(&balancer, name, end, "eth0");
            ip(
                &balancer,
                &format!("address add 10.{number}.0.1/24 dev {name}"),
            );
            ip(
                &balancer,
                &format!("address add fd00:{number}::1/64 dev {name} nodad"),
            );
            ip(end, &format!("address add 10.{number}.0.2/24 dev eth0"));
            ip(
                end,
                &format!("address add fd00:{number}::2/64 dev eth0 nodad"),
            );
            ip(end, &format!("route add default via 10.{number}.0.1"));
            ip(end, &format!("-6 route add default via fd00:{number}::1"));
        }
        for backend in [&first, &second] {
            ip(backend, "address add 192.0.2.100/32 dev lo");
            ip(backend, "address add 2001:db8::100/128 dev lo nodad");
        }
        balancer
            .set_all(&[
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/first/rp_filter", "0"),
                ("ipv4/conf/second/rp_filter", "0"),
            ])
            .unwrap();
        Self {
            client,
            balancer,
            backends: [first, second],
        }
    }

    fn start(&self, addresses: [&str; 3]) -> Demo {
        self.start_with(addresses, &[])
    }

    fn start_with(&self, [service, first, second]: [&str; 3], more: &[&str]) -> Demo {
        let mut arguments = vec!["--iface", "client", "--service", service];
        arguments.extend(["--backend", first, "--backend", second]);
        arguments.extend(more);
        Demo::start(&self.balancer, PATH, &arguments)
    }

    /// Each back end answers each datagram with its number, until the sockets are dropped.
    fn serve_udp(&self, address: &str) -> Vec<UdpSocket> {
        let mut sockets = Vec::new();
        for (name, backend) in (0..).zip(&self.backends) {
            let socket = backend.run(|| UdpSocket::bind(address).unwrap()).unwrap();
            sockets.push(socket.try_clone().unwrap());
            thread::spawn(move || {
                let mut question = [0; 16];
                while let Ok((_, from)) = socket.recv_from(&mut question) {
                    socket.send_to(&[name], from).unwrap();
                }
            });
        }
        sockets
    }

    /// Which back end answers a new client.
    fn ask_udp(&self, address: &str) -> usize {
        let any = if address.starts_with('[') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let socket = self.client.run(|| UdpSocket::bind(any).unwrap()).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket.send_to(b"?", address).unwrap();
        let mut answer = [9];
        socket.recv_from(&mut answer).unwrap();
        usize::from(answer[0])
    }
}
