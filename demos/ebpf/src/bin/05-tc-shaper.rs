//! Limits the rate of one address or one program.
//!
//! Hook: TC egress. Idea: each packet has an earliest time of departure. One number, the time when the next may
//! leave, is all there is to remember.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{bpf_ktime_get_ns, bpf_skb_cgroup_id},
    macros::{classifier, map},
    maps::{Array, PerCpuArray},
    programs::TcContext,
};
use demos_ebpf::{
    packet::{ETHERNET, Ip},
    report::count,
    tc_shaper::{DROPPED, Limit, PACE, SENT},
};

demos_ebpf::program!();

#[map]
static LIMIT: Array<Limit> = Array::with_max_entries(1, 0);

/// When the next packet may leave, in nanoseconds since the machine started.
#[map]
static NEXT: Array<u64> = Array::with_max_entries(1, 0);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

const SECOND: u64 = 1_000_000_000;
/// How early a packet may be and is still let through: TCP sends in bursts.
const BURST: u64 = SECOND / 50;
/// How long a packet may wait in the queue.
const PATIENCE: u64 = SECOND;

#[classifier]
fn shape(ctx: TcContext) -> i32 {
    let (Some(limit), Some(next)) = (LIMIT.get(0), NEXT.get_ptr_mut(0)) else {
        return TC_ACT_UNSPEC;
    };
    if !is_meant(&ctx, limit) {
        return TC_ACT_UNSPEC;
    }
    let len = u64::from(ctx.len());
    if limit.rate == 0 {
        count(&COUNTERS, SENT, len);
        return TC_ACT_UNSPEC;
    }

    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the map gave a valid address. If two CPUs read the same time, a packet too many passes.
    let departure = unsafe { *next }.max(now);
    let is_paced = limit.method == PACE;
    let too_early = if is_paced { PATIENCE } else { BURST };
    if departure - now > too_early {
        count(&COUNTERS, DROPPED, 1);
        return TC_ACT_SHOT;
    }
    // SAFETY: as above.
    unsafe { *next = departure + len * SECOND / limit.rate };
    if is_paced {
        // SAFETY: a valid packet; this hook may write the time, and `fq` obeys it.
        unsafe { (*ctx.skb.skb).tstamp = departure };
    }
    count(&COUNTERS, SENT, len);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn is_meant(ctx: &TcContext, limit: &Limit) -> bool {
    // SAFETY: a valid packet.
    if limit.cgroup != 0 && unsafe { bpf_skb_cgroup_id(ctx.skb.skb) } != limit.cgroup {
        return false;
    }
    limit.destination == [0; 16]
        || Ip::read(&ctx.skb, ETHERNET).is_some_and(|ip| ip.destination == limit.destination)
}
