//! Counts packets and bytes of each connection, and tells when one begins and ends.
//!
//! Runs for each packet of the machine while somebody watches: one helper call (the cookie of the
//! socket), one place in an array, which the kernel finds inline, and two additions. TCP is metered by
//! socket, all else by socket and remote address. What a listening socket sends and receives is not
//! counted. Needs Linux 5.12, for compare-and-exchange and cookies in tracepoints.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_RB_NO_WAKEUP, __sk_buff, bpf_sock},
    helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns},
    macros::{btf_tracepoint, cgroup_skb, cgroup_sock, map},
    maps::Array,
    programs::{BtfTracePointContext, SkBuffContext, SockContext},
};
use lockne_abi::{
    flow::{self, Closed, Flow, SLOTS, Turn, WAYS},
    observe::Owner,
};

use crate::{headers::TCP, owner::OWNERS, record};

/// The loader makes it small where nobody asks for flows.
#[map]
static FLOWS: Array<Flow> = Array::with_max_entries(SLOTS, BPF_F_MMAPABLE);

const PASS: i32 = 1;
/// User space looks ten times a second; to wake it for each connection would cost more than the rest.
const QUIETLY: u64 = BPF_RB_NO_WAKEUP as u64;

const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

/// Counts what is sent.
#[cgroup_skb(egress)]
pub(crate) fn meter_out(ctx: SkBuffContext) -> i32 {
    meter::<true>(&ctx);
    PASS
}

/// Counts what is received.
#[cgroup_skb(ingress)]
pub(crate) fn meter_in(ctx: SkBuffContext) -> i32 {
    meter::<false>(&ctx);
    PASS
}

/// Who speaks with whom, as a packet says it.
struct Ends {
    source: [u64; 2],
    destination: [u64; 2],
    source_port: u16,
    destination_port: u16,
    protocol: u8,
}

#[inline(always)]
fn meter<const OUT: bool>(ctx: &SkBuffContext) {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel passes a valid packet.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    if cookie == 0 {
        return;
    }
    // SAFETY: as above.
    let Some(key) = (unsafe { key::<OUT>(skb, cookie) }) else {
        return;
    };
    let flow = match find(key) {
        Some((flow, _)) => flow,
        None => match begin::<OUT>(skb, cookie, key) {
            Some(flow) => flow,
            None => return,
        },
    };
    // SAFETY: the map's own memory; others change it only by additions.
    unsafe {
        let bytes = u64::from((*skb).len);
        let mut packets = u64::from((*skb).gso_segs);
        if packets == 0 {
            packets = 1;
        }
        if OUT {
            add(&raw mut (*flow).tx_packets, packets);
            add(&raw mut (*flow).tx_bytes, bytes);
            let (mark, device) = ((*skb).mark, (*skb).ifindex);
            // Without a write, the line stays where it is.
            if (*flow).mark != mark {
                (*flow).mark = mark;
            }
            if (*flow).ifindex != device {
                (*flow).ifindex = device;
            }
        } else {
            add(&raw mut (*flow).rx_packets, packets);
            add(&raw mut (*flow).rx_bytes, bytes);
        }
    }
}

/// # Safety
///
/// `to` points to a number of the map.
#[inline(always)]
unsafe fn add(to: *mut u64, number: u64) {
    // SAFETY: aligned, and by the caller's promise valid.
    unsafe { AtomicU64::from_ptr(to) }.fetch_add(number, Relaxed);
}

/// What the packet's flow is found by, `None` if it is no IP packet.
///
/// # Safety
///
/// `skb` is a packet that the kernel gave.
#[inline(always)]
unsafe fn key<const OUT: bool>(skb: *mut __sk_buff, cookie: u64) -> Option<u64> {
    // SAFETY: by the caller's promise; the bounds are asked for before each look.
    unsafe {
        let protocol = protocol(skb)?;
        if protocol == TCP {
            return Some(cookie);
        }
        let ends = ends(skb)?;
        let remote = if OUT {
            (ends.destination, ends.destination_port)
        } else {
            (ends.source, ends.source_port)
        };
        Some(flow::key(cookie, Some(remote)))
    }
}

/// The headers at the start of a packet.
///
/// # Safety
///
/// `skb` is a packet that the kernel gave, and `T` is plain data.
#[inline(always)]
unsafe fn load<T: Copy>(skb: *mut __sk_buff, offset: usize) -> Option<T> {
    // SAFETY: by the caller's promise, and the end was asked for.
    unsafe {
        let start = (*skb).data as usize + offset;
        if start + size_of::<T>() > (*skb).data_end as usize {
            return None;
        }
        Some((start as *const T).read_unaligned())
    }
}

#[inline(always)]
unsafe fn protocol(skb: *mut __sk_buff) -> Option<u8> {
    // SAFETY: as `load`.
    unsafe {
        let first: u8 = load(skb, 0)?;
        match first >> 4 {
            4 => load(skb, 9),
            6 => load(skb, 6),
            _ => None,
        }
    }
}

#[inline(always)]
unsafe fn ends(skb: *mut __sk_buff) -> Option<Ends> {
    // SAFETY: as `load`.
    unsafe {
        let first: u8 = load(skb, 0)?;
        let (source, destination, ports) = if first >> 4 == 4 {
            let [source, destination]: [u32; 2] = load(skb, 12)?;
            // Later fragments have no ports, and pass sockets whole.
            (mapped(source), mapped(destination), usize::from(first & 15) * 4)
        } else {
            let [a, b, c, d]: [u64; 4] = load(skb, 8)?;
            ([a, b], [c, d], 40)
        };
        let protocol = protocol(skb)?;
        let [source_port, destination_port] = if has_ports(protocol) {
            load::<[u16; 2]>(skb, ports).unwrap_or_default()
        } else {
            [0, 0]
        };
        Some(Ends {
            source,
            destination,
            source_port: u16::from_be(source_port),
            destination_port: u16::from_be(destination_port),
            protocol,
        })
    }
}

/// TCP, UDP, DCCP, SCTP and UDP-Lite.
#[inline(always)]
const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 33 | 132 | 136)
}

/// An IPv4 address as an IPv6 one, each as it stands in the packet.
#[inline(always)]
const fn mapped(address: u32) -> [u64; 2] {
    [0, (address as u64) << 32 | 0xffff_0000]
}

#[inline(always)]
fn find(key: u64) -> Option<(*mut Flow, u32)> {
    for way in 0..WAYS {
        let slot = flow::place(key, way);
        let flow = FLOWS.get_ptr_mut(slot)?;
        // SAFETY: the map's own memory.
        if unsafe { (*flow).key } == key {
            return Some((flow, slot));
        }
    }
    None
}

/// Gives a connection a place, and tells of it.
#[inline(always)]
fn begin<const OUT: bool>(skb: *mut __sk_buff, cookie: u64, key: u64) -> Option<*mut Flow> {
    // SAFETY: the kernel passes a valid packet; the verifier demands the check for null.
    let (ends, sk, state) = unsafe {
        let sk: *mut bpf_sock = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        (ends(skb)?, sk, (*sk).state)
    };
    let is_tcp = ends.protocol == TCP;
    if is_tcp && (state == TCP_CLOSE || state == TCP_LISTEN) {
        return None;
    }
    let (flow, slot) = claim(key)?;
    // SAFETY: the place is ours alone, but for additions, until it is told that it is complete.
    unsafe {
        let owner: *mut Owner = OWNERS.get_or_create(sk.cast());
        if !owner.is_null() {
            (*owner).metered = 1;
            (*flow).pid = (*owner).pid;
            (*flow).uid = (*owner).uid;
            (*flow).name = (*owner).name;
        }
        (*flow).mark = (*skb).mark;
        (*flow).ifindex = (*skb).ifindex;
        (*flow).cookie = cookie;
        let (source, destination) = (words(ends.source), words(ends.destination));
        if OUT {
            (*flow).local = source;
            (*flow).remote = destination;
            (*flow).local_port = ends.source_port;
            (*flow).remote_port = ends.destination_port;
        } else {
            (*flow).local = destination;
            (*flow).remote = source;
            (*flow).local_port = ends.destination_port;
            (*flow).remote_port = ends.source_port;
        }
        (*flow).protocol = ends.protocol;
        (*flow).state = if is_tcp { state as u8 } else { 0 };
        let now = bpf_ktime_get_ns();
        (&raw mut (*flow).started).write_volatile(now);
        record::count(|counts| counts.seen += 1);
        tell(Turn::BEGUN, slot, now, flow);
    }
    Some(flow)
}

#[inline(always)]
const fn words(address: [u64; 2]) -> [u8; 16] {
    // SAFETY: the same bytes.
    unsafe { core::mem::transmute(address) }
}

#[inline(always)]
fn claim(key: u64) -> Option<(*mut Flow, u32)> {
    for way in 0..WAYS {
        let slot = flow::place(key, way);
        let flow = FLOWS.get_ptr_mut(slot)?;
        // SAFETY: the map's own memory.
        let place = unsafe { AtomicU64::from_ptr(&raw mut (*flow).key) };
        match place.compare_exchange(0, key, Relaxed, Relaxed) {
            Ok(_) => return Some((flow, slot)),
            // Another CPU was faster with the same flow.
            Err(there) if there == key => return Some((flow, slot)),
            Err(_) => {}
        }
    }
    record::count(|counts| counts.unmetered += 1);
    None
}

/// # Safety
///
/// `flow` is a place of the map.
#[inline(always)]
unsafe fn tell(tag: u32, slot: u32, time: u64, flow: *const Flow) {
    let Some(mut entry) = record::RECORDS.reserve::<Turn>(0) else {
        record::count_kept(false);
        return;
    };
    let turn = entry.as_mut_ptr();
    // SAFETY: the entry is ours until it is submitted, and every field is written.
    unsafe {
        (*turn).tag = tag;
        (*turn).slot = slot;
        (*turn).time = time;
        (*turn).unused = [0; 6];
        copy(flow, &raw mut (*turn).flow);
    }
    entry.submit(QUIETLY);
    record::count_kept(true);
}

/// # Safety
///
/// Both are valid.
#[inline(always)]
unsafe fn copy(from: *const Flow, to: *mut Flow) {
    const WORDS: usize = size_of::<Flow>() / 8;
    let (from, to): (*const u64, *mut u64) = (from.cast(), to.cast());
    for word in 0..WORDS {
        // SAFETY: by the caller's promise.
        unsafe { to.add(word).write(from.add(word).read()) };
    }
}

/// Follows the states of TCP sockets, and tells when one is closed.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn see_state(ctx: BtfTracePointContext) -> i32 {
    let sk: *mut core::ffi::c_void = ctx.arg(0);
    let state: u32 = ctx.arg(2);
    // SAFETY: the kernel passes a valid socket.
    let cookie = unsafe { bpf_get_socket_cookie(sk) };
    let Some((flow, slot)) = find(cookie) else {
        return 0;
    };
    // SAFETY: the map's own memory; a closed socket sends and receives nothing more.
    unsafe {
        (*flow).state = state as u8;
        if state == TCP_CLOSE {
            tell(Turn::ENDED, slot, bpf_ktime_get_ns(), flow);
            free(flow);
        }
    }
    0
}

/// # Safety
///
/// `flow` is a place of the map.
#[inline(always)]
unsafe fn free(flow: *mut Flow) {
    const WORDS: usize = size_of::<Flow>() / 8;
    let place: *mut u64 = flow.cast();
    // The key last: then others may have the place.
    for word in 1..WORDS {
        // SAFETY: by the caller's promise.
        unsafe { place.add(word).write_volatile(0) };
    }
    // SAFETY: as above.
    unsafe { place.write_volatile(0) };
}

/// Tells of a closed socket that is not TCP; user space knows with whom it spoke.
#[cgroup_sock(sock_release)]
pub(crate) fn see_release(ctx: SockContext) -> i32 {
    // SAFETY: the kernel passes a valid socket.
    unsafe {
        if (*ctx.sock).protocol == u32::from(TCP) {
            return PASS;
        }
        let owner = OWNERS.get(ctx.sock.cast());
        if owner.is_null() || (*owner).metered == 0 {
            return PASS;
        }
        let closed = Closed {
            tag: Closed::TAG,
            unused: 0,
            time: bpf_ktime_get_ns(),
            cookie: bpf_get_socket_cookie(ctx.sock.cast()),
        };
        record::count_kept(record::RECORDS.output::<Closed>(&closed, QUIETLY).is_ok());
    }
    PASS
}
