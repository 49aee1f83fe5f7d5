//! What the hooks on system calls answer.

use aya_ebpf::helpers::generated::bpf_set_retval;

use crate::config;

/// Numbers of `errno`, the same on every architecture that Linux has BPF for but MIPS and SPARC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Errno {
    NotPermitted = 1,
    Again = 11,
    ProtocolNotSupported = 93,
    NetworkUnreachable = 101,
    ConnectionRefused = 111,
    HostUnreachable = 113,
}

/// Lets the system call go on.
pub(crate) const ALLOW: i32 = 1;

/// Refuses the system call with `errno`; with `EPERM` before Linux 5.18, where the kernel decides it.
#[inline(always)]
pub(crate) fn refuse(errno: Errno) -> i32 {
    if errno != Errno::NotPermitted && config::has_set_retval() != 0 {
        // SAFETY: the helper takes any number; the daemon found it to exist.
        unsafe { bpf_set_retval(-(errno as i32)) };
    }
    0
}
