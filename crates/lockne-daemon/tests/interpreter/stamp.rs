//! `stamp_reply`: what arrives through a tunnel carries the policy's mark, and is counted.

use aya_ebpf::bindings::__sk_buff;
use etherparse::PacketBuilder;
use lockne_abi::{Counters, Policy, name};
use lockne_interpreter::{World, context};

use crate::{
    guard::marked_socket,
    run::{OTHERS, Outcome, counters, mark, run, set_policy},
};

/// `TC_ACT_UNSPEC`: the next program decides.
const GO_ON: u32 = u32::MAX;

const ETH0: u32 = 2;
const WG0: u32 = 3;

/// Lets `packet` arrive by `device`, where the stamp of policy 7 is on `wg0`.
fn arrive(packet: &[u8], device: u32, prepare: impl Fn(&mut World)) -> Outcome<__sk_buff> {
    run(name::STAMP_REPLY, packet, |world, packet| {
        let (wg0, policy) = (WG0.to_ne_bytes(), 7_u32.to_ne_bytes());
        assert!(world.map(name::DEVICES).set(&wg0, &policy));
        set_policy(world, 7, Policy::tunnel(WG0));
        prepare(world);
        let mut skb = context::skb(packet);
        (skb.ifindex, skb.mark) = (device, OTHERS);
        skb
    })
}

/// Two policies share the tunnel, and the socket of `tuple` has the mark of the second.
fn share(world: &mut World, tuple: &[u8]) {
    for id in [7, 8] {
        set_policy(world, id, Policy::tunnel(WG0).shared());
    }
    let socket = marked_socket(world, mark(8));
    world.sockets.insert(tuple.to_vec(), socket);
}

/// A reply, and the tuple of its socket.
fn udp4() -> (Vec<u8>, Vec<u8>) {
    let (from, to) = ([198, 51, 100, 1], [192, 0, 2, 1]);
    let mut bytes = Vec::new();
    let packet = PacketBuilder::ipv4(from, to, 64).udp(53, 4000);
    packet.write(&mut bytes, b"answer").unwrap();
    (bytes, [&from[..], &to, &[0, 53, 15, 160]].concat())
}

fn tcp6() -> (Vec<u8>, Vec<u8>) {
    let (from, to) = ([0xfd; 16], [0xfe; 16]);
    let mut bytes = Vec::new();
    let packet = PacketBuilder::ipv6(from, to, 64).tcp(443, 4000, 1, 1000);
    packet.write(&mut bytes, b"answer").unwrap();
    (bytes, [&from[..], &to, &[1, 187, 15, 160]].concat())
}

#[test]
fn packet_from_a_tunnel_gets_the_mark_and_keeps_the_bits_of_others() {
    let after = arrive(&[0; 60], WG0, |_| {});

    assert_eq!((after.verdict, after.context.mark), (GO_ON, mark(7)));
}

#[test]
fn packet_from_any_other_device_is_not_touched() {
    let mut after = arrive(&udp4().0, ETH0, |_| {});

    assert_eq!((after.verdict, after.context.mark), (GO_ON, OTHERS));
    assert_eq!(counters(&mut after.world, 7), Counters::default());
}

#[test]
fn packet_from_a_tunnel_is_counted_from_its_ip_header_on() {
    for (packet, _) in [udp4(), tcp6()] {
        // What Ethernet fills short frames up with.
        let padded = [&packet[..], &[0; 20]].concat();

        let mut after = arrive(&padded, WG0, |_| {});

        let counted = counters(&mut after.world, 7);
        assert_eq!(
            (counted.rx_packets, counted.rx_bytes),
            (1, packet.len() as u64)
        );
    }
}

#[test]
fn packet_too_large_for_its_header_is_counted_whole() {
    for (mut packet, _) in [udp4(), tcp6()] {
        let length = if packet[0] >> 4 == 4 { 2 } else { 4 };
        packet[length..length + 2].fill(0);

        let mut after = arrive(&packet, WG0, |_| {});

        assert_eq!(counters(&mut after.world, 7).rx_bytes, packet.len() as u64);
    }
}

#[test]
fn neighbours_talk_is_not_counted() {
    let mut solicitation = Vec::new();
    let packet = PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 255).icmpv6_raw(135, 0, [0; 4]);
    packet.write(&mut solicitation, &[0; 16]).unwrap();
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &[0; 20]].concat();

    let (mut igmp, _) = udp4();
    igmp[9] = 2;
    let (mut listener, _) = tcp6();
    // The first header is one from hop to hop.
    listener[6] = 0;

    for packet in [solicitation, arp, igmp, listener] {
        let mut after = arrive(&packet, WG0, |_| {});

        assert_eq!(counters(&mut after.world, 7), Counters::default());
    }
}

#[test]
fn packet_of_a_shared_tunnel_counts_for_the_policy_of_the_socket_that_gets_it() {
    for (packet, tuple) in [udp4(), tcp6()] {
        let mut after = arrive(&packet, WG0, |world| share(world, &tuple));
        assert_eq!(counters(&mut after.world, 8).rx_packets, 1);
        assert_eq!(counters(&mut after.world, 7).rx_packets, 0);

        let mut after = arrive(&packet, WG0, |world| share(world, b"somebody else's"));
        for id in [7, 8] {
            assert_eq!(counters(&mut after.world, id), Counters::default());
        }
    }
}

#[test]
fn socket_of_a_tunnel_that_its_policy_does_not_use_any_more_counts_nothing() {
    let (packet, tuple) = udp4();
    let mut after = arrive(&packet, WG0, |world| {
        share(world, &tuple);
        set_policy(world, 8, Policy::tunnel(ETH0));
    });

    assert_eq!(counters(&mut after.world, 8), Counters::default());
}
