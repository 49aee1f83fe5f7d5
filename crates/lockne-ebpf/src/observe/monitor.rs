//! Classifiers that show packets: headers are read, the filter decides, and what it takes is reported.
//!
//! The filter is a program of its own, which user space writes for each monitor; it is reached by a tail
//! call and goes on to [`report`] by another. They share the packet of this CPU: classifiers run with
//! softirqs off, so none comes between. Every one lets the next program decide. TCX (Linux 6.6) or clsact.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    helpers::generated::{bpf_ktime_get_ns, bpf_ringbuf_output, bpf_skb_load_bytes},
    macros::{classifier, map},
    maps::{PerCpuArray, ProgramArray},
    programs::TcContext,
};
use lockne_abi::observe::{FILTER, MAX_CAPTURE, Packet};

use crate::{config, headers, owner, record};

/// A packet, and as much of its bytes as is copied.
#[repr(C)]
pub(crate) struct Scratch {
    packet: Packet,
    bytes: [u8; MAX_CAPTURE as usize],
}

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

#[map]
static STAGES: ProgramArray = ProgramArray::with_max_entries(2, 0);

/// What comes in, with an Ethernet header.
#[classifier]
pub(crate) fn ethernet_in(ctx: TcContext) -> i32 {
    watch::<true, true>(&ctx)
}

/// What goes out, with an Ethernet header.
#[classifier]
pub(crate) fn ethernet_out(ctx: TcContext) -> i32 {
    watch::<true, false>(&ctx)
}

/// What comes in, and starts with the IP header.
#[classifier]
pub(crate) fn bare_in(ctx: TcContext) -> i32 {
    watch::<false, true>(&ctx)
}

/// What goes out, and starts with the IP header.
#[classifier]
pub(crate) fn bare_out(ctx: TcContext) -> i32 {
    watch::<false, false>(&ctx)
}

#[inline(always)]
fn watch<const ETHERNET: bool, const INCOMING: bool>(ctx: &TcContext) -> i32 {
    if let Some(scratch) = SCRATCH.get_ptr_mut(0) {
        // SAFETY: the map's own memory, and nobody else on this CPU uses it now.
        let packet = unsafe { &mut (*scratch).packet };
        headers::read::<ETHERNET, INCOMING>(ctx, packet);
        record::count(|counts| counts.seen += 1);
        if config::needs_owner() != 0 {
            owner::find(ctx, packet);
        }
        // SAFETY: both are classifiers. It comes back only if there is no filter.
        unsafe { STAGES.tail_call(ctx, FILTER) };
    }
    TC_ACT_UNSPEC
}

/// Sends the packet that the filter took.
#[classifier]
pub(crate) fn report(ctx: TcContext) -> i32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: as above.
    let packet = unsafe { &mut (*scratch).packet };
    if config::needs_owner() == 0 {
        owner::find(&ctx, packet);
    }
    // SAFETY: it takes nothing.
    packet.time = unsafe { bpf_ktime_get_ns() };
    send(&ctx, scratch, config::capture());
    TC_ACT_UNSPEC
}

/// Sends what is known of a packet, and its first bytes.
#[inline(always)]
pub(crate) fn send(ctx: &TcContext, scratch: *mut Scratch, capture: u32) {
    let skb = ctx.skb.skb;
    const {
        assert!(MAX_CAPTURE.is_power_of_two(), "it is used as a mask");
    }
    // SAFETY: the kernel passes a valid packet.
    let mut length = unsafe { (*skb).len };
    if length > capture {
        length = capture;
    }
    if length > MAX_CAPTURE {
        length = MAX_CAPTURE;
    }
    // SAFETY: a variable of this function. The compiler must not know what the comparisons above say, or it takes
    // out the arithmetic below, which is all that the verifier learns a size's least value from (until Linux 6.1
    // at least, where a comparison with zero says nothing to it).
    let length = unsafe { core::ptr::read_volatile(&raw const length) };
    let ring = (&raw const record::RECORDS).cast_mut().cast::<c_void>();
    let mut copied = 0;
    if length > 0 {
        let some = ((length - 1) & (MAX_CAPTURE - 1)) + 1;
        // SAFETY: there is room for so many bytes, and the helper checks that the packet has them.
        let result =
            unsafe { bpf_skb_load_bytes(skb.cast(), 0, (&raw mut (*scratch).bytes).cast(), some) };
        if result == 0 {
            copied = some;
        }
    }
    let size = u64::from(copied) + size_of::<Packet>() as u64;
    // SAFETY: a packet and so many bytes are there.
    let kept = unsafe { bpf_ringbuf_output(ring, scratch.cast(), size, 0) == 0 };
    record::count_kept(kept);
}

/// The packet of this CPU, for [`crate::ping`].
#[inline(always)]
pub(crate) fn scratch() -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(0)
}

/// What is known of the packet in `scratch`.
///
/// # Safety
///
/// `scratch` is what [`scratch`] gave.
#[inline(always)]
pub(crate) unsafe fn packet<'a>(scratch: *mut Scratch) -> &'a mut Packet {
    // SAFETY: the map's own memory, and nobody else on this CPU uses it now.
    unsafe { &mut (*scratch).packet }
}
