//! Demo 09.

use std::net::{SocketAddr, UdpSocket};

use crate::{
    run::{Demo, command},
    traffic::{FAR, FAR6, Pair, alone, cgroups, received, send, socket},
};

const PATH: &str = env!("CARGO_BIN_EXE_09-cgroup-skb");

crate::tests! {
    traffic_of_the_command_alone_is_counted,
    network_is_refused_to_the_command_alone,
    interrupt_ends_the_command_and_its_cgroup,
    its_time_ends_it,
    missing_command_is_named_and_leaves_no_cgroup,
}

fn traffic_of_the_command_alone_is_counted() {
    let pair = Pair::new();
    let v4 = socket(&pair.far, &format!("{FAR}:9"));
    let v6 = socket(&pair.far, &format!("[{FAR6}]:9"));
    let demo = sends(&pair, &[], &[format!("{FAR}:9"), format!("[{FAR6}]:9")]);
    // Somebody else's.
    send(&pair.near, v4.local_addr().unwrap(), 50, 1);

    let ended = demo.finish().well();

    // Ten of 100 bytes each: 128 with IPv4's and UDP's headers, 148 with IPv6's.
    ended.says("out: 20 packets, 2760 bytes, 0 refused");
    ended.says(" in: 0 packets, 0 bytes, 0 refused");
    assert_eq!((received(&v4), received(&v6)), (60, 10));
}

fn network_is_refused_to_the_command_alone() {
    for (network, expected) in [
        ("192.0.2.0/24", [0, 10]),
        ("2001:db8::2", [10, 0]),
        ("0.0.0.0/0", [0, 10]),
        ("::/0", [0, 0]),
        ("192.0.2.128/25", [10, 10]),
    ] {
        let pair = Pair::new();
        let v4 = socket(&pair.far, &format!("{FAR}:9"));
        let v6 = socket(&pair.far, &format!("[{FAR6}]:9"));

        let demo = sends(
            &pair,
            &["--refuse", network],
            &[format!("{FAR}:9"), format!("[{FAR6}]:9")],
        );

        let ended = demo.finish().well();
        assert_eq!([received(&v4), received(&v6)], expected, "{network}");
        let refused = 20 - expected[0] - expected[1];
        let out = &ended.out[0];
        assert!(
            out.ends_with(&format!(" {refused} refused")),
            "{network}: {out}"
        );
        send(&pair.near, v4.local_addr().unwrap(), 1, 1);
        assert_eq!(received(&v4), 1, "{network} is refused to others");
    }
}

fn interrupt_ends_the_command_and_its_cgroup() {
    let demo = Demo::start(&alone(), PATH, &["--", "sleep", "1000"]);
    let mine = format!("cgroup-skb-{}", demo.pid());
    assert_eq!(cgroups(&mine).len(), 1);

    let ended = demo.interrupt().well();

    ended.says("out: 0 packets, 0 bytes, 0 refused");
    assert!(cgroups(&mine).is_empty());
}

fn its_time_ends_it() {
    let demo = Demo::start(
        &alone(),
        PATH,
        &["--duration", "200ms", "--", "sleep", "1000"],
    );
    let mine = format!("cgroup-skb-{}", demo.pid());

    drop(demo.finish().well());

    assert!(cgroups(&mine).is_empty());
}

fn missing_command_is_named_and_leaves_no_cgroup() {
    let demo = Demo::spawn(command(&alone(), PATH, &["--", "no-such-command"]));
    let mine = format!("cgroup-skb-{}", demo.pid());

    let ended = demo.finish();

    assert!(!ended.status.success());
    ended.complains("error: cannot start `no-such-command`");
    assert!(cgroups(&mine).is_empty());
}

/// A demo whose command sends ten datagrams of 100 bytes to each address.
fn sends(pair: &Pair, options: &[&str], to: &[String]) -> Demo {
    let this = std::env::current_exe().unwrap();
    let mut arguments = options.to_vec();
    arguments.extend(["--", this.to_str().unwrap(), "datagrams"]);
    arguments.extend(to.iter().map(String::as_str));
    Demo::start(&pair.near, PATH, &arguments)
}

/// Sends ten datagrams of 100 bytes to each address.
pub(crate) fn datagrams(to: &[&str]) {
    for to in to {
        let to: SocketAddr = to.parse().unwrap();
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        for _ in 0..10 {
            // What is refused is an error.
            drop(socket.send_to(&[0; 100], to));
        }
    }
}
