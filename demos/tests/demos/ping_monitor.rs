//! Demo 03.

use crate::{
    run::Demo,
    traffic::{
        FAR, FAR6, NEAR, NEAR6, Pair, alone, assert_untouched, ping, ping_with, send, socket,
    },
};

const PATH: &str = env!("CARGO_BIN_EXE_03-ping-monitor");

crate::tests! {
    pings_of_both_families_are_shown_and_answered,
    answers_and_other_packets_are_not_shown,
    pings_of_one_sender_are_dropped,
    header_with_options_is_read_past,
    its_time_ends_it,
}

fn pings_of_both_families_are_shown_and_answered() {
    let pair = Pair::new();
    let demo = Demo::start(&pair.near, PATH, &["--iface", "near0"]);

    for sequence in 1..=5 {
        assert!(ping(&pair.far, NEAR.parse().unwrap(), 77, sequence));
        assert!(ping(&pair.far, NEAR6.parse().unwrap(), 78, sequence));
    }

    let ended = demo.interrupt().well();
    for sequence in 1..=5 {
        ended.says(&format!("ping {FAR} -> {NEAR}, id 77, sequence {sequence}"));
        ended.says(&format!(
            "ping {FAR6} -> {NEAR6}, id 78, sequence {sequence}"
        ));
    }
    ended.says("10 pings, 0 dropped, 0 not shown");
    assert_untouched(&pair.near, "near0");
}

fn answers_and_other_packets_are_not_shown() {
    let pair = Pair::new();
    let receiver = socket(&pair.near, &format!("{NEAR}:8"));
    let demo = Demo::start(&pair.near, PATH, &["--iface", "near0"]);

    assert!(ping(&pair.near, FAR.parse().unwrap(), 1, 1));
    assert!(ping(&pair.near, FAR6.parse().unwrap(), 1, 1));
    send(&pair.far, receiver.local_addr().unwrap(), 10, 64);

    demo.interrupt()
        .well()
        .says("0 pings, 0 dropped, 0 not shown");
}

fn pings_of_one_sender_are_dropped() {
    for (from, to, other) in [(FAR, NEAR, NEAR6), (FAR6, NEAR6, NEAR)] {
        let pair = Pair::new();
        let demo = Demo::start(&pair.near, PATH, &["--iface", "near0", "--drop-from", from]);

        assert!(!ping(&pair.far, to.parse().unwrap(), 5, 1));
        assert!(ping(&pair.far, other.parse().unwrap(), 5, 2));

        let ended = demo.interrupt().well();
        ended.says(&format!("ping {from} -> {to}, id 5, sequence 1, dropped"));
        ended.says("2 pings, 1 dropped, 0 not shown");
        assert!(ping(&pair.far, to.parse().unwrap(), 5, 3), "it still drops");
        assert_untouched(&pair.near, "near0");
    }
}

fn header_with_options_is_read_past() {
    let pair = Pair::new();
    let demo = Demo::start(&pair.near, PATH, &["--iface", "near0"]);

    // Four times "no operation": the IP header is 24 bytes long.
    assert!(ping_with(&pair.far, NEAR.parse().unwrap(), 6, 1, &[1; 4]));

    let ended = demo.interrupt().well();
    ended.says(&format!("ping {FAR} -> {NEAR}, id 6, sequence 1"));
}

fn its_time_ends_it() {
    let alone = alone();

    let ended = Demo::start(&alone, PATH, &["--duration", "200ms"])
        .finish()
        .well();

    ended.says("0 pings, 0 dropped, 0 not shown");
    assert_untouched(&alone, "lo");
}
