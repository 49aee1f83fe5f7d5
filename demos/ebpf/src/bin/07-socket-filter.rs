//! Lets a socket see the UDP packets for one port alone.
//!
//! Hook: a socket's filter. Idea: the oldest use of BPF, from 1993, in today's clothes. Its twin in the classic
//! instructions is beside it in user space.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::ptr::read_volatile;

use aya_ebpf::{macros::socket_filter, programs::SkBuffContext};
use demos_ebpf::packet::{ETHERNET, Ip, is_v4, protocol};

demos_ebpf::program!();

#[unsafe(no_mangle)]
static PORT: u16 = 53;

/// How much of a packet the socket gets: everything.
const ALL: i64 = 0xffff;
/// Or nothing, as if the packet had not been there.
const NOTHING: i64 = 0;

#[socket_filter]
fn twin(ctx: SkBuffContext) -> i64 {
    match port(&ctx) {
        // SAFETY: the static is there; volatile, for the loader writes it after compilation.
        Some(port) if port == unsafe { read_volatile(&raw const PORT) } => ALL,
        _ => NOTHING,
    }
}

/// The port that a UDP packet is for.
#[inline(always)]
fn port(ctx: &SkBuffContext) -> Option<u16> {
    let ip = Ip::read(&ctx.skb, ETHERNET)?;
    if ip.protocol != protocol::UDP {
        return None;
    }
    if is_v4(&ip.source) {
        let fragment: [u8; 2] = ctx.skb.load(ETHERNET + 6).ok()?;
        if u16::from_be_bytes(fragment) & 0x1fff != 0 {
            return None;
        }
    }
    ip.ports(&ctx.skb).map(|(_, port)| port)
}
