//! `tp_btf/sched_process_exec` and `sched_process_exit`: which programs start, and how they end.
//!
//! Typed loads, as in the data plane: the verifier checks the offsets against the kernel's own types.
//! Needs Linux 5.8, for the ring buffer.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::{
        bpf_get_current_uid_gid,
        generated::{
            bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user,
        },
    },
    macros::{btf_tracepoint, map},
    maps::HashMap,
    programs::BtfTracePointContext,
};
use lockne_abi::observe::{ARGUMENTS, Exec, Exit, PATH};

use crate::{config, record};

#[map]
static RUNS: HashMap<u32, u64> = HashMap::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);

/// Reports a program that starts.
#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn see_exec(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(0);
    let program: *const u8 = ctx.arg(2);
    record::count(|counts| counts.seen += 1);
    // SAFETY: the kernel passes a valid task and a valid program; it takes nothing.
    let (pid, time) = unsafe { (load::<u32>(task, config::task_tgid()), bpf_ktime_get_ns()) };
    // Without room, the end of the program will not be told.
    let _ = RUNS.insert(pid, time, 0);
    let Some(mut entry) = record::RECORDS.reserve::<Exec>(0) else {
        record::count_kept(false);
        return 0;
    };
    let exec = entry.as_mut_ptr();
    // SAFETY: the entry is ours until it is submitted, and every field is written; the texts up to
    // the zero or the length that ends them.
    unsafe {
        (*exec).tag = Exec::TAG;
        (*exec).pid = pid;
        let parent: *const u8 = load(task, config::task_parent());
        (*exec).parent = if parent.is_null() {
            0
        } else {
            load(parent, config::task_tgid())
        };
        (*exec).uid = bpf_get_current_uid_gid() as u32;
        (*exec).time = time;
        (*exec).unused = 0;
        (*exec).path[0] = 0;
        let name = task.add(config::task_comm() as usize).cast::<c_void>();
        bpf_probe_read_kernel((&raw mut (*exec).name).cast(), 16, name);
        let path: u64 = load(program, config::program_filename());
        bpf_probe_read_kernel_str(
            (&raw mut (*exec).path).cast(),
            PATH as u32,
            path as *const c_void,
        );
        (*exec).arguments_len = arguments(task, &raw mut (*exec).arguments);
    }
    entry.submit(0);
    record::count_kept(true);
    0
}

/// Copies the arguments from the new program's memory, and returns how long they are.
///
/// # Safety
///
/// The task is the one that runs, and `to` can be written.
#[inline(always)]
unsafe fn arguments(task: *const u8, to: *mut [u8; ARGUMENTS]) -> u32 {
    // SAFETY: by the caller's promise; the helper checks the address.
    unsafe {
        let memory: *const u8 = load(task, config::task_mm());
        if memory.is_null() {
            return 0;
        }
        let start: u64 = load(memory, config::mm_arg_start());
        let end: u64 = load(memory, config::mm_arg_end());
        let whole = end.wrapping_sub(start);
        let mut length = whole;
        if length > ARGUMENTS as u64 {
            length = ARGUMENTS as u64;
        }
        if bpf_probe_read_user(to.cast(), length as u32, start as *const c_void) != 0 {
            return 0;
        }
        whole as u32
    }
}

/// Reports the end of a program that was seen to start, when its last thread ends.
#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn see_exit(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(0);
    // SAFETY: the kernel passes a valid task, and its signal struct lives as long as it does.
    unsafe {
        let signal: *const u8 = load(task, config::task_signal());
        if signal.is_null() || load::<i32>(signal, config::signal_live()) != 0 {
            return 0;
        }
        let pid: u32 = load(task, config::task_tgid());
        let Some(started) = RUNS.get(pid).copied() else {
            return 0;
        };
        let _ = RUNS.remove(pid);
        let exit = Exit {
            tag: Exit::TAG,
            pid,
            time: bpf_ktime_get_ns(),
            started,
            status: load(task, config::task_exit_code()),
            unused: 0,
        };
        record::count_kept(record::RECORDS.output::<Exit>(&exit, 0).is_ok());
    }
    0
}

/// Loads a member of a kernel struct.
///
/// # Safety
///
/// `base` must point to a struct that has a `T` at byte `offset`.
#[inline(always)]
unsafe fn load<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: by the caller's promise. Volatile: the offset has to stay one the verifier can follow.
    unsafe { ptr::read_volatile(base.add(offset as usize).cast()) }
}
