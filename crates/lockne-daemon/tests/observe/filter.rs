//! The filter in the kernel, against the one that tcpdump has judged.

use std::cell::RefCell;

use lockne_core::filter::{Expression, Link, Program, Tunnel, packet};
use lockne_daemon::observe::{Devices, Monitor, Packet};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::sample::{Frame, filter, frame, packets};

fn program(text: &str) -> Program {
    let expression: Expression = text.parse().unwrap();
    Program::new(&expression, &|_| Tunnel::default()).unwrap()
}

fn monitor(text: &str) -> Monitor {
    Monitor::start(&program(text), false, 0, Devices::Named(Vec::new())).unwrap()
}

/// What the kernel reports of a packet, if it does.
fn reported(monitor: &mut Monitor, bytes: &[u8], link: Link) -> Option<Packet> {
    monitor.try_packet(bytes, link == Link::Ethernet).unwrap();
    let mut reported = None;
    monitor.drain(|packet, _| {
        assert!(reported.is_none(), "two packets for one");
        reported = Some(*packet);
        true
    });
    reported
}

pub(crate) fn kernel_takes_what_the_filter_says() {
    let monitor = RefCell::new(monitor(""));
    let cases = frame().prop_flat_map(|frame| (Just(frame), packets(frame), filter()));

    TestRunner::new(Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    })
    .run(&cases, |(frame, packets, text)| {
        let program = program(&text);
        let mut monitor = monitor.borrow_mut();
        monitor.set_filter(&program).unwrap();

        for bytes in packets {
            let known = packet(&bytes, frame.link());
            let reported = reported(&mut monitor, &bytes, frame.link());

            prop_assert_eq!(reported.is_some(), program.wants(&known), "{:02x?}", bytes);
            if let Some(reported) = reported {
                let plain = Packet {
                    time: 0,
                    ifindex: 0,
                    flags: reported.flags & !Packet::INCOMING,
                    ..reported
                };
                prop_assert_eq!(plain, known, "{:02x?}", bytes);
            }
        }
        Ok(())
    })
    .unwrap();
    let counts = monitor.borrow().counts().unwrap();
    assert!(counts.seen > counts.kept && counts.kept > 0 && counts.lost == 0);
}

pub(crate) fn constant_filters_load() {
    let bytes = [0; 60];
    for (text, is_wanted) in [
        ("", true),
        ("net 0.0.0.0/0", false),
        ("tunnel none", false),
        ("not tunnel none", true),
        ("tcp and tunnel none", false),
        ("tcp or not tunnel none", true),
    ] {
        let mut monitor = monitor(text);

        let reported = reported(&mut monitor, &bytes, Frame::Plain.link());

        assert_eq!(reported.is_some(), is_wanted, "{text}");
    }
}
