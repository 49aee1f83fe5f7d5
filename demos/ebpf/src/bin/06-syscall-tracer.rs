//! Counts system calls and how long they take.
//!
//! Hooks: the tracepoints `raw_syscalls/sys_enter` and `sys_exit`. Idea: two programs that work together through a
//! map, and sums made in the kernel: there are far too many events to send each.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::ptr::read_volatile;

use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, generated::bpf_ktime_get_ns},
    macros::{map, tracepoint},
    maps::{LruHashMap, PerCpuHashMap},
    programs::TracePointContext,
};
use demos_ebpf::syscall_tracer::{Call, Latency};

demos_ebpf::program!();

/// When a thread entered the system call it is in. A thread that ends there leaves its entry behind, so the oldest go.
#[map]
static ENTERED: LruHashMap<u32, u64> = LruHashMap::with_max_entries(16 * 1024, 0);

/// One count for each CPU: threads of a process run on several, and none waits for another.
#[map]
static CALLS: PerCpuHashMap<Call, u64> = PerCpuHashMap::with_max_entries(64 * 1024, 0);

#[map]
static LATENCIES: PerCpuHashMap<u32, Latency> = PerCpuHashMap::with_max_entries(16 * 1024, 0);

/// The process that is watched, 0 for all.
#[unsafe(no_mangle)]
static ONLY: u32 = 0;

/// The process that is not: who watches itself never comes to rest.
#[unsafe(no_mangle)]
static EXCEPT: u32 = 0;

/// Where the record has the number of the system call: `field:long id; offset:8; size:8`.
const NUMBER: usize = 8;

#[tracepoint]
fn enter(_: TracePointContext) -> u32 {
    let (pid, thread) = current();
    if is_watched(pid) {
        // SAFETY: takes nothing.
        let now = unsafe { bpf_ktime_get_ns() };
        // It cannot be full, and nobody could be told.
        let _ = ENTERED.insert(thread, now, 0);
    }
    0
}

#[tracepoint]
fn exit(ctx: TracePointContext) -> u32 {
    let (pid, thread) = current();
    // SAFETY: a word, written by this thread alone.
    if let Some(entered) = unsafe { ENTERED.get(thread) } {
        // SAFETY: takes nothing.
        let took = unsafe { bpf_ktime_get_ns() } - *entered;
        let _ = ENTERED.remove(thread);
        // SAFETY: the field is there.
        let number = unsafe { ctx.read_at::<u64>(NUMBER) }.unwrap_or_default() as u32;
        count_call(Call { pid, number });
        count_latency(pid, took);
    }
    0
}

#[inline(always)]
fn current() -> (u32, u32) {
    let both = bpf_get_current_pid_tgid();
    ((both >> 32) as u32, both as u32)
}

#[inline(always)]
fn is_watched(pid: u32) -> bool {
    // SAFETY: the statics are there; volatile, for the loader writes them after compilation.
    let (only, except) = unsafe {
        (
            read_volatile(&raw const ONLY),
            read_volatile(&raw const EXCEPT),
        )
    };
    pid != except && (only == 0 || pid == only)
}

#[inline(always)]
fn count_call(call: Call) {
    if CALLS.get_ptr(call).is_none() {
        // `BPF_NOEXIST`: another thread may have been faster.
        let _ = CALLS.insert(call, 0, 1);
    }
    if let Some(count) = CALLS.get_ptr_mut(call) {
        // SAFETY: the map gave a valid address, and this CPU's copy is ours alone.
        unsafe { *count += 1 };
    }
}

#[inline(always)]
fn count_latency(pid: u32, took: u64) {
    if LATENCIES.get_ptr(pid).is_none() {
        let latency = Latency {
            name: bpf_get_current_comm().unwrap_or_default(),
            ..Latency::default()
        };
        let _ = LATENCIES.insert(pid, latency, 1);
    }
    if let Some(latency) = LATENCIES.get_ptr_mut(pid) {
        // The mask is for the verifier, which does not know what a logarithm is.
        let slot = took.max(1).ilog2().min(31) as usize & 31;
        // SAFETY: as above.
        unsafe { (*latency).slots[slot] += 1 };
    }
}
