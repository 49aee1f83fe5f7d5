//! `tp_btf/sched_process_exec`: rules give a program its policy before its first instruction.
//!
//! The kernel has the new program in place and runs nothing of it yet, so there is no race: not with its
//! first packet, and not with a thread, for an exec leaves one only. Needs Linux 5.5, and typed loads
//! from 5.5; names are read by `bpf_probe_read_kernel_str`.
//!
//! Since Linux 7.0 a program on a tracepoint can be interrupted by another task, and the kernel then passes over it for
//! what that one does on the same processor (`bpf_prog_get_recursion_context`). So there is a second one behind it, for
//! what the first has missed; it would take two that are interrupted at once to miss it, too. Even then nothing leaks:
//! `process` tells from what the kernel counts that an exec was missed, and such a program gets no socket.
//!
//! The daemon writes a whole set of rules beside the one in force, then raises the generation. Before it
//! writes over the old one, it waits until nobody can be reading that (a grace period of RCU).

mod filter;
mod group;
mod named;
mod scratch;

use aya_ebpf::{
    macros::{btf_tracepoint, map},
    maps::Array,
    programs::BtfTracePointContext,
};
use lockne_abi::{InForce, Member, Outline};

use crate::{
    config,
    family::{Task, load, set},
    map, process, strict,
};

#[map]
static IN_FORCE: Array<InForce> = Array::with_max_entries(1, 0);

/// An exec, and the rules that decide it.
#[derive(Clone, Copy)]
struct Exec {
    /// Of the rules.
    generation: u32,
    outline: Outline,
    /// `struct task_struct`
    task: *const u8,
    /// `struct linux_binprm`
    program: *const u8,
    /// Which of the programs here decides.
    turn: u32,
}

/// What is executed, and where it is.
struct File {
    device: u32,
    inode: u64,
    /// `struct dentry`
    name: *const u8,
    /// The inode of its directory, on the same device.
    directory: u64,
}

/// Gives a program the policy of the first rule that names it. Without such a rule it keeps the one that
/// it was started under.
#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn decide_exec(ctx: BtfTracePointContext) -> i32 {
    decide(&ctx, 0)
}

/// The same for what [`decide_exec`] has missed.
#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn decide_missed(ctx: BtfTracePointContext) -> i32 {
    if config::has_misses() == 0 {
        return 0;
    }
    let task: *const u8 = ctx.arg(0);
    if process::is_exec_noted(Task::of(task).tgid, task) {
        return 0;
    }
    decide(&ctx, 1)
}

#[inline(always)]
fn decide(ctx: &BtfTracePointContext, turn: u32) -> i32 {
    let task: *const u8 = ctx.arg(0);
    let program: *const u8 = ctx.arg(2);
    let Some(in_force) = IN_FORCE.get_ptr(0) else {
        return 0;
    };
    // SAFETY: the map's own memory. Volatile: the daemon changes it at any time, but no outline while it is in force.
    let (generation, outline) = unsafe {
        let generation = (&raw const (*in_force).generation).read_volatile();
        let outlines = (&raw const (*in_force).outlines).cast::<Outline>();
        let slot = (generation & 1) as usize;
        (generation, outlines.add(slot).read_volatile())
    };
    let exec = Exec {
        generation,
        outline,
        task,
        program,
        turn,
    };
    let tgid = Task::of(task).tgid;
    // No `Option`: the compiler would carry along what is in none, which the verifier refuses.
    let record = process::record(tgid).unwrap_or(core::ptr::null_mut());
    let member = if record.is_null() {
        Member::FREE
    } else {
        // SAFETY: the map's own memory.
        unsafe { record.read_volatile() }
    };
    let mut policy = u32::from(member.policy());
    if !member.is_chosen() {
        let decided = exec.policy(member);
        if decided != 0 && decided != policy {
            policy = decided;
            if record.is_null() {
                process::overflow();
            // It may have been chosen by hand meanwhile.
            // SAFETY: as above.
            } else if unsafe { record.read_volatile() } == member {
                set(record, Member::by_rule(decided as u8));
                map::count_fork(1 + turn);
            }
        }
    }
    process::note_exec(tgid, task);
    if policy != 0 {
        // A program may gain rights by this, and it may have sockets that are older than its policy.
        strict::consider();
    }
    0
}

impl Exec {
    /// The policy that the rules say; 0 if they say none.
    ///
    /// Most programs are named by no rule: what finds that out is short, and apart.
    #[inline(always)]
    fn policy(self, member: Member) -> u32 {
        let policy = if self.outline.looks == 0 {
            0
        } else if filter::may_be_named(self) {
            named::first(self)
        } else {
            self.outline.everybody.into()
        };
        if policy == 0 && member == Member::FREE {
            return self.outline.fallback.into();
        }
        policy
    }

    /// Which of two sets of rules.
    #[inline(always)]
    fn slot(self) -> u32 {
        self.generation & 1
    }

    /// Whether any rule asks for this.
    #[inline(always)]
    fn looks(self, at: usize) -> bool {
        self.outline.looks >> at & 1 == 1
    }

    #[inline(always)]
    fn file(self) -> File {
        // SAFETY: what the kernel executes has a file, and that an inode, a name and a directory.
        unsafe {
            let file: *const u8 = load(self.program, config::exec_file());
            let inode: *const u8 = load(file, config::file_inode());
            let super_block: *const u8 = load(inode, config::inode_super());
            let name: *const u8 = load(file, config::file_dentry());
            let directory: *const u8 = load(name, config::dentry_parent());
            let directory: *const u8 = load(directory, config::dentry_inode());
            File {
                device: load(super_block, config::super_device()),
                inode: load(inode, config::inode_number()),
                name,
                directory: load(directory, config::inode_number()),
            }
        }
    }

    /// Whether the kernel has put an interpreter in the place of what was called.
    #[inline(always)]
    fn is_script(self) -> bool {
        // SAFETY: the kernel passes a valid exec.
        unsafe {
            let path: *const u8 = load(self.program, config::exec_filename());
            let interpreter: *const u8 = load(self.program, config::exec_interpreter());
            path != interpreter
        }
    }
}
