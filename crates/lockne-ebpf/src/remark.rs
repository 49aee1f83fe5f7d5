//! `cgroup/connect4,6` and `cgroup/sendmsg4,6`: brings older sockets under the policy of who uses them.
//!
//! A process can use sockets that were made before it had its policy, or that another process passed
//! to it. `connect` can still mark them in time: route and source address are chosen afterwards.
//! `sendmsg` cannot: the mark holds from the next datagram on, so this one is refused.
//!
//! Needs Linux 5.13, for `bpf_setsockopt` in `sendmsg`.

use core::ptr;

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_setsockopt},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};

use crate::{
    config, lan, map,
    process::{self, Standing},
    verdict::{ALLOW, Errno, refuse},
};

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const LOOPBACK: u32 = 1;

/// Marks an older IPv4 socket, or refuses to connect one that the guard would silence.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    on_call(&ctx, Call::Connect, destination4)
}

/// As [`connect4`] for IPv6 sockets, those that talk IPv4 included.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    on_call(&ctx, Call::Connect, destination6)
}

/// Marks an older IPv4 socket, and refuses the datagram that would leave without the mark.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    on_call(&ctx, Call::Sendmsg, destination4)
}

/// As [`sendmsg4`] for IPv6 sockets, those that talk IPv4 included.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    on_call(&ctx, Call::Sendmsg, destination6)
}

/// The calls that come with a destination.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Connect,
    Sendmsg,
}

#[inline(always)]
fn on_call(
    ctx: &SockAddrContext,
    call: Call,
    destination: impl FnOnce(*mut bpf_sock_addr) -> [u8; 16],
) -> i32 {
    let id = match caller(ctx) {
        Standing::Free => return ALLOW,
        Standing::Unknown => return refuse(Errno::NotPermitted),
        Standing::Policed(id) => id,
    };
    let Some(socket) = Socket::of(ctx) else {
        return refuse(Errno::NotPermitted);
    };
    match (socket.mark(ctx, id), call) {
        (Marking::Right, _) | (Marking::Changed, Call::Connect) => {
            on_device(&socket, id, || destination(ctx.sock_addr))
        }
        (Marking::Changed, Call::Sendmsg) => refuse_counted(id, Errno::Again),
        (Marking::Failed, _) => refuse_counted(id, Errno::NotPermitted),
    }
}

/// Refuses at once what the guard would drop without a word: a socket that is bound to a device which
/// the policy does not allow.
#[inline(always)]
fn on_device(socket: &Socket, id: u8, destination: impl FnOnce() -> [u8; 16]) -> i32 {
    let device = socket.bound_device;
    if device != 0
        && device != LOOPBACK
        && !map::policy(id).allows(device)
        && !lan::has(id, destination())
    {
        return refuse_counted(id, Errno::NetworkUnreachable);
    }
    ALLOW
}

#[inline(always)]
fn refuse_counted(id: u8, errno: Errno) -> i32 {
    map::count_refusal(id);
    refuse(errno)
}

/// The standing of the caller; free outside our network namespace.
#[inline(always)]
fn caller(ctx: &SockAddrContext) -> Standing {
    let standing = process::current();
    if standing == Standing::Free {
        return standing;
    }
    // SAFETY: the kernel passes a valid context.
    if unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) } == config::netns_cookie() {
        standing
    } else {
        Standing::Free
    }
}

/// What the socket's mark was, and is now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marking {
    Right,
    Changed,
    Failed,
}

/// What a hook may read of the socket.
struct Socket {
    mark: u32,
    bound_device: u32,
}

impl Socket {
    #[inline(always)]
    fn of(ctx: &SockAddrContext) -> Option<Self> {
        // SAFETY: the kernel passes a valid context; the verifier demands the check for null.
        unsafe {
            let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
            (!sk.is_null()).then(|| Self {
                mark: (*sk).mark,
                bound_device: (*sk).bound_dev_if,
            })
        }
    }

    /// Stamps policy `id` on the socket if it does not carry it.
    #[inline(always)]
    fn mark(&self, ctx: &SockAddrContext, id: u8) -> Marking {
        let mut mark = config::field().stamp(self.mark, id);
        if mark == self.mark {
            return Marking::Right;
        }
        // SAFETY: the value is as long as the length says.
        let result = unsafe {
            bpf_setsockopt(
                ctx.sock_addr.cast(),
                SOL_SOCKET,
                SO_MARK,
                (&raw mut mark).cast(),
                size_of::<u32>() as i32,
            )
        };
        if result == 0 {
            Marking::Changed
        } else {
            Marking::Failed
        }
    }
}

#[inline(always)]
fn destination4(addr: *mut bpf_sock_addr) -> [u8; 16] {
    // SAFETY: the kernel passes a valid context.
    lan::mapped(unsafe { (*addr).user_ip4 }.to_ne_bytes())
}

#[inline(always)]
fn destination6(addr: *mut bpf_sock_addr) -> [u8; 16] {
    let mut address = [0; 16];
    for (i, word) in address.chunks_exact_mut(4).enumerate() {
        // SAFETY: the kernel passes a valid context. Volatile: the verifier refuses merged reads of
        // it with "invalid bpf_context access".
        let part = unsafe { ptr::read_volatile(&raw const (*addr).user_ip6[i]) };
        word.copy_from_slice(&part.to_ne_bytes());
    }
    address
}
