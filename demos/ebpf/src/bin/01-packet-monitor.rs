//! Reports each packet that leaves by a network device.
//!
//! Hook: TC egress. Idea: a program that looks, tells, and lets everything pass.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{classifier, map},
    maps::{PerCpuArray, RingBuf},
    programs::TcContext,
};
use demos_ebpf::{
    packet::{ETHERNET, Ip},
    packet_monitor::Packet,
    report,
};

demos_ebpf::program!();

#[map]
static PACKETS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

#[classifier]
fn monitor(ctx: TcContext) -> i32 {
    report::send(&PACKETS, &LOST, &describe(&ctx));

    // "No opinion": the next program decides, or the packet leaves.
    TC_ACT_UNSPEC
}

#[inline(always)]
fn describe(ctx: &TcContext) -> Packet {
    let mut packet = Packet {
        len: ctx.len(),
        ethertype: ethertype(ctx),
        ..Packet::default()
    };
    if let Some(ip) = Ip::read(&ctx.skb, ETHERNET) {
        packet.source = ip.source;
        packet.destination = ip.destination;
        packet.protocol = ip.protocol;
        if let Some((source, destination)) = ip.ports(&ctx.skb) {
            packet.source_port = source;
            packet.destination_port = destination;
        }
    }
    packet
}

#[inline(always)]
fn ethertype(ctx: &TcContext) -> u16 {
    // SAFETY: the kernel passes a valid packet.
    let protocol = unsafe { (*ctx.skb.skb).protocol };
    u16::from_be(protocol as u16)
}
