//! Counts the traffic of a group of processes, and refuses some of it.
//!
//! Hooks: a cgroup's egress and ingress. Idea: ask *whose* packet it is, not where it passes. Attached to a cgroup, the
//! program runs for its processes alone, whatever device, route or namespace of the network they use.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    macros::{cgroup_skb, map},
    maps::{LpmTrie, PerCpuArray, lpm_trie::Key},
    programs::SkBuffContext,
};
use demos_ebpf::{
    cgroup_skb::{EGRESS, INGRESS, Traffic},
    packet::Ip,
};

demos_ebpf::program!();

/// The networks that are refused.
#[map]
static REFUSED: LpmTrie<[u8; 16], u8> = LpmTrie::with_max_entries(256, 0);

#[map]
static TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(2, 0);

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

#[cgroup_skb(egress)]
fn leave(ctx: SkBuffContext) -> i32 {
    judge(&ctx, EGRESS, Ip::read(&ctx.skb, 0).map(|ip| ip.destination))
}

#[cgroup_skb(ingress)]
fn arrive(ctx: SkBuffContext) -> i32 {
    judge(&ctx, INGRESS, Ip::read(&ctx.skb, 0).map(|ip| ip.source))
}

#[inline(always)]
fn judge(ctx: &SkBuffContext, direction: u32, peer: Option<[u8; 16]>) -> i32 {
    let Some(traffic) = TRAFFIC.get_ptr_mut(direction) else {
        return ALLOW;
    };
    // The longest prefix wins, as in a routing table.
    let is_refused = peer.is_some_and(|peer| REFUSED.get(Key::new(128, peer)).is_some());
    // SAFETY: the map gave a valid address, and this CPU's copy is ours alone.
    unsafe {
        if is_refused {
            (*traffic).refused += 1;
            return REFUSE;
        }
        (*traffic).packets += 1;
        (*traffic).bytes += u64::from(ctx.len());
    }
    ALLOW
}
