//! Packets: those of the lab's sniffer, which counts leaks, and of `lockne monitor`. Both see the same
//! addresses. The first byte says what the wire calls it.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use lockne_core::filter::{self, Link};

#[expect(dead_code, reason = "the lab's own use of it")]
#[path = "../../crates/lockne-lab/src/packet.rs"]
mod packet;

use packet::{Content, Direction, Flow, Packet};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let ethertype = match kind % 4 {
        0 => 0x0800,
        1 => 0x86dd,
        2 => 0x0806,
        _ => u16::from(*kind),
    };
    let seen = Packet::parse(Direction::Sent, ethertype, bytes);
    let endpoints =
        ["192.0.2.1:51820", "[2001:db8::1]:51820"].map(|it| it.parse().expect("an address"));
    let _leaks = seen.leaks(&endpoints);
    let flow = Flow {
        packet: seen.clone(),
        packets: 1,
        bytes: 1,
    };
    assert!(!flow.to_string().is_empty());

    let ethernet = filter::packet(bytes, Link::Ethernet);
    assert_eq!(ethernet.length as usize, bytes.len());
    let bare = filter::packet(bytes, Link::Bare);
    if let Content::Ip(ip) = &seen.content {
        assert_eq!(
            (bare.source, bare.destination),
            (mapped(ip.source), mapped(ip.destination))
        );
    }
});

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
