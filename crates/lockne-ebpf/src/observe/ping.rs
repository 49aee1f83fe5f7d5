//! Classifiers on ingress that report pings, and drop those of some senders.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::bpf_ktime_get_ns,
    macros::{classifier, map},
    maps::HashMap,
    programs::TcContext,
};
use lockne_abi::observe::Packet;

use crate::{headers, monitor, record};

#[map]
static REFUSED: HashMap<[u8; 16], u32> = HashMap::with_max_entries(1024, 0);

/// Pings with an Ethernet header.
#[classifier]
pub(crate) fn ethernet_ping(ctx: TcContext) -> i32 {
    watch::<true>(&ctx)
}

/// Pings that start with the IP header.
#[classifier]
pub(crate) fn bare_ping(ctx: TcContext) -> i32 {
    watch::<false>(&ctx)
}

#[inline(always)]
fn watch<const ETHERNET: bool>(ctx: &TcContext) -> i32 {
    let Some(scratch) = monitor::scratch() else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: it is from there.
    let packet = unsafe { monitor::packet(scratch) };
    headers::read::<ETHERNET, true>(ctx, packet);
    if headers::echo_request(packet).is_none() {
        return TC_ACT_UNSPEC;
    }
    record::count(|counts| counts.seen += 1);
    let source = packet.source;
    // SAFETY: nothing of the value is used.
    let is_refused = unsafe { REFUSED.get(source) }.is_some();
    if is_refused {
        packet.flags |= Packet::REFUSED;
    }
    // SAFETY: it takes nothing.
    packet.time = unsafe { bpf_ktime_get_ns() };
    monitor::send(ctx, scratch, 0);
    if is_refused {
        TC_ACT_SHOT
    } else {
        TC_ACT_UNSPEC
    }
}
