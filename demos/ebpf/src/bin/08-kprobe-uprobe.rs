//! Reports calls of a function, with what it returned and how long it took.
//!
//! Hooks: kprobe and kretprobe in the kernel, uprobe and uretprobe in libc. Idea: any function is a hook, if you
//! accept that it may be renamed tomorrow.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_probe_read_user_str_bytes,
        generated::bpf_ktime_get_ns,
    },
    macros::{kprobe, kretprobe, map, uprobe, uretprobe},
    maps::{LruHashMap, PerCpuArray, RingBuf},
    programs::{ProbeContext, RetProbeContext},
};
use demos_ebpf::{kprobe_uprobe::Call, report};

demos_ebpf::program!();

#[map]
static CALLS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The calls that have not come back, by thread: it is in one of them at a time.
#[map]
static OPEN: LruHashMap<u32, Call> = LruHashMap::with_max_entries(4096, 0);

#[kprobe]
fn enter_kernel(_: ProbeContext) -> u32 {
    enter(core::ptr::null());
    0
}

#[kretprobe]
fn leave_kernel(ctx: RetProbeContext) -> u32 {
    leave(ctx.ret());
    0
}

/// `int getaddrinfo(const char *node, ...)`
#[uprobe]
fn enter_libc(ctx: ProbeContext) -> u32 {
    enter(ctx.arg(0).unwrap_or(core::ptr::null()));
    0
}

#[uretprobe]
fn leave_libc(ctx: RetProbeContext) -> u32 {
    leave(ctx.ret());
    0
}

#[inline(always)]
fn enter(host: *const u8) {
    let both = bpf_get_current_pid_tgid();
    let mut call = Call {
        pid: (both >> 32) as u32,
        // SAFETY: takes nothing.
        took: unsafe { bpf_ktime_get_ns() },
        name: bpf_get_current_comm().unwrap_or_default(),
        ..Call::default()
    };
    if !host.is_null() {
        // The text is in the process's memory, so it is copied now: later it may be gone.
        // SAFETY: the helper checks the address; on an error the text stays empty.
        let _ = unsafe { bpf_probe_read_user_str_bytes(host, &mut call.host) };
    }
    let _ = OPEN.insert(both as u32, call, 0);
}

#[inline(always)]
fn leave(result: i32) {
    let thread = bpf_get_current_pid_tgid() as u32;
    let Some(call) = OPEN.get_ptr_mut(thread) else {
        return;
    };
    // SAFETY: the map gave a valid address, and no other thread uses this entry.
    let call = unsafe { &mut *call };
    // SAFETY: takes nothing.
    call.took = unsafe { bpf_ktime_get_ns() } - call.took;
    call.result = result;
    report::send(&CALLS, &LOST, call);
    let _ = OPEN.remove(thread);
}
