//! `cgroup/setsockopt`: a policed program cannot take its policy off a socket.
//!
//! `SO_MARK` needs `CAP_NET_ADMIN` or `CAP_NET_RAW`. Its other 24 bits stay the program's own. The hook sees
//! `io_uring` too, but no control messages: for those the guard is strict. Needs Linux 5.14, for the network namespace.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_current_task, bpf_get_netns_cookie},
    },
    macros::cgroup_sockopt,
    programs::SockoptContext,
};
use lockne_abi::MarkField;

use crate::{
    config, map,
    process::{self, Standing},
    strict,
    verdict::{ALLOW, Errno, refuse},
};

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
/// As much of a value as the kernel shows on every machine.
const SHOWN: i32 = 4096;

/// Refuses a mark that is not the policy's.
#[cgroup_sockopt(setsockopt)]
pub(crate) fn keep_mark(ctx: SockoptContext) -> i32 {
    let option = ctx.sockopt;
    // SAFETY: the kernel passes a valid context.
    let (level, name, length) = unsafe { ((*option).level, (*option).optname, (*option).optlen) };
    if length > SHOWN {
        // It takes the value from the program then; else it would fail with `EFAULT`.
        // SAFETY: as above; this field may be written.
        unsafe { (*option).optlen = 0 };
        return ALLOW;
    }
    if level != SOL_SOCKET || name != SO_MARK {
        return ALLOW;
    }
    let standing = process::of(tgid());
    if standing == Standing::Free {
        return ALLOW;
    }
    // SAFETY: as above.
    if unsafe { bpf_get_netns_cookie(option.cast()) } != config::netns_cookie() {
        return ALLOW;
    }
    if may_set(standing, mark(option), config::field()) {
        return ALLOW;
    }
    if let Standing::Policed(id) = standing {
        map::count_refusal(id);
    }
    refuse(Errno::NotPermitted)
}

/// The process that runs now.
#[inline(always)]
fn tgid() -> u32 {
    if config::has_option_pid() != 0 {
        return (bpf_get_current_pid_tgid() >> 32) as u32;
    }
    // SAFETY: it takes nothing.
    let task = unsafe { bpf_get_current_task() };
    strict::read(task, config::task_tgid()).unwrap_or(u32::MAX)
}

#[inline(always)]
fn may_set(standing: Standing, mark: Option<u32>, field: MarkField) -> bool {
    match (standing, mark) {
        (Standing::Free, _) => true,
        (Standing::Policed(id), Some(mark)) => field.policy(mark) == id,
        _ => false,
    }
}

/// The mark that is asked for; the kernel refuses a shorter value by itself.
#[inline(always)]
fn mark(option: *mut aya_ebpf::bindings::bpf_sockopt) -> Option<u32> {
    // SAFETY: the kernel passes a valid context; the verifier demands that the end is looked at.
    unsafe {
        let value = (*option).__bindgen_anon_2.optval.cast::<u32>();
        let end = (*option).__bindgen_anon_3.optval_end.cast::<u32>();
        (value.add(1) <= end).then(|| value.read_volatile())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_of_a_policed_process_keeps_its_policy() {
        let field = MarkField::DEFAULT;
        let policed = Standing::Policed(7);

        assert!(may_set(policed, Some(0x0700_ca6c), field));
        assert!(!may_set(policed, Some(0xca6c), field));
        assert!(!may_set(policed, Some(0x0800_0000), field));
        assert!(!may_set(policed, None, field));
    }

    #[test]
    fn process_that_may_be_a_lost_child_sets_none() {
        assert!(!may_set(Standing::Unknown, Some(0), MarkField::DEFAULT));
        assert!(may_set(Standing::Free, Some(0), MarkField::DEFAULT));
    }
}
