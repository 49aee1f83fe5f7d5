//! Whether the guard must look at sockets, too.
//!
//! A program with `CAP_NET_ADMIN` or `CAP_NET_RAW` can mark a single datagram by a control message, which
//! changes the packet's mark and not the socket's. To ask each packet for its socket costs 22 ns, so it is
//! done only once such a program has come under a policy, or has made a socket there. The daemon looks at those
//! that it puts under one. What counts is what a program may have: it can take that up at any time, and no hook sees it.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel};

use crate::{config, map::STRICT};

const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;

/// Whether such a program was seen since these programs were loaded.
///
/// Two variables instead of a look-up, since each packet is asked: and each has one writer only. The one is
/// the kernel's, the other ([`ASSUMED`]) the daemon's. The map keeps the answer for the daemon that comes next.
#[unsafe(no_mangle)]
static mut RAISED: u32 = 0;

/// Until the daemon has seen that there was no such program before.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data")]
static mut ASSUMED: u32 = 0;

/// Whether the guard looks at sockets.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    // SAFETY: words, which are never written but as a whole.
    unsafe { (&raw const RAISED).read_volatile() | (&raw const ASSUMED).read_volatile() != 0 }
}

/// Turns it on if the process that runs now can mark packets. In doubt it can.
///
/// Out of line, for its stack.
#[inline(never)]
pub(crate) fn consider() -> u64 {
    // SAFETY: a word.
    let is_raised = unsafe { (&raw const RAISED).read_volatile() } != 0;
    if is_raised || !can_mark() {
        return 0;
    }
    if let Some(flag) = STRICT.get_ptr_mut(0) {
        // SAFETY: the map's own memory.
        unsafe { flag.write_volatile(1) }
    }
    // SAFETY: as above.
    unsafe { (&raw mut RAISED).write_volatile(1) }
    1
}

/// Whether it has one of the rights outside of user namespaces: inside, they are worth nothing here.
#[inline(always)]
fn can_mark() -> bool {
    // SAFETY: takes no arguments.
    let task = unsafe { bpf_get_current_task() };
    let Some(cred) = read::<u64>(task, config::task_cred()) else {
        return true;
    };
    let (Some(rights), Some(namespace)) = (
        read::<u64>(cred, config::cred_permitted()),
        read::<u64>(cred, config::cred_user_ns()),
    ) else {
        return true;
    };
    rights & (NET_ADMIN | NET_RAW) != 0
        && read::<u32>(namespace, config::user_ns_level()).is_none_or(|level| level == 0)
}

/// Reads a member of a kernel struct.
#[inline(always)]
pub(crate) fn read<T: Copy + Default>(base: u64, offset: u32) -> Option<T> {
    let mut value = T::default();
    let from = base.wrapping_add(u64::from(offset)) as *const _;
    // SAFETY: the helper checks the address, and writes no more than the length says.
    let failed =
        unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, from) };
    (failed == 0).then_some(value)
}
