//! `cgroup_skb/egress`: the last check on what leaves, and its counters.
//!
//! Runs for each packet of the machine, so what is asked of all is one field of the packet. Helper
//! calls cost about 20 ns each; the way of a policed packet to its own device has none but the two map
//! look-ups, which the kernel inlines (the second one since 6.10).
//!
//! So the namespace of a packet is only asked for before it would be dropped. A packet of another
//! namespace that has our mark on a device with the same index, or under a policy that allows every
//! device, is counted as ours.
//!
//! A packet that was segmented late (GSO) counts as the packets it becomes; its bytes have the headers
//! once. Needs Linux 5.8, for `bpf_probe_read_kernel`; the network namespace cannot be asked for by a helper
//! here before 6.16.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_probe_read_kernel, bpf_sk_fullsock},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use lockne_abi::{Endpoint, Policy};

use crate::{config, lan, map, strict};

const LOOPBACK: u32 = 1;
const PASS: i32 = 1;
const DROP: i32 = 0;

/// How much of the head of `struct sock` is copied to find the namespace in it.
const SOCK_HEAD: usize = 128;

/// What the device and the policy say about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Loopback: not counted, and closed to questions for names only.
    Home,
    /// The policy allows the device.
    Allowed,
    /// It does not, so the destination has to be looked at.
    Elsewhere,
}

/// Drops a policed packet on a device that its policy does not allow.
#[cgroup_skb(egress)]
pub(crate) fn guard_egress(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel passes a valid packet.
    let mark = unsafe { (*skb).mark };
    let id = if strict::is_on() {
        policy_strictly(skb, mark)
    } else if mark == 0 {
        // Most packets have no mark at all; these need not even know where our bits are.
        return PASS;
    } else {
        config::field().policy(mark)
    };
    match id {
        0 => PASS,
        id => guard(skb, id),
    }
}

/// A packet of policy `id` leaves.
///
/// Out of line, and so are the others like it: what a function saves and restores, each packet that comes
/// to it pays for.
#[inline(never)]
fn guard(skb: *mut __sk_buff, id: u8) -> i32 {
    // SAFETY: the kernel passes a valid packet.
    let device = unsafe { (*skb).ifindex };
    match way(map::policy(id), device) {
        Way::Allowed => {
            count_sent(skb, id);
            PASS
        }
        way => look(skb, id, way == Way::Home),
    }
}

/// The policy of a packet that may have been given a mark which is not its socket's.
#[inline(never)]
fn policy_strictly(skb: *mut __sk_buff, mark: u32) -> u8 {
    let packet = config::field().policy(mark);
    strictest(packet, policy_of_socket(skb))
}

#[inline(always)]
fn way(policy: Policy, device: u32) -> Way {
    if device == LOOPBACK {
        Way::Home
    } else if policy.allows(device) {
        Way::Allowed
    } else {
        Way::Elsewhere
    }
}

/// The policy that counts: the socket's own, which no control message changes.
#[inline(always)]
fn strictest(packet: u8, socket: u8) -> u8 {
    if socket == 0 { packet } else { socket }
}

#[inline(always)]
pub(crate) fn packets(gso_segments: u32) -> u64 {
    u64::from(gso_segments.max(1))
}

#[inline(always)]
fn count_sent(skb: *mut __sk_buff, id: u8) {
    // SAFETY: the kernel passes a valid packet.
    let (bytes, packets) = unsafe { ((*skb).len, packets((*skb).gso_segs)) };
    map::count(id, |counters| {
        counters.tx_packets += packets;
        counters.tx_bytes += u64::from(bytes);
    });
}

/// The rare rest: to this machine, from another namespace, to the local network, or away.
///
/// Out of line, so that the packets above do not pay for its stack.
#[inline(never)]
fn look(skb: *mut __sk_buff, id: u8, is_home: bool) -> i32 {
    let ctx = &SkBuffContext::new(skb);
    // A resolver on this machine would ask on, and is not policed.
    if is_home && (!is_question(ctx) || map::policy(id).is_direct()) {
        return PASS;
    }
    if is_foreign(ctx.skb.skb) {
        return PASS;
    }
    // Not counted: what goes past the tunnel is not the tunnel's traffic.
    if lan::destination(ctx).is_some_and(|address| lan::has(id, address)) && !is_question(ctx) {
        return PASS;
    }
    map::count_refusal(id);
    DROP
}

/// Whether the packet is for the port of resolvers.
#[inline(always)]
fn is_question(ctx: &SkBuffContext) -> bool {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let Ok(first) = ctx.load::<u8>(0) else {
        return false;
    };
    let (protocol, ports) = match first >> 4 {
        4 => (ctx.load::<u8>(9), usize::from(first & 0xf) * 4),
        6 => (ctx.load::<u8>(6), 40),
        _ => return false,
    };
    matches!(protocol, Ok(TCP | UDP))
        && ctx
            .load::<u16>(ports + 2)
            .is_ok_and(|port| u32::from(port) == Endpoint::DNS)
}

/// Whether the packet's socket is in a network namespace that is not ours. In doubt it is ours.
#[inline(always)]
fn is_foreign(skb: *mut __sk_buff) -> bool {
    let mut head = [0_u64; SOCK_HEAD / size_of::<u64>()];
    let mut cookie = 0_u64;
    // SAFETY: the helper checks both addresses, and writes no more than the lengths say.
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        // From the start of the socket: the verifier forbids arithmetic on this pointer.
        let failed = sk.is_null()
            || bpf_probe_read_kernel((&raw mut head).cast(), SOCK_HEAD as u32, sk.cast()) != 0;
        if failed {
            return false;
        }
        let net = head[(config::sock_net() as usize / size_of::<u64>()) % head.len()];
        let at = net.wrapping_add(u64::from(config::net_cookie()));
        if bpf_probe_read_kernel(
            (&raw mut cookie).cast(),
            size_of::<u64>() as u32,
            at as *const _,
        ) != 0
        {
            return false;
        }
    }
    cookie != config::netns_cookie()
}

/// The policy in the mark of the packet's socket, which sends or receives it; 0 if there is none.
#[inline(always)]
fn policy_of_socket(skb: *mut __sk_buff) -> u8 {
    // SAFETY: the kernel passes a valid packet; the verifier demands both checks for null.
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return 0;
        }
        let sk = bpf_sk_fullsock(sk);
        if sk.is_null() {
            return 0;
        }
        config::field().policy((*sk).mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_open_to_every_policy() {
        for policy in [Policy::BLOCK, Policy::DIRECT, Policy::tunnel(3)] {
            assert_eq!(way(policy, LOOPBACK), Way::Home);
        }
    }

    #[test]
    fn only_the_tunnels_own_device_is_allowed() {
        assert_eq!(way(Policy::tunnel(3), 3), Way::Allowed);
        assert_eq!(way(Policy::tunnel(3), 2), Way::Elsewhere);
        assert_eq!(way(Policy::BLOCK, 2), Way::Elsewhere);
        assert_eq!(way(Policy::DIRECT, 2), Way::Allowed);
    }

    #[test]
    fn socket_outweighs_the_mark_that_a_datagram_was_given() {
        assert_eq!(
            (strictest(0, 7), strictest(9, 7), strictest(7, 0)),
            (7, 7, 7)
        );
        assert_eq!(strictest(0, 0), 0);
    }

    #[test]
    fn late_segmented_packet_counts_as_its_segments() {
        assert_eq!((packets(0), packets(1), packets(45)), (1, 1, 45));
    }
}
