//! `cgroup/connect4,6` and `cgroup/sendmsg4,6`: brings older sockets under the policy of who uses them.
//!
//! A process can use sockets that were made before it had its policy, or that another process passed
//! to it. `connect` can still mark them in time: route and source address are chosen afterwards.
//! `sendmsg` cannot: the mark holds from the next datagram on, so this one is refused. Both then hand
//! questions for names to [`dns`].
//!
//! Needs Linux 5.13, for `bpf_setsockopt` in `sendmsg`.

use aya_ebpf::{
    helpers::generated::{bpf_get_netns_cookie, bpf_setsockopt},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};

use lockne_abi::Endpoint;

use crate::{
    call::{self, Call, Family, V4, V6},
    config, dns, lan, map,
    process::{self, Standing},
    verdict::{ALLOW, Errno, refuse},
};

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const LOOPBACK: u32 = 1;

/// Marks an older IPv4 socket, or refuses to connect one that the guard would silence.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    on_call::<V4>(&ctx, Call::Connect)
}

/// As [`connect4`] for IPv6 sockets, those that talk IPv4 included.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    on_call::<V6>(&ctx, Call::Connect)
}

/// Marks an older IPv4 socket, and refuses the datagram that would leave without the mark.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    on_call::<V4>(&ctx, Call::Sendmsg)
}

/// As [`sendmsg4`] for IPv6 sockets, those that talk IPv4 included.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    on_call::<V6>(&ctx, Call::Sendmsg)
}

#[inline(always)]
fn on_call<F: Family>(ctx: &SockAddrContext, call: Call) -> i32 {
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
            on_way::<F>(ctx, call, &socket, id)
        }
        (Marking::Changed, Call::Sendmsg) => refuse_counted(id, Errno::Again),
        (Marking::Failed, _) => refuse_counted(id, Errno::NotPermitted),
    }
}

/// Questions for names have rules of their own. What the guard would drop without a word is refused at
/// once: a socket that is bound to a device which the policy does not allow.
#[inline(always)]
fn on_way<F: Family>(ctx: &SockAddrContext, call: Call, socket: &Socket, id: u8) -> i32 {
    let device = socket.bound_device;
    let is_question = call::port(ctx) == Endpoint::DNS;
    if !is_question && (device == 0 || device == LOOPBACK) {
        return ALLOW;
    }
    let policy = map::policy(id);
    if is_question && !policy.is_direct() {
        return dns::ask::<F>(ctx, call, id, policy, device);
    }
    let is_allowed = device == 0 || device == LOOPBACK || policy.allows(device);
    if !is_allowed && !lan::has(id, lan::bytes(&F::peer(ctx.sock_addr))) {
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
        // SAFETY: checked for null.
        call::socket(ctx).map(|sk| unsafe {
            Self {
                mark: (*sk).mark,
                bound_device: (*sk).bound_dev_if,
            }
        })
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
