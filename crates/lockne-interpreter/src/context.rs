//! What programs get as their argument.

use aya_ebpf::bindings::{__sk_buff, bpf_sock, bpf_sock_addr, bpf_sockopt, xdp_md};

use crate::Packet;

/// The argument of a program: plain memory that it reads and writes.
///
/// # Safety
///
/// Every byte must be initialized, and every bit pattern valid.
pub unsafe trait Context {}

// SAFETY: integers and raw pointers; made by `zeroed` below, so that padding is initialized, too.
unsafe impl Context for __sk_buff {}
// SAFETY: as above.
unsafe impl Context for xdp_md {}
// SAFETY: integers only.
unsafe impl Context for bpf_sock {}
// SAFETY: as for `__sk_buff`.
unsafe impl Context for bpf_sock_addr {}
// SAFETY: as for `__sk_buff`.
unsafe impl Context for bpf_sockopt {}
// SAFETY: integers only. The arguments of a `tp_btf` program.
unsafe impl<const N: usize> Context for [u64; N] {}

/// A packet as TC and `cgroup_skb` see it.
#[must_use]
pub fn skb(packet: &Packet) -> __sk_buff {
    let (data, data_end) = packet.range();
    // SAFETY: integers and raw pointers may be zero.
    let empty: __sk_buff = unsafe { std::mem::zeroed() };
    __sk_buff {
        len: data_end - data,
        data,
        data_end,
        ..empty
    }
}

/// A packet as XDP sees it.
#[must_use]
pub fn xdp(packet: &Packet) -> xdp_md {
    let (data, data_end) = packet.range();
    // SAFETY: integers may be zero.
    let empty: xdp_md = unsafe { std::mem::zeroed() };
    xdp_md {
        data,
        data_end,
        data_meta: data,
        ..empty
    }
}

/// A call of `setsockopt` with nothing set.
#[must_use]
pub fn sockopt() -> bpf_sockopt {
    // SAFETY: integers and raw pointers may be zero.
    unsafe { std::mem::zeroed() }
}

/// A socket with nothing set.
#[must_use]
pub fn sock() -> bpf_sock {
    // SAFETY: integers may be zero.
    unsafe { std::mem::zeroed() }
}

/// A call of `connect` or `sendmsg` with nothing set.
#[must_use]
pub fn sock_addr() -> bpf_sock_addr {
    // SAFETY: integers and raw pointers may be zero.
    unsafe { std::mem::zeroed() }
}
