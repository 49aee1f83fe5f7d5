//! What the hooks on calls with an address see: the same for IPv4 and IPv6.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    programs::SockAddrContext,
};
use lockne_abi::{Endpoint, Words};

use crate::lan;

/// The calls that come with a destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Connect,
    Sendmsg,
}

/// How the hooks of an IP version have addresses.
///
/// Every access is volatile: the verifier refuses merged ones with "invalid `bpf_context` access".
pub(crate) trait Family {
    /// The other end's address.
    fn peer(addr: *mut bpf_sock_addr) -> Words;

    /// Names another other end.
    fn set_peer(addr: *mut bpf_sock_addr, address: &Words);

    /// The address that the socket is bound to.
    fn source(sock: *mut bpf_sock) -> Words;
}

/// `AF_INET`.
pub(crate) struct V4;

/// `AF_INET6`, which talks IPv4 too.
pub(crate) struct V6;

impl Family for V4 {
    #[inline(always)]
    fn peer(addr: *mut bpf_sock_addr) -> Words {
        // SAFETY: the kernel passes a valid context.
        lan::mapped(unsafe { read_volatile(&raw const (*addr).user_ip4) })
    }

    #[inline(always)]
    fn set_peer(addr: *mut bpf_sock_addr, address: &Words) {
        // SAFETY: the kernel passes a valid context.
        unsafe { write_volatile(&raw mut (*addr).user_ip4, address[3]) }
    }

    #[inline(always)]
    fn source(sock: *mut bpf_sock) -> Words {
        // SAFETY: the caller has a valid socket.
        lan::mapped(unsafe { read_volatile(&raw const (*sock).src_ip4) })
    }
}

impl Family for V6 {
    #[inline(always)]
    fn peer(addr: *mut bpf_sock_addr) -> Words {
        // SAFETY: the kernel passes a valid context.
        let word = |i: usize| unsafe { read_volatile(&raw const (*addr).user_ip6[i]) };
        [word(0), word(1), word(2), word(3)]
    }

    #[inline(always)]
    fn set_peer(addr: *mut bpf_sock_addr, address: &Words) {
        // SAFETY: the kernel passes a valid context.
        let set = |i: usize| unsafe { write_volatile(&raw mut (*addr).user_ip6[i], address[i]) };
        set(0);
        set(1);
        set(2);
        set(3);
    }

    #[inline(always)]
    fn source(sock: *mut bpf_sock) -> Words {
        // SAFETY: the caller has a valid socket.
        let word = |i: usize| unsafe { read_volatile(&raw const (*sock).src_ip6[i]) };
        [word(0), word(1), word(2), word(3)]
    }
}

/// The other end.
#[inline(always)]
pub(crate) fn peer<F: Family>(ctx: &SockAddrContext) -> Endpoint {
    Endpoint {
        address: F::peer(ctx.sock_addr),
        port: port(ctx),
    }
}

/// The other end's port.
#[inline(always)]
pub(crate) fn port(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the kernel passes a valid context.
    unsafe { read_volatile(&raw const (*ctx.sock_addr).user_port) & 0xffff }
}

/// Names another other end.
#[inline(always)]
pub(crate) fn set_peer<F: Family>(ctx: &SockAddrContext, peer: &Endpoint) {
    F::set_peer(ctx.sock_addr, &peer.address);
    // SAFETY: the kernel passes a valid context.
    unsafe { write_volatile(&raw mut (*ctx.sock_addr).user_port, peer.port) }
}

/// The socket, if the kernel has one.
#[inline(always)]
pub(crate) fn socket(ctx: &SockAddrContext) -> Option<*mut bpf_sock> {
    // SAFETY: the kernel passes a valid context; the verifier demands the check for null.
    let sock = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    (!sock.is_null()).then_some(sock)
}
