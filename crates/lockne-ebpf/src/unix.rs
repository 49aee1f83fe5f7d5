//! `cgroup/connect_unix`: a policed program does not ask for names by the sockets of those who would ask
//! in its place: systemd-resolved, nscd (and nsncd, which has its place), and avahi.
//!
//! libc takes the refusal for "not there" and asks by itself, on port 53, where the policy's resolver
//! answers. It steers libc; a program that wants to can name the same socket by a link.
//!
//! Linux 6.7. Aya does not know the hook: it is declared as another one, and the daemon loads it itself.

use aya_ebpf::{
    helpers::{bpf_probe_read_kernel, generated::bpf_probe_read_kernel_str},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};

use crate::{
    config, map,
    process::{self, Standing},
    verdict::{ALLOW, Errno, refuse},
};

/// `sun_path` comes after the family.
const FAMILY: u32 = 2;
/// The length of `sun_path`.
const PATH: usize = 108;

/// Refuses to connect a policed program to the socket of a resolver.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect_unix(ctx: SockAddrContext) -> i32 {
    let id = match process::current() {
        Standing::Free => return ALLOW,
        Standing::Unknown => 0,
        Standing::Policed(id) => id,
    };
    if map::policy(id).is_direct() || !is_resolver(&ctx) {
        return ALLOW;
    }
    map::count_refusal(id);
    refuse(Errno::ConnectionRefused)
}

/// Whether the path is that of a resolver's socket. What cannot be read is none: the kernel will not find it
/// either.
#[inline(always)]
fn is_resolver(ctx: &SockAddrContext) -> bool {
    // The argument is the kernel's own `struct bpf_sock_addr_kern`, with a copy of the caller's address.
    let kernel = ctx.sock_addr;
    // SAFETY: the helper checks each address; the offsets are from the kernel's own types.
    let (address, length) = unsafe {
        let address: *const *const u8 = kernel.byte_add(config::unix_address() as usize).cast();
        let length: *const u32 = kernel.byte_add(config::unix_length() as usize).cast();
        (
            bpf_probe_read_kernel(address),
            bpf_probe_read_kernel(length),
        )
    };
    let (Ok(address), Ok(length)) = (address, length) else {
        return false;
    };
    if length <= FAMILY {
        return false;
    }
    let room = (length - FAMILY).min(PATH as u32);
    let mut path = [0_u64; 14];
    // SAFETY: as above; `path` has room for one byte more than a path has.
    let read = unsafe {
        let from = address.add(FAMILY as usize);
        // The end of the address ends the path, too.
        bpf_probe_read_kernel_str((&raw mut path).cast(), room + 1, from.cast())
    };
    let Ok(end) = usize::try_from(read) else {
        return false;
    };
    // It counts the zero at the end. An abstract name begins with one, so its length is 1.
    // SAFETY: as above.
    let path = unsafe { address.add(FAMILY as usize) };
    ends(path, end, b"/io.systemd.Resolve")
        || ends(path, end, b"/nscd/socket")
        || ends(path, end, b"/avahi-daemon/socket")
}

/// Whether what ends before `end` is `tail`.
#[inline(always)]
fn ends<const N: usize>(path: *const u8, end: usize, tail: &[u8; N]) -> bool {
    if end <= N || end > PATH + 1 {
        return false;
    }
    // SAFETY: the helper checks the address.
    let found = unsafe { bpf_probe_read_kernel(path.add(end - 1 - N).cast::<[u8; N]>()) };
    found.is_ok_and(|found| {
        let mut i = 0;
        let mut difference = 0;
        while i < N {
            difference |= found[i] ^ tail[i];
            i += 1;
        }
        difference == 0
    })
}
