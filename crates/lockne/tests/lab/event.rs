//! What happens around programs that send without a pause: nothing of it leads them home.
//!
//! Half of them are bound to the home's device, which the guard alone holds back. Each test ends with a
//! program without a policy: what it sends must be seen, or the cable was not watched.

use std::{net::SocketAddr, process::Stdio};

use lockne_lab::{
    device::Device,
    internet::{HOME_V4, HOME_V6, LAN_V4, ORIGIN_V4, ORIGIN_V6},
    origin::HTTP_PORT,
    packet::{Content, Direction, Flow, Transport},
    probe::{Action, Options, Outcome, Probe},
    program::{self, Killed},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    failover::{addresses, wait_until_by},
    fault::{Hammers, with_interface},
    home::{Home, text, wait_until},
    tests,
    way::{self, ORIGIN, PLAIN, probe},
};

tests! {
    tunnel_without_a_handshake_is_silent_until_there_is_one,
    tunnels_that_flap_beside_a_paused_daemon_leak_nothing,
    redirects_of_the_router_lead_nobody_out needs ["ip"],
    rules_flushed_under_traffic_leak_nothing needs ["ip"],
    renewed_lease_leaks_nothing needs ["ip"],
    routes_of_a_dhcp_server_lead_nobody_out needs ["busybox", "ip"],
    policy_that_changes_under_open_connections_leaks_nothing,
}

const ROUNDS: u32 = 3;

/// Fails unless a program without a policy is seen on the home's cable.
fn assert_seen_without_a_policy(home: &Home) {
    for to in ORIGIN {
        home.wire.clear();
        let mut free = probe(Action::Hammer, to).start(&home.lab.home).unwrap();
        free.wait_until_ready().unwrap();
        wait_until("a program without a policy is seen", || {
            let mut leaks = home.leaks().into_iter();
            leaks.any(|flow| flow.packet.direction == Direction::Received)
        });
        free.go().unwrap();
        free.finish().unwrap();
    }
}

/// Waits until nothing comes to the server.
fn wait_until_silent(home: &Home) {
    wait_until("silence", || {
        home.lab.origin.clear();
        std::thread::sleep(std::time::Duration::from_millis(100));
        home.lab.origin.seen().is_empty()
    });
}

fn tunnel_without_a_handshake_is_silent_until_there_is_one() {
    let home = Home::new();
    let provider = &home.lab.provider_a;
    provider.stop_wireguard();
    home.tunnel_up("a", provider);
    let bound = Options {
        bind_device: Some("eth0".to_owned()),
        ..Options::default()
    };
    let hammers = [Options::default(), bound].into_iter().flat_map(|options| {
        ORIGIN.map(|to| {
            let probe = probe(Action::Hammer, to).with(options.clone());
            let mut hammer = home.start(["--via", "a"], &probe);
            hammer.wait_until_ready().unwrap();
            hammer
        })
    });
    let hammers: Vec<_> = hammers.collect();
    wait_until("the tunnel has tried to reach its provider", || {
        home.wire.settle().unwrap();
        home.wire
            .count(|packet| packet.direction == Direction::Received)
            > 0
    });
    let status = home.status().unwrap();
    let peer = &status.tunnels[0].peers[0];
    assert_eq!(peer.handshake_age_seconds, None);
    assert_eq!(home.lab.origin.seen(), []);

    provider.start().unwrap();

    wait_until_by(&home, provider);
    for mut hammer in hammers {
        hammer.go().unwrap();
        hammer.finish().unwrap();
    }
    // That nobody listened was said by ICMP, from the provider's address.
    home.assert_nothing_left();
    assert_seen_without_a_policy(&home);
}

fn tunnels_that_flap_beside_a_paused_daemon_leak_nothing() {
    let (home, link) = with_interface();
    let daemon = home.daemon();
    home.tunnel_up("a", &home.lab.provider_a);
    let own = Hammers::through_a(&home);
    let others = Hammers::start_beside(&home, "p", PLAIN);
    let a = Device::find(&home.lab.home, "a").unwrap().unwrap();

    for round in 1..=ROUNDS {
        daemon.pause();
        for device in [&a, link.near()] {
            device.down().unwrap();
        }
        wait_until_silent(&home);
        for device in [&a, link.near()] {
            device.up().unwrap();
        }
        if round == ROUNDS {
            a.delete().unwrap();
        }
        daemon.resume();
        own.wait_until_they_arrive_beside(&PLAIN);
        others.wait_until_they_arrive_beside(&addresses(&home.lab.provider_a));
    }

    own.finish_beside(&PLAIN);
    others.finish_beside(&addresses(&home.lab.provider_a));
    assert_seen_without_a_policy(&home);
}

/// The router says that there is a better way to the server: a neighbour.
fn redirects_of_the_router_lead_nobody_out() {
    const BETTER: &str = "fe80::50";
    let home = Home::with_tunnels();
    let settings = [
        ("ipv4/conf/all/accept_redirects", "1"),
        ("ipv4/conf/eth0/accept_redirects", "1"),
        ("ipv6/conf/eth0/accept_redirects", "1"),
    ];
    home.lab.home.set_all(&settings).unwrap();
    for address in ["fe80::1", BETTER] {
        let mut ip = home.lab.internet.command("ip");
        let words = format!("-6 address add {address}/64 dev home0 nodad");
        let output = ip.args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
    home.ip("-6 route replace default via fe80::1 dev eth0");
    let hammers = Hammers::through_a(&home);
    let way = |address: &str| {
        let mut ip = home.lab.home.command("ip");
        let output = ip.args(["route", "get", address]).output().unwrap();
        text(&output)
    };

    wait_until("programs without a policy believe it", || {
        home.lab.internet.run(redirect).unwrap();
        let v4 = way(&ORIGIN_V4.to_string());
        let v6 = way(&ORIGIN_V6.to_string());
        v4.contains(&format!("via {LAN_V4} ")) && v6.contains(&format!("via {BETTER} "))
    });

    hammers.wait_until_they_arrive();
    hammers.end();
    // The redirects themselves come from there.
    home.assert_nothing_left();
    assert_seen_without_a_policy(&home);
}

/// Sends the redirects, for the home's addresses and for those in the tunnel.
fn redirect() {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
    let router = SocketAddr::from(([192, 0, 2, 1], 0));
    socket.bind(&router.into()).unwrap();
    for source in [HOME_V4, [10, 8, 1, 2].into()] {
        // About an echo reply: any other packet is asked of its socket first.
        let mut about = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
        about.extend(source.octets());
        about.extend(ORIGIN_V4.octets());
        let sum = checksum(&about);
        about[10..12].copy_from_slice(&sum);
        about.extend([0, 0, 0xff, 0xff, 0, 0, 0, 0]);
        let mut message = vec![5, 1, 0, 0];
        message.extend(LAN_V4.octets());
        message.extend(about);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum);
        let home = SocketAddr::from((HOME_V4, 0));
        socket.send_to(&message, &home.into()).unwrap();
    }

    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
    socket.bind_device(Some(b"home0")).unwrap();
    let router: SocketAddr = "[fe80::1%12]:0".parse().unwrap();
    socket.bind(&router.into()).unwrap();
    // RFC 4861, 8.1: less may have passed a router.
    socket.set_unicast_hops_v6(255).unwrap();
    let mut message = vec![137, 0, 0, 0, 0, 0, 0, 0];
    message.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50]);
    message.extend(ORIGIN_V6.octets());
    let home = SocketAddr::from((HOME_V6, 0));
    socket.send_to(&message, &home.into()).unwrap();
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks_exact(2);
    let sum: u32 = words
        .map(|it| u32::from(u16::from_be_bytes([it[0], it[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = u16::try_from(sum).expect("the carries are in it");
    (!sum).to_be_bytes()
}

fn rules_flushed_under_traffic_leak_nothing() {
    let (home, _link) = with_interface();
    let daemon = home.daemon();
    let hammers = Hammers::start(&home, "p", PLAIN);

    // A connection begun without rules has the home's address, and goes on through an interface that does not
    // mind. What leaves the home is none of it.
    for _ in 0..ROUNDS {
        flush(&home);
        hammers.wait_until_they_arrive_beside(&way::HOME);
        daemon.pause();
        flush(&home);
        wait_until_silent(&home);
        daemon.resume();
        hammers.wait_until_they_arrive_beside(&way::HOME);
    }

    hammers.end();
    // The server's answers to them arrive here.
    home.assert_nothing_left();
    assert_seen_without_a_policy(&home);
}

/// As a tool that thinks it is alone: no rules but the kernel's own, no routes of others.
pub(crate) fn flush(home: &Home) {
    home.ip_both("rule flush");
    home.ip_both("rule add pref 32766 table main");
    for family in ["-4", "-6"] {
        let mut ip = home.lab.home.command("ip");
        ip.args([family, "route", "flush", "table", "108001"]);
        // It gives up where the daemon is as fast.
        let _is_empty = ip
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
    }
}

/// As a DHCP client does it, with the routes of option 121 among the news.
fn renewed_lease_leaks_nothing() {
    let home = Home::with_tunnels();
    home.lab
        .home
        .set("ipv4/conf/eth0/promote_secondaries", "1")
        .unwrap();
    let hammers = Hammers::through_a(&home);

    for (old, new, router) in [(2, 77, 50), (77, 78, 1), (78, 2, 50)] {
        home.ip(&format!("address add 192.0.2.{new}/24 dev eth0"));
        home.ip(&format!(
            "-6 address add 2001:db8:2::{new}:1/64 dev eth0 nodad"
        ));
        for prefix in ["default", "0.0.0.0/1", "128.0.0.0/1", "203.0.113.0/24"] {
            home.ip(&format!(
                "route replace {prefix} via 192.0.2.{router} dev eth0 src 192.0.2.{new}"
            ));
        }
        home.ip(&format!("address del 192.0.2.{old}/24 dev eth0"));
        home.ip("-6 route replace default via 2001:db8:2::50 dev eth0");
        hammers.wait_until_they_arrive();
    }

    hammers.finish();
    assert_seen_without_a_policy(&home);
}

/// A real server gives a real client routes by option 121, which are more precise than the tunnel's.
fn routes_of_a_dhcp_server_lead_nobody_out() {
    const CLIENT: &[u8] = b"#!/bin/sh
[ $1 = bound ] || exit 0
ip address replace $ip/24 dev $interface
set -- $staticroutes
while [ $# -gt 1 ]; do ip route replace $1 via $2 dev eth0 src $ip; shift 2; done
";
    let home = Home::with_tunnels();
    let script = home.beside("udhcpc.script");
    program::write(&script, CLIENT).unwrap();
    let file = home.write("leases", "");
    let conf = home.write(
        "udhcpd.conf",
        &format!(
            "interface home0\nstart 192.0.2.100\nend 192.0.2.109\nlease_file {}\npidfile /dev/null\n\
             opt subnet 255.255.255.0\nopt staticroutes 0.0.0.0/1 192.0.2.1, 128.0.0.0/1 192.0.2.1, \
             203.0.113.10/32 192.0.2.1\n",
            file.display()
        ),
    );
    let mut server = home.lab.internet.command("busybox");
    server.args(["udhcpd", "-f"]).arg(conf);
    let _server = Killed(server.stderr(Stdio::null()).spawn().unwrap());
    let hammers = Hammers::through_a(&home);

    let mut client = home.lab.home.command("busybox");
    client.args([
        "udhcpc", "-f", "-q", "-n", "-i", "eth0", "-t", "20", "-T", "1", "-s",
    ]);
    let client = client.arg(script).output().unwrap();

    assert!(client.status.success(), "{}", text(&client));
    let mut ip = home.lab.home.command("ip");
    let routes = ip.args(["route", "get", "203.0.113.10"]).output().unwrap();
    assert!(
        text(&routes).contains("src 192.0.2.10"),
        "{}",
        text(&routes)
    );
    hammers.wait_until_they_arrive();
    hammers.end();
    let is_lease = |flow: &Flow| {
        matches!(&flow.packet.content, Content::Ip(ip)
            if matches!(ip.transport, Transport::Udp { source: 67 | 68, destination: 67 | 68 }))
    };
    let mut leaks = home.leaks();
    leaks.retain(|flow| flow.packet.direction == Direction::Received && !is_lease(flow));
    assert!(leaks.is_empty(), "{leaks:#?}");
    assert_seen_without_a_policy(&home);
}

fn policy_that_changes_under_open_connections_leaks_nothing() {
    let home = Home::with_tunnels();
    let (a, b) = (&home.lab.provider_a, &home.lab.provider_b);
    let hammers = Hammers::through_a(&home);
    let downloads = ORIGIN.map(|to| {
        let probe = Probe::new(Action::Hold, SocketAddr::new(to, HTTP_PORT));
        let mut download = home.start(["--via", "a"], &probe);
        download.wait_until_ready().unwrap();
        download
    });
    let mut pids = hammers.pids();
    pids.extend(downloads.iter().map(lockne_lab::probe::Running::pid));

    for (tunnel, provider) in [("b", b), ("a", a), ("b", b)] {
        for pid in &pids {
            home.must(["attach", "--pid", &pid.to_string(), "--via", tunnel]);
        }
        // The downloads have ended when they were cut.
        pids = hammers.pids();
        wait_until_by(&home, provider);
    }

    for download in downloads {
        let report = download.finish().unwrap();
        let Outcome::Ended { bytes, why } = &report.outcome else {
            panic!("{report:?}");
        };
        assert!(*bytes > 0 && why == "ECONNABORTED", "{report:?}");
    }
    hammers.finish_beside(&addresses(b));
    assert_seen_without_a_policy(&home);
}
