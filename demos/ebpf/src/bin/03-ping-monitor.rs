//! Reports each ping that arrives, and drops those of one sender.
//!
//! Hook: TC ingress. Idea: a packet is bytes, and the verifier lets no byte be read that may not be there.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::ptr::read_volatile;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::{classifier, map},
    maps::{PerCpuArray, RingBuf},
    programs::TcContext,
};
use demos_ebpf::{packet::mapped, ping_monitor::Ping, report};

demos_ebpf::program!();

#[map]
static PINGS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Whose pings are dropped; set before the program is loaded, constant from then on.
#[unsafe(no_mangle)]
static DROP_FROM: [u8; 16] = [0; 16];

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;

#[repr(C)]
struct Ethernet {
    destination: [u8; 6],
    source: [u8; 6],
    kind: [u8; 2],
}

#[repr(C)]
struct Ipv4 {
    version_and_length: u8,
    service: u8,
    len: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    source: [u8; 4],
    destination: [u8; 4],
}

#[repr(C)]
struct Ipv6 {
    version_and_flow: [u8; 4],
    len: [u8; 2],
    next: u8,
    hop_limit: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

#[repr(C)]
struct Echo {
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    id: [u8; 2],
    sequence: [u8; 2],
}

#[classifier]
fn watch_pings(ctx: TcContext) -> i32 {
    let Some(mut ping) = echo_request(&ctx) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: the static is there; volatile, for the loader writes it after compilation.
    let drop_from = unsafe { read_volatile(&raw const DROP_FROM) };
    ping.dropped = u32::from(ping.source == drop_from);
    report::send(&PINGS, &LOST, &ping);

    if ping.dropped == 1 {
        TC_ACT_SHOT
    } else {
        TC_ACT_UNSPEC
    }
}

#[inline(always)]
fn echo_request(ctx: &TcContext) -> Option<Ping> {
    let ethernet: &Ethernet = at(ctx, 0)?;
    let ip = size_of::<Ethernet>();
    match ethernet.kind {
        IPV4 => ping_v4(ctx, ip),
        IPV6 => ping_v6(ctx, ip),
        _ => None,
    }
}

#[inline(always)]
fn ping_v4(ctx: &TcContext, offset: usize) -> Option<Ping> {
    let ip: &Ipv4 = at(ctx, offset)?;
    // Only the first fragment of a packet has the ICMP header.
    let is_later_fragment = u16::from_be_bytes(ip.fragment) & 0x1fff != 0;
    if ip.protocol != ICMP || is_later_fragment {
        return None;
    }
    // Options may follow the header, so it says its length itself, in words of four bytes.
    let header = usize::from(ip.version_and_length & 0xf) * 4;
    let (source, destination) = (mapped(ip.source), mapped(ip.destination));
    ping(ctx, offset + header, ECHO_REQUEST, source, destination)
}

#[inline(always)]
fn ping_v6(ctx: &TcContext, offset: usize) -> Option<Ping> {
    let ip: &Ipv6 = at(ctx, offset)?;
    if ip.next != ICMPV6 {
        return None;
    }
    let icmp = offset + size_of::<Ipv6>();
    ping(ctx, icmp, ECHO_REQUEST_V6, ip.source, ip.destination)
}

#[inline(always)]
fn ping(
    ctx: &TcContext,
    offset: usize,
    request: u8,
    source: [u8; 16],
    destination: [u8; 16],
) -> Option<Ping> {
    let echo: &Echo = at(ctx, offset)?;
    if echo.kind != request {
        return None;
    }
    Some(Ping {
        source,
        destination,
        id: u16::from_be_bytes(echo.id),
        sequence: u16::from_be_bytes(echo.sequence),
        dropped: 0,
    })
}

/// The header at `offset`, if the packet is that long.
#[inline(always)]
fn at<T>(ctx: &TcContext, offset: usize) -> Option<&T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: the bytes are in the packet, and each `T` here is made of bytes alone.
    Some(unsafe { &*(start as *const T) })
}
