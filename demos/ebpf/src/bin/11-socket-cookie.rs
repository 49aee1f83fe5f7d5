//! Finds the process behind a packet, in two ways.
//!
//! Hooks: a cgroup's new sockets, and its egress. Idea: a packet has no process, but a socket is made by one. Either its
//! number, the cookie, leads to what was noted then; or what was decided then is on the packet, as its mark.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, generated::bpf_get_socket_cookie},
    macros::{cgroup_skb, cgroup_sock, map},
    maps::{LruHashMap, PerCpuArray},
    programs::{SkBuffContext, SockContext},
};
use demos_ebpf::{
    report::count,
    socket_cookie::{BYTES, MARK, Owner, PACKETS},
};

demos_ebpf::program!();

/// Who made the socket with this cookie. If there are more sockets than entries, the oldest lose their owner.
#[map]
static OWNERS: LruHashMap<u64, Owner> = LruHashMap::with_max_entries(16 * 1024, 0);

#[map]
static MARKED: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

const ALLOW: i32 = 1;

/// The first way, as in the talk: note the process under the socket's cookie.
#[cgroup_sock(sock_create)]
fn note_owner(ctx: SockContext) -> i32 {
    // SAFETY: the kernel passes a valid socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock.cast()) };
    let owner = Owner {
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        name: bpf_get_current_comm().unwrap_or_default(),
        ..Owner::default()
    };
    let _ = OWNERS.insert(cookie, owner, 0);
    ALLOW
}

/// And look it up for each packet.
#[cgroup_skb(egress)]
fn find_owner(ctx: SkBuffContext) -> i32 {
    // SAFETY: the kernel passes a valid packet.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    if let Some(owner) = OWNERS.get_ptr_mut(cookie) {
        // SAFETY: the map gave a valid address. Two packets of one socket may be counted as one.
        unsafe {
            (*owner).packets += 1;
            (*owner).bytes += u64::from(ctx.len());
        }
    }
    ALLOW
}

/// The second way, as lockne does it: decide at once, and write the decision on the socket.
#[cgroup_sock(sock_create)]
fn mark_socket(ctx: SockContext) -> i32 {
    // SAFETY: the kernel passes a valid socket, and lets this hook write its mark.
    unsafe { (*ctx.sock).mark = MARK };
    ALLOW
}

/// The kernel copies it to each packet, so there is nothing to look up.
#[cgroup_skb(egress)]
fn read_mark(ctx: SkBuffContext) -> i32 {
    // SAFETY: the kernel passes a valid packet.
    if unsafe { (*ctx.skb.skb).mark } == MARK {
        count(&MARKED, PACKETS, 1);
        count(&MARKED, BYTES, u64::from(ctx.len()));
    }
    ALLOW
}

/// What the clock costs that measures the others.
#[cgroup_skb(egress)]
fn nothing(_: SkBuffContext) -> i32 {
    ALLOW
}
