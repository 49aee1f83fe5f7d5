//! Which policy a process has.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::bpf_get_current_task_btf};
use lockne_abi::{Member, PROCESSES_PER_PAGE};

use crate::{
    config,
    family::load,
    map::{EXECS, OVERFLOW, PROCESSES},
};

/// Under what a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No policy: lockne does not touch it.
    Free,
    /// This policy.
    Policed(u8),
    /// Its id is beyond the map since `kernel.pid_max` was raised, and at least one such process is
    /// the child of a policed one: it could be this one. Or rules were not asked when it executed what it is.
    Unknown,
}

/// The standing of the process that runs now.
#[inline(always)]
pub(crate) fn current() -> Standing {
    let tgid = current_id();
    // Who has chosen is not asked about.
    if config::has_misses() != 0 && !member(tgid).is_chosen() && is_exec_missed(tgid) {
        return Standing::Unknown;
    }
    of(tgid)
}

/// The id of the process that runs now.
#[inline(always)]
pub(crate) fn current_id() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Whether the process `tgid`, which runs now, has executed something that no hook saw. Of what is older than lockne,
/// and has executed nothing since, nothing is known.
#[inline(always)]
fn is_exec_missed(tgid: u32) -> bool {
    // SAFETY: it takes nothing.
    let task = unsafe { bpf_get_current_task_btf() };
    let noted = noted_exec(tgid);
    noted != 0 && noted != execution(task.cast())
}

/// Whether it is noted what the process `tgid`, with this task, executes.
#[inline(always)]
pub(crate) fn is_exec_noted(tgid: u32, task: *const u8) -> bool {
    noted_exec(tgid) == execution(task)
}

/// Notes what `task`, of the process `tgid`, executes: rules have been asked.
#[inline(always)]
pub(crate) fn note_exec(tgid: u32, task: *const u8) {
    if config::has_misses() != 0
        && let Some(noted) = exec(tgid)
    {
        // SAFETY: the map's own memory.
        unsafe { noted.write_volatile(execution(task)) }
    }
}

/// Notes that the process `child`, with this task, is the same program as its parent. If that was missed, this is, too.
#[inline(always)]
pub(crate) fn inherit_exec(parent: u32, child: u32, task: *const u8) {
    if config::has_misses() != 0
        && let Some(noted) = exec(child)
    {
        let of_parent = noted_exec(parent);
        let of_child = if of_parent == 0 {
            execution(task)
        } else {
            of_parent
        };
        // SAFETY: the map's own memory.
        unsafe { noted.write_volatile(of_child) }
    }
}

/// How often a task has executed something, itself or who it is a copy of, in a byte that is not 0.
#[inline(always)]
fn execution(task: *const u8) -> u8 {
    // SAFETY: the kernel gives out valid tasks.
    let count: u64 = unsafe { load(task, config::task_exec_id()) };
    (count % 255 + 1) as u8
}

/// What is noted of the process `tgid`; 0 if nothing.
#[inline(always)]
fn noted_exec(tgid: u32) -> u8 {
    // SAFETY: the map's own memory.
    exec(tgid).map_or(0, |noted| unsafe { noted.read_volatile() })
}

#[inline(always)]
fn exec(tgid: u32) -> Option<*mut u8> {
    if tgid >= config::max_processes() {
        return None;
    }
    let page = EXECS.get_ptr_mut(tgid / PROCESSES_PER_PAGE)?;
    // SAFETY: the remainder is within the page.
    Some(unsafe { page.cast::<u8>().add((tgid % PROCESSES_PER_PAGE) as usize) })
}

/// The standing of the process `tgid`.
#[inline(always)]
pub(crate) fn of(tgid: u32) -> Standing {
    match record(tgid) {
        // SAFETY: the map's own memory; the daemon changes it by single words only.
        Some(record) => standing(Some(unsafe { record.read_volatile() }), false),
        None => standing(None, has_overflowed()),
    }
}

/// What is written down of the process `tgid`; a process beyond the map is free.
#[inline(always)]
pub(crate) fn member(tgid: u32) -> Member {
    // SAFETY: the map's own memory; the daemon changes it by single words only.
    record(tgid).map_or(Member::FREE, |record| unsafe { record.read_volatile() })
}

/// The word that holds the policy of the process `tgid`, if the map goes that far.
#[inline(always)]
pub(crate) fn record(tgid: u32) -> Option<*mut Member> {
    if tgid >= config::max_processes() {
        return None;
    }
    let page = PROCESSES.get_ptr_mut(tgid / PROCESSES_PER_PAGE)?;
    // SAFETY: the remainder is within the page.
    Some(unsafe {
        page.cast::<Member>()
            .add((tgid % PROCESSES_PER_PAGE) as usize)
    })
}

/// Remembers for good that the map was too small for the child of a policed process.
#[inline(always)]
pub(crate) fn overflow() {
    if let Some(flag) = OVERFLOW.get_ptr_mut(0) {
        // SAFETY: the map's own memory.
        unsafe { flag.write_volatile(1) }
    }
}

#[inline(always)]
fn has_overflowed() -> bool {
    OVERFLOW.get(0).is_some_and(|flag| *flag != 0)
}

#[inline(always)]
fn standing(member: Option<Member>, overflowed: bool) -> Standing {
    match member.map(Member::policy) {
        Some(0) => Standing::Free,
        Some(id) => Standing::Policed(id),
        None if overflowed => Standing::Unknown,
        None => Standing::Free,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_beyond_the_map_is_free_until_a_policed_child_was_lost() {
        assert_eq!(standing(None, false), Standing::Free);
        assert_eq!(standing(None, true), Standing::Unknown);
    }

    #[test]
    fn recorded_process_is_known_even_after_a_child_was_lost() {
        assert_eq!(standing(Some(Member::FREE), true), Standing::Free);
        assert_eq!(
            standing(Some(Member::by_rule(7)), true),
            Standing::Policed(7)
        );
        assert_eq!(
            standing(Some(Member::chosen(7)), true),
            Standing::Policed(7)
        );
    }
}
