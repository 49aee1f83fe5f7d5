//! Which policy a process has.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use lockne_abi::{Member, PROCESSES_PER_PAGE};

use crate::{
    config,
    map::{OVERFLOW, PROCESSES},
};

/// Under what a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No policy: lockne does not touch it.
    Free,
    /// This policy.
    Policed(u8),
    /// Its id is beyond the map since `kernel.pid_max` was raised, and at least one such process is
    /// the child of a policed one: it could be this one.
    Unknown,
}

/// The standing of the process that runs now.
#[inline(always)]
pub(crate) fn current() -> Standing {
    of((bpf_get_current_pid_tgid() >> 32) as u32)
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
