//! Drops packets by sender and port.
//!
//! Hook: XDP. Idea: the earliest place there is, in the driver, before the kernel has made anything of the
//! packet; and a map that user space changes while the program runs.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    macros::{map, xdp},
    maps::{PerCpuArray, PerCpuHashMap},
    programs::XdpContext,
};
use demos_ebpf::{
    packet::{ETHERNET, Ip},
    report::count,
    xdp_filter::{DROPPED, PASSED, Rule},
};

demos_ebpf::program!();

/// What to drop, and how many packets each rule has dropped.
#[map]
static RULES: PerCpuHashMap<Rule, u64> = PerCpuHashMap::with_max_entries(1024, 0);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

#[xdp]
fn filter(ctx: XdpContext) -> u32 {
    if is_refused(&ctx).unwrap_or(false) {
        count(&COUNTERS, DROPPED, 1);
        XDP_DROP
    } else {
        count(&COUNTERS, PASSED, 1);
        XDP_PASS
    }
}

#[inline(always)]
fn is_refused(ctx: &XdpContext) -> Option<bool> {
    let ip = Ip::read(ctx, ETHERNET)?;
    let (_, port) = ip.ports(ctx).unwrap_or_default();
    let (source, any) = (ip.source, [0; 16]);

    Some(
        matches(Rule { source, port: 0 })
            || port != 0 && (matches(Rule { source, port }) || matches(Rule { source: any, port })),
    )
}

#[inline(always)]
fn matches(rule: Rule) -> bool {
    let Some(drops) = RULES.get_ptr_mut(rule) else {
        return false;
    };
    // SAFETY: the map gave a valid address, and this CPU's copy is ours alone.
    unsafe { *drops += 1 };
    true
}
