//! Demo 01.

use std::time::{Duration, Instant};

use crate::{
    run::{Demo, command},
    traffic::{FAR, FAR6, NEAR, NEAR6, Pair, alone, assert_untouched, send, socket},
};

const PATH: &str = env!("CARGO_BIN_EXE_01-packet-monitor");

crate::tests! {
    each_datagram_is_shown_once,
    both_families_are_shown_with_ports,
    its_time_ends_it,
    unknown_device_is_named,
    logs_tell_what_was_loaded,
}

fn each_datagram_is_shown_once() {
    let alone = alone();
    let receiver = socket(&alone, "127.0.0.1:9999");
    let demo = Demo::start(&alone, PATH, &[]);

    send(&alone, receiver.local_addr().unwrap(), 100, 18);

    let ended = demo.interrupt().well();
    assert_eq!(ended.count("-> 127.0.0.1:9999, 60 bytes"), 100);
    ended.says("100 packets, 6000 bytes, 0 not shown");
    assert_untouched(&alone, "lo");
}

fn both_families_are_shown_with_ports() {
    let Pair { near, far } = Pair::new();
    let receivers = [
        socket(&far, &format!("{FAR}:53")),
        socket(&far, &format!("[{FAR6}]:53")),
    ];
    let demo = Demo::start(&near, PATH, &["--iface", "near0"]);

    for receiver in &receivers {
        send(&near, receiver.local_addr().unwrap(), 3, 100);
    }

    let ended = demo.interrupt().well();
    for (from, to, len) in [
        (format!("udp {NEAR}:"), format!("-> {FAR}:53, "), 142),
        (format!("udp [{NEAR6}]:"), format!("-> [{FAR6}]:53, "), 162),
    ] {
        let end = format!("{to}{len} bytes");
        let lines = ended.out.iter();
        let lines = lines.filter(|line| line.starts_with(&from) && line.ends_with(&end));
        assert_eq!(lines.count(), 3, "{ended:#?}");
    }
    assert_untouched(&near, "near0");
}

fn its_time_ends_it() {
    let alone = alone();
    let start = Instant::now();

    let ended = Demo::start(&alone, PATH, &["--iface", "lo", "--duration", "1"])
        .finish()
        .well();

    assert!(start.elapsed() >= Duration::from_secs(1));
    ended.says("0 packets, 0 bytes, 0 not shown");
    assert_untouched(&alone, "lo");
}

fn unknown_device_is_named() {
    let alone = alone();

    let ended = Demo::spawn(command(&alone, PATH, &["--iface", "nosuch0"])).finish();

    assert!(!ended.status.success());
    ended.complains("error: there is no network device `nosuch0`");
    ended.complains("hint: `ip link` lists the devices there are");
}

fn logs_tell_what_was_loaded() {
    let alone = alone();
    let mut command = command(&alone, PATH, &["--duration", "10ms"]);
    command.env("RUST_LOG", "debug");

    let ended = Demo::spawn(command).finish().well();

    ended.complains("loaded `monitor`");
}
