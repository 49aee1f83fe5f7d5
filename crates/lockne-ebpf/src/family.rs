//! `tp_btf/sched_wakeup_new` and `sched_process_exit`: children inherit, and the dead are forgotten.
//!
//! The first runs in the parent, before the child does, so there is no race. (So does `sched_process_fork`. But since
//! Linux 7.0 a program there can be interrupted by another task, whose forks it would then miss on this processor:
//! `bpf_prog_get_recursion_context`. The other has a run queue's lock, `wake_up_new_task`.) The loads are typed: the
//! verifier checks the offsets against the kernel's own types, and lockdown does not matter. Both hooks may run twice for one event while a daemon replaces another. Needs Linux 5.5.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use lockne_abi::Member;

use crate::{
    config, map,
    process::{self, Standing},
};

/// Gives a child the policy of its parent, or none.
#[btf_tracepoint(function = "sched_wakeup_new")]
pub(crate) fn follow_fork(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(0);
    let child = Task::of(task);
    if !child.is_process() {
        return 0;
    }
    let parent = process::current_id();
    process::inherit_exec(parent, child.tgid, task);
    // The child's id may have belonged to another process before.
    match (process::of(parent), process::record(child.tgid)) {
        (standing, Some(record)) => {
            set(record, process::member(parent));
            if let Standing::Policed(_) = standing {
                map::count_fork(0);
            }
        }
        (Standing::Policed(_), None) => process::overflow(),
        (_, None) => {}
    }
    0
}

/// Forgets a process when its last thread ends.
#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn forget_exit(ctx: BtfTracePointContext) -> i32 {
    forget(&ctx)
}

/// The same for what [`forget_exit`] has missed, as on exec. Who is forgotten by neither is when its id is used again.
#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn forget_missed(ctx: BtfTracePointContext) -> i32 {
    forget(&ctx)
}

#[inline(always)]
fn forget(ctx: &BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(0);
    // SAFETY: the kernel passes a valid task.
    let signal: *const u8 = unsafe { load(task, config::task_signal()) };
    if signal.is_null() {
        return 0;
    }
    // Not the end of the leader: it may end before its threads.
    // SAFETY: a task's signal struct lives as long as the task.
    let live: i32 = unsafe { load(signal, config::signal_live()) };
    if live == 0
        && let Some(record) = process::record(Task::of(task).tgid)
    {
        set(record, Member::FREE);
    }
    0
}

/// The ids of a task, as the initial PID namespace counts them.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    pub(crate) tgid: u32,
    pid: u32,
}

impl Task {
    #[inline(always)]
    pub(crate) fn of(task: *const u8) -> Self {
        // SAFETY: the kernel passes valid tasks.
        unsafe {
            Self {
                tgid: load(task, config::task_tgid()),
                pid: load(task, config::task_pid()),
            }
        }
    }

    /// Whether this is the first thread of a process.
    #[inline(always)]
    fn is_process(self) -> bool {
        self.tgid == self.pid
    }
}

/// Writes only what changes: most processes have no policy, and their words share cache lines.
#[inline(always)]
pub(crate) fn set(record: *mut Member, member: Member) {
    // SAFETY: the map's own memory; the daemon changes it by single words only.
    unsafe {
        if record.read_volatile() != member {
            record.write_volatile(member);
        }
    }
}

/// Loads a member of a kernel struct.
///
/// # Safety
///
/// `base` must point to a struct that has a `T` at byte `offset`.
#[inline(always)]
pub(crate) unsafe fn load<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: by the caller's promise. Volatile: the offset has to stay one the verifier can follow.
    unsafe { base.add(offset as usize).cast::<T>().read_volatile() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_is_not_a_process() {
        assert!(Task { tgid: 7, pid: 7 }.is_process());
        assert!(!Task { tgid: 7, pid: 8 }.is_process());
    }
}
