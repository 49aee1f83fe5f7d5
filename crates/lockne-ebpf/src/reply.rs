//! Classifier on the ingress of tunnel devices: stamps the policy on what arrives, and counts it.
//!
//! With the stamp, strict reverse path filters look replies up in the tunnel's own table
//! (`src_valid_mark`), and what the kernel answers by itself goes back the way it came
//! (`fwmark_reflect`). Attached by TCX (Linux 6.6), before that by clsact.
//!
//! It is counted here and not where sockets receive (`cgroup_skb/ingress`), where each packet of the machine would
//! pay the kernel's price for a program, about 50 ns.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_CURRENT_NETNS, TC_ACT_UNSPEC, bpf_hdr_start_off::BPF_HDR_START_NET,
    },
    helpers::generated::{
        bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_load_bytes_relative,
    },
    macros::classifier,
    programs::TcContext,
};

use crate::{
    config,
    guard::packets,
    map::{self, DEVICES},
};

/// Stamps the policy of the device on a packet, and lets the next program decide.
#[classifier]
pub(crate) fn stamp_reply(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel passes a valid packet; both fields may be read, and the mark written.
    unsafe {
        let device = (*skb).ifindex;
        if let Some(id) = DEVICES.get(device) {
            let id = *id as u8;
            let mark = config::field().stamp((*skb).mark, id);
            (*skb).mark = mark;
            count(skb, device, id);
        }
    }
    TC_ACT_UNSPEC
}

/// Counts a packet for policy `id`, or for that of its socket where several share the device.
#[inline(always)]
fn count(skb: *mut __sk_buff, device: u32, id: u8) {
    let (mut id, mut policy) = (id, map::policy(id));
    if policy.is_shared() {
        id = policy_of_receiver(skb);
        policy = map::policy(id);
    }
    if id == 0 || policy.is_direct() || !policy.allows(device) {
        return;
    }
    let bytes = length(skb);
    if bytes == 0 {
        return;
    }
    // SAFETY: the kernel passes a valid packet.
    let packets = packets(unsafe { (*skb).gso_segs });
    map::count(id, |counters| {
        counters.rx_packets += packets;
        counters.rx_bytes += bytes;
    });
}

/// The bytes of a packet from its IP header on; 0 if it is only what neighbours say to each other.
#[inline(always)]
fn length(skb: *mut __sk_buff) -> u64 {
    const IGMP: u8 = 2;
    const ICMPV6: u8 = 58;
    // Of neighbour discovery: what has come further than from a neighbour has less (RFC 4861, 6.1).
    const HOPS: u8 = 255;
    // Memberships of groups are told with it (RFC 3810, 5), and little else has it.
    const HOP_BY_HOP: u8 = 0;
    let Some(start) = load::<10>(skb, 0) else {
        return 0;
    };
    let (header, said) = match start[0] >> 4 {
        4 if start[9] != IGMP => (0, [start[2], start[3]]),
        6 if start[6] != HOP_BY_HOP && start[6..8] != [ICMPV6, HOPS] => (40, [start[4], start[5]]),
        _ => return 0,
    };
    match u16::from_be_bytes(said) {
        // More than can be said there. This may begin where the device's own header does.
        // SAFETY: the kernel passes a valid packet.
        0 => unsafe { (*skb).len.into() },
        said => header + u64::from(said),
    }
}

/// The policy of the socket that a packet is for; 0 if it has none, or the packet is of another protocol than TCP and
/// UDP.
///
/// Out of line, for its stack.
#[inline(never)]
fn policy_of_receiver(skb: *mut __sk_buff) -> u8 {
    // At its start a packet has the version, and where IPv4 has it the length of its header.
    let start = load::<1>(skb, 0).map_or(0, |[start]| start);
    match start >> 4 {
        4 => {
            let ports = u32::from(start & 0xf) * 4;
            load(skb, 9).map_or(0, |[protocol]| policy_by::<8>(skb, protocol, 12, ports))
        }
        6 => load(skb, 6).map_or(0, |[protocol]| policy_by::<32>(skb, protocol, 8, 40)),
        _ => 0,
    }
}

/// What `struct bpf_sock_tuple` has: both addresses, then both ports, in the order in which they are in a packet.
#[repr(C)]
struct Tuple<const ADDRESSES: usize> {
    addresses: [u8; ADDRESSES],
    ports: [u8; 4],
}

/// The policy of the socket that packets go to with the addresses and ports that are at these places.
#[inline(always)]
fn policy_by<const ADDRESSES: usize>(
    skb: *mut __sk_buff,
    protocol: u8,
    addresses: u32,
    ports: u32,
) -> u8 {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    if !matches!(protocol, TCP | UDP) {
        return 0;
    }
    // In its place at once: to 5.15's verifier, a copy of what could not be loaded is one of nothing.
    let mut tuple = Tuple {
        addresses: [0; ADDRESSES],
        ports: [0; 4],
    };
    if !fill(skb, addresses, &mut tuple.addresses) || !fill(skb, ports, &mut tuple.ports) {
        return 0;
    }
    // SAFETY: the kernel passes a valid packet, and the helper reads no more than the length says. The verifier sees to
    // it that the socket is given back.
    unsafe {
        let (skb, at) = (skb.cast(), (&raw mut tuple).cast());
        let length = size_of::<Tuple<ADDRESSES>>() as u32;
        let here = i64::from(BPF_F_CURRENT_NETNS).cast_unsigned();
        let socket = if protocol == TCP {
            bpf_sk_lookup_tcp(skb, at, length, here, 0)
        } else {
            bpf_sk_lookup_udp(skb, at, length, here, 0)
        };
        if socket.is_null() {
            return 0;
        }
        let mark = (*socket).mark;
        bpf_sk_release(socket.cast());
        config::field().policy(mark)
    }
}

/// Bytes of a packet, counted from its IP header on.
#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, at: u32) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    fill(skb, at, &mut bytes).then_some(bytes)
}

#[inline(always)]
fn fill(skb: *mut __sk_buff, at: u32, bytes: &mut [u8]) -> bool {
    let (to, length) = (bytes.as_mut_ptr().cast(), bytes.len() as u32);
    // SAFETY: the kernel passes a valid packet, and the helper writes no more than the length says.
    unsafe { bpf_skb_load_bytes_relative(skb.cast(), at, to, length, BPF_HDR_START_NET) == 0 }
}
