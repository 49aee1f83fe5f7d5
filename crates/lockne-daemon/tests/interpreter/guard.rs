//! `guard_egress`: who may leave, and what is counted.

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use lockne_abi::{Counters, LanKey, Policy, name};
use lockne_interpreter::{World, context};

use crate::run::{
    CONFIG, NETNS_COOKIE, OTHERS, Outcome, bytes_of, counters, mark, pointer, run, set_policy,
};

const PASS: u32 = 1;
const DROP: u32 = 0;

const LOOPBACK: u32 = 1;
const ETH0: u32 = 2;
const WG0: u32 = 3;

const PRINTER: [u8; 4] = [192, 0, 2, 9];
const FAR: [u8; 4] = [198, 51, 100, 1];

/// A packet as `cgroup_skb` has it: from the IP header on.
fn udp4(to: [u8; 4]) -> Vec<u8> {
    udp(PacketBuilder::ipv4([192, 0, 2, 1], to, 64), 4001)
}

fn udp6(to: [u8; 16]) -> Vec<u8> {
    udp(PacketBuilder::ipv6([0xfd; 16], to, 64), 4001)
}

fn udp(ip: PacketBuilderStep<IpHeaders>, port: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let udp = ip.udp(4000, port);
    udp.write(&mut bytes, b"question").unwrap();
    bytes
}

/// Packets for a resolver, by UDP and TCP.
fn questions(ip: impl Fn() -> PacketBuilderStep<IpHeaders>) -> [Vec<u8>; 2] {
    let mut tcp = Vec::new();
    let syn = ip().tcp(4000, 53, 1, 1000).syn();
    syn.write(&mut tcp, &[]).unwrap();
    [udp(ip(), 53), tcp]
}

/// Sends `packet` out of `device` with `mark`.
fn leave(
    packet: &[u8],
    mark: u32,
    device: u32,
    prepare: impl Fn(&mut World, &mut __sk_buff),
) -> Outcome<__sk_buff> {
    run(name::GUARD_EGRESS, packet, |world, packet| {
        set_policy(world, 7, Policy::tunnel(WG0));
        let mut skb = context::skb(packet);
        (skb.mark, skb.ifindex) = (mark, device);
        prepare(world, &mut skb);
        skb
    })
}

/// Opens `network` past the tunnel of policy `id`.
fn open_lan(world: &mut World, id: u8, bits: u32, address: [u8; 16]) {
    let key = LanKey {
        policy: id,
        address,
    };
    let key = [&bits.to_ne_bytes(), bytes_of(&key)].concat();
    assert!(world.map(name::LAN).set(&key, &[1]));
}

/// A socket in the network namespace with this `cookie`, as `skb->sk` points to it.
fn socket_in(world: &mut World, cookie: u64) -> u64 {
    let mut net = [0; 64];
    let at = CONFIG.net_cookie as usize;
    net[at..at + 8].copy_from_slice(&cookie.to_ne_bytes());
    let net = world.block(&net);
    let mut sock = [0; 512];
    let at = CONFIG.sock_net as usize;
    sock[at..at + 8].copy_from_slice(&net.to_ne_bytes());
    world.block(&sock)
}

fn set_socket(skb: &mut __sk_buff, address: u64) {
    skb.__bindgen_anon_2.sk = pointer(address);
}

#[test]
fn packet_without_a_policy_passes_uncounted_on_any_device() {
    for device in [LOOPBACK, ETH0, WG0] {
        let mut after = leave(&udp4(FAR), crate::run::OTHERS, device, |_, _| {});

        assert_eq!(after.verdict, PASS);
        assert_eq!(counters(&mut after.world, 0), Counters::default());
    }
}

#[test]
fn policed_packet_leaves_by_its_tunnel_and_is_counted() {
    let packet = udp4(FAR);
    let mut after = leave(&packet, mark(7), WG0, |_, _| {});

    assert_eq!(after.verdict, PASS);
    let counted = counters(&mut after.world, 7);
    assert_eq!((counted.tx_packets, counted.refused), (1, 0));
    assert_eq!(counted.tx_bytes, packet.len() as u64);
}

#[test]
fn policed_packet_is_dropped_on_every_other_device_and_counted_as_refused() {
    for packet in [udp4(FAR), udp6([0xfd; 16])] {
        let mut after = leave(&packet, mark(7), ETH0, |_, _| {});

        assert_eq!(after.verdict, DROP);
        let counted = counters(&mut after.world, 7);
        assert_eq!((counted.tx_packets, counted.refused), (0, 1));
    }
}

#[test]
fn loopback_is_open_and_not_counted() {
    let mut after = leave(&udp4([127, 0, 0, 1]), mark(7), LOOPBACK, |_, _| {});

    assert_eq!(after.verdict, PASS);
    assert_eq!(counters(&mut after.world, 7), Counters::default());
}

#[test]
fn question_to_a_resolver_on_this_machine_is_dropped_but_under_direct() {
    let v4 = questions(|| PacketBuilder::ipv4([127, 0, 0, 1], [127, 0, 0, 53], 64));
    let v6 = questions(|| PacketBuilder::ipv6([0xfd; 16], [0xfd; 16], 64));
    for packet in v4.iter().chain(&v6) {
        let mut after = leave(packet, mark(7), LOOPBACK, |_, _| {});
        assert_eq!(after.verdict, DROP);
        assert_eq!(counters(&mut after.world, 7).refused, 1);

        let direct = leave(packet, mark(9), LOOPBACK, |world, _| {
            set_policy(world, 9, Policy::DIRECT);
        });
        assert_eq!(direct.verdict, PASS);
        assert_eq!(leave(packet, OTHERS, LOOPBACK, |_, _| {}).verdict, PASS);
        assert_eq!(leave(packet, mark(7), WG0, |_, _| {}).verdict, PASS);
    }
}

#[test]
fn question_is_dropped_even_where_the_local_network_is_open() {
    let ip = || PacketBuilder::ipv4([192, 0, 2, 1], FAR, 64);
    let open = |world: &mut World, _: &mut __sk_buff| {
        let key = LanKey {
            policy: 7,
            address: std::net::Ipv4Addr::from(FAR).to_ipv6_mapped().octets(),
        };
        let bits = LanKey::V4_OFFSET + 32;
        let key = [&bits.to_ne_bytes(), bytes_of(&key)].concat();
        assert!(world.map(name::LAN).set(&key, &[1]));
    };

    for packet in questions(ip) {
        assert_eq!(leave(&packet, mark(7), ETH0, open).verdict, DROP);
    }
    assert_eq!(leave(&udp(ip(), 4001), mark(7), ETH0, open).verdict, PASS);
}

#[test]
fn policy_that_nobody_has_set_lets_nothing_out() {
    assert_eq!(leave(&udp4(FAR), mark(8), WG0, |_, _| {}).verdict, DROP);
    assert_eq!(leave(&udp4(FAR), mark(8), ETH0, |_, _| {}).verdict, DROP);
}

#[test]
fn direct_policy_leaves_by_any_device() {
    let after = leave(&udp4(FAR), mark(9), ETH0, |world, _| {
        set_policy(world, 9, Policy::DIRECT);
    });

    assert_eq!(after.verdict, PASS);
}

#[test]
fn late_segmented_packet_counts_as_its_segments() {
    let mut after = leave(&udp4(FAR), mark(7), WG0, |_, skb| skb.gso_segs = 45);

    assert_eq!(counters(&mut after.world, 7).tx_packets, 45);
}

#[test]
fn open_network_is_reached_past_the_tunnel_and_only_it() {
    let mut mapped = [0; 16];
    mapped[10..12].copy_from_slice(&[0xff, 0xff]);
    mapped[12..15].copy_from_slice(&PRINTER[..3]);
    let open = |world: &mut World, _: &mut __sk_buff| {
        open_lan(world, 7, LanKey::V4_OFFSET + 24, mapped);
    };

    assert_eq!(leave(&udp4(PRINTER), mark(7), ETH0, open).verdict, PASS);
    assert_eq!(leave(&udp4(FAR), mark(7), ETH0, open).verdict, DROP);
}

#[test]
fn open_network_of_one_policy_is_not_open_to_another() {
    let address = [0x20; 16];
    let open = |world: &mut World, _: &mut __sk_buff| {
        set_policy(world, 8, Policy::tunnel(WG0));
        open_lan(world, 7, LanKey::V6_OFFSET + 64, address);
    };

    assert_eq!(leave(&udp6(address), mark(7), ETH0, open).verdict, PASS);
    assert_eq!(leave(&udp6(address), mark(8), ETH0, open).verdict, DROP);
}

#[test]
fn packet_of_neither_ip_version_or_too_short_to_tell_is_dropped() {
    for packet in [&[0x00; 40][..], &[0x45; 10], &[0x60; 30], &[]] {
        assert_eq!(leave(packet, mark(7), ETH0, |_, _| {}).verdict, DROP);
    }
}

#[test]
fn packet_of_another_network_namespace_is_left_alone() {
    let from = |cookie| {
        let mut after = leave(&udp4(FAR), mark(7), ETH0, |world, skb| {
            let socket = socket_in(world, cookie);
            set_socket(skb, socket);
        });
        (after.verdict, counters(&mut after.world, 7).refused)
    };

    assert_eq!(from(NETNS_COOKIE), (DROP, 1));
    assert_eq!(from(NETNS_COOKIE + 1), (PASS, 0));
}

#[test]
fn packet_whose_namespace_cannot_be_read_is_taken_for_ours() {
    // A socket whose pointer to the namespace leads nowhere.
    let after = leave(&udp4(FAR), mark(7), ETH0, |world, skb| {
        let socket = world.block(&[0; 512]);
        set_socket(skb, socket);
    });
    assert_eq!(after.verdict, DROP);

    // A socket that cannot be read itself.
    let after = leave(&udp4(FAR), mark(7), ETH0, |_, skb| {
        set_socket(skb, 0xdead_0000);
    });
    assert_eq!(after.verdict, DROP);
}

/// A socket whose mark is that of policy 7, seen by a guard that looks at sockets.
fn strict(world: &mut World, skb: &mut __sk_buff) {
    assert!(world.map(name::BSS).set(&[0; 4], &1_u32.to_ne_bytes()));
    let address = marked_socket(world, mark(7));
    set_socket(skb, address);
}

pub(crate) fn marked_socket(world: &mut World, mark: u32) -> u64 {
    let mut sock = [0; size_of::<bpf_sock>()];
    let at = std::mem::offset_of!(bpf_sock, mark);
    sock[at..at + 4].copy_from_slice(&mark.to_ne_bytes());
    world.block(&sock)
}

#[test]
fn datagram_without_its_sockets_mark_passes_a_guard_that_is_not_strict() {
    let after = leave(&udp4(FAR), 0, ETH0, |world, skb| {
        strict(world, skb);
        assert!(world.map(name::BSS).set(&[0; 4], &0_u32.to_ne_bytes()));
    });

    assert_eq!(after.verdict, PASS);
}

#[test]
fn strict_guard_drops_a_datagram_whose_mark_is_not_its_sockets() {
    for mark in [0, crate::run::OTHERS, mark(9)] {
        let direct = |world: &mut World, skb: &mut __sk_buff| {
            set_policy(world, 9, Policy::DIRECT);
            strict(world, skb);
        };

        let mut after = leave(&udp4(FAR), mark, ETH0, direct);

        assert_eq!(after.verdict, DROP, "{mark:#x}");
        assert_eq!(counters(&mut after.world, 7).refused, 1);
        assert_eq!(leave(&udp4(FAR), mark, WG0, direct).verdict, PASS);
    }
}

#[test]
fn strict_guard_passes_packets_of_sockets_without_a_policy() {
    let after = leave(&udp4(FAR), 0, ETH0, |world, skb| {
        strict(world, skb);
        let address = marked_socket(world, 0);
        set_socket(skb, address);
    });

    assert_eq!(after.verdict, PASS);
}
