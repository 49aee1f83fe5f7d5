//! Which process a packet belongs to: the one that made its socket.
//!
//! `cgroup/sock_create` notes it on each new socket; on those that were there before, the loader does. A
//! socket that is accepted has the owner of its listener. What leaves carries its socket. What comes in
//! has none yet, so the socket that will get it is looked up, as the kernel does right after. Replies to
//! pings are found by the id of the request. Needs Linux 5.8, for `bpf_probe_read_kernel`.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{
            bpf_get_current_task, bpf_probe_read_kernel, bpf_sk_lookup_tcp, bpf_sk_lookup_udp,
            bpf_sk_release,
        },
    },
    macros::{btf_map, cgroup_sock, map},
    maps::LruHashMap,
    programs::{SockContext, TcContext},
};
use lockne_abi::observe::{Owner, Packet};

use crate::{config, headers, storage::SocketStorage};

#[btf_map]
pub(crate) static OWNERS: SocketStorage<Owner> = SocketStorage::new();

#[map]
static ECHOES: LruHashMap<u32, Owner> = LruHashMap::with_max_entries(1024, 0);

const ALLOW: i32 = 1;

/// Notes who makes a socket.
#[cgroup_sock(sock_create)]
pub(crate) fn own_socket(ctx: SockContext) -> i32 {
    // SAFETY: the kernel passes a valid socket.
    let owner = unsafe { OWNERS.get_or_create(ctx.sock.cast()) };
    if !owner.is_null() {
        // SAFETY: the map gave a valid address.
        unsafe {
            (*owner).pid = (bpf_get_current_pid_tgid() >> 32) as u32;
            (*owner).uid = bpf_get_current_uid_gid() as u32;
            name_process(&raw mut (*owner).name);
        }
    }
    ALLOW
}

/// The name of the process, not that of the thread which runs.
///
/// # Safety
///
/// `name` can be written.
#[inline(always)]
unsafe fn name_process(name: *mut [u8; 16]) {
    let mut leader = 0_u64;
    // SAFETY: the helpers check what they read, and the caller vouches for the rest.
    unsafe {
        let task = bpf_get_current_task();
        let from = (task + u64::from(config::task_leader())) as *const c_void;
        if bpf_probe_read_kernel((&raw mut leader).cast(), 8, from) != 0 {
            return;
        }
        let from = (leader + u64::from(config::task_comm())) as *const c_void;
        // Zeros stay on an error.
        bpf_probe_read_kernel(name.cast(), 16, from);
    }
}

/// Fills in whose packet it is.
#[inline(always)]
pub(crate) fn find(ctx: &TcContext, packet: &mut Packet) {
    if packet.has(Packet::INCOMING) {
        of_receiver(ctx, packet);
    } else {
        of_sender(ctx, packet);
    }
}

#[inline(always)]
fn of_sender(ctx: &TcContext, packet: &mut Packet) {
    // SAFETY: the kernel passes a valid packet; the verifier demands the check for null.
    let owner = unsafe {
        let sk = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return;
        }
        OWNERS.get(sk.cast())
    };
    if owner.is_null() {
        return;
    }
    // SAFETY: the map gave a valid address.
    let owner = unsafe { *owner };
    set(packet, owner);
    if let Some(key) = headers::echo_request(packet) {
        let _ = ECHOES.insert(key, owner, 0);
    }
}

#[inline(always)]
fn of_receiver(ctx: &TcContext, packet: &mut Packet) {
    if let Some(key) = headers::echo_reply(packet) {
        // SAFETY: a copy; if another ping replaces it meanwhile, it is that one's.
        if let Some(owner) = unsafe { ECHOES.get(key) } {
            set(packet, *owner);
        }
        return;
    }
    if !packet.has(Packet::PORTS) {
        return;
    }
    let mut tuple = [0_u32; 9];
    let length = headers::tuple(packet, &mut tuple);
    let tuple: *mut bpf_sock_tuple = (&raw mut tuple).cast();
    let skb: *mut c_void = ctx.skb.skb.cast();
    // All bits: the namespace of the device.
    let netns = u64::MAX;
    match packet.protocol {
        // SAFETY: the tuple is as long as said, and what is found is given back.
        headers::TCP => unsafe {
            set_and_release(packet, bpf_sk_lookup_tcp(skb, tuple, length, netns, 0));
        },
        // SAFETY: as above.
        headers::UDP => unsafe {
            set_and_release(packet, bpf_sk_lookup_udp(skb, tuple, length, netns, 0));
        },
        _ => {}
    }
}

#[inline(always)]
unsafe fn set_and_release(packet: &mut Packet, sk: *mut bpf_sock) {
    if sk.is_null() {
        return;
    }
    // SAFETY: a socket that the kernel gave; it is released once.
    unsafe {
        let owner: *mut Owner = OWNERS.get(sk.cast());
        if !owner.is_null() {
            set(packet, ptr::read(owner));
        }
        bpf_sk_release(sk.cast());
    }
}

#[inline(always)]
fn set(packet: &mut Packet, owner: Owner) {
    packet.pid = owner.pid;
    packet.name = owner.name;
}
