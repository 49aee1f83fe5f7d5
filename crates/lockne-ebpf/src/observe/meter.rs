//! Counts packets and bytes of each connection, and tells when one begins and ends.
//!
//! Runs for each packet of the machine while somebody watches: one helper call (the cookie of the
//! socket), one place in an array, which the kernel finds inline, and two additions. TCP is metered by
//! socket, all else by socket and remote address. What a listening socket sends and receives is not
//! counted. Answers of name servers go to who watches as they are, since only they say what an address
//! is called. Needs Linux 5.12, for compare-and-exchange and cookies in tracepoints.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MMAPABLE, bpf_sock},
    helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_skb_load_bytes},
    macros::{btf_tracepoint, cgroup_skb, cgroup_sock, map},
    maps::Array,
    programs::{BtfTracePointContext, SkBuffContext, SockContext},
};
use lockne_abi::{
    flow::{self, Answer, Closed, Flow, SLOTS, Turn, WAYS},
    observe::Owner,
};

use crate::{
    atomic,
    headers::{TCP, UDP},
    owner::OWNERS,
    record,
};

/// The loader makes it small where nobody asks for flows.
#[map]
static FLOWS: Array<Flow> = Array::with_max_entries(SLOTS, BPF_F_MMAPABLE);

const PASS: i32 = 1;
/// Who watches is woken by the first record after a look, and can ask while the process still lives.
const WAKE: u64 = 0;

/// The port of name servers.
const NAMES: u16 = 53;

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
    let Some((key, remote_port)) = (unsafe { key::<OUT>(skb, cookie) }) else {
        return;
    };
    let flow = match find(cookie, key) {
        Some((flow, _)) => flow,
        None => match begin::<OUT>(skb, cookie, key) {
            Some(flow) => flow,
            None => return,
        },
    };
    // SAFETY: the map's own memory; others change it only by additions.
    unsafe {
        let length = u64::from((*skb).len);
        let mut packets = u64::from((*skb).gso_segs);
        if packets == 0 {
            packets = 1;
        }
        if OUT {
            atomic::add(&raw mut (*flow).tx_packets, packets);
            atomic::add(&raw mut (*flow).tx_bytes, length);
            let (mark, device) = ((*skb).mark, (*skb).ifindex);
            // Without a write, the line stays where it is.
            if (*flow).mark != mark {
                (*flow).mark = mark;
            }
            if (*flow).ifindex != device {
                (*flow).ifindex = device;
            }
        } else {
            atomic::add(&raw mut (*flow).rx_packets, packets);
            atomic::add(&raw mut (*flow).rx_bytes, length);
            // Who was not asked has nothing to say.
            if remote_port == NAMES && (*flow).protocol == UDP && (*flow).tx_packets > 0 {
                pass_on(skb, flow);
            }
        }
    }
}

/// Hands an answer of a name server to who watches.
///
/// # Safety
///
/// `skb` is a packet that the kernel gave, and `flow` its place in the map.
#[inline(always)]
unsafe fn pass_on(skb: *mut __sk_buff, flow: *const Flow) {
    // SAFETY: by the caller's promise.
    unsafe {
        if (*skb).len as usize <= SHORT {
            copy_answer::<SHORT>(skb, flow);
        } else {
            copy_answer::<LONG>(skb, flow);
        }
    }
}

/// What most answers fit into with their headers, and what nearly all do. Multiples of eight.
const SHORT: usize = 320;
const LONG: usize = 1504;

#[repr(C)]
struct Copied<const ROOM: usize> {
    answer: Answer,
    packet: [u8; ROOM],
}

/// # Safety
///
/// As above.
#[inline(always)]
unsafe fn copy_answer<const ROOM: usize>(skb: *mut __sk_buff, flow: *const Flow) {
    // SAFETY: by the caller's promise.
    let length = unsafe { (*skb).len };
    // Without its end it cannot be read.
    if length == 0 || length as usize > ROOM {
        return;
    }
    // SAFETY: a variable of this function. As in the monitor: until Linux 6.1 at least, a comparison with zero says
    // nothing of a size's least value, and arithmetic does, which the compiler must not take out.
    let length = unsafe { core::ptr::read_volatile(&raw const length) };
    let length = (length.wrapping_sub(1) & const { (ROOM as u32).next_power_of_two() - 1 }) + 1;
    if length as usize > ROOM {
        return;
    }
    let Some(mut entry) = record::RECORDS.reserve::<Copied<ROOM>>(0) else {
        record::count_kept(false);
        return;
    };
    let copied = entry.as_mut_ptr();
    // SAFETY: the entry is ours until it is submitted; of the packet, as much is written as is said.
    let failed = unsafe {
        (*copied).answer.tag = Answer::TAG;
        (*copied).answer.length = length;
        (*copied).answer.time = bpf_ktime_get_ns();
        (*copied).answer.pid = (*flow).pid;
        (*copied).answer.mark = (*flow).mark;
        let packet = (&raw mut (*copied).packet).cast();
        bpf_skb_load_bytes(skb.cast(), 0, packet, length) != 0
    };
    if failed {
        entry.discard(0);
        return;
    }
    entry.submit(WAKE);
    record::count_kept(true);
}

/// What the packet's flow is found by, and for all but TCP the other one's port; `None` if it is no IP
/// packet.
///
/// # Safety
///
/// `skb` is a packet that the kernel gave.
#[inline(always)]
unsafe fn key<const OUT: bool>(skb: *mut __sk_buff, cookie: u64) -> Option<(u64, u16)> {
    // SAFETY: by the caller's promise; the bounds are asked for before each look.
    unsafe {
        let (_, protocol) = protocol(skb)?;
        if protocol == TCP {
            return Some((cookie, 0));
        }
        let ends = ends(skb)?;
        let remote = if OUT {
            (ends.destination, ends.destination_port)
        } else {
            (ends.source, ends.source_port)
        };
        Some((flow::key(cookie, Some(remote)), remote.1))
    }
}

/// The bytes of a packet from `offset` on, so many at least.
///
/// # Safety
///
/// `skb` is a packet that the kernel gave.
#[inline(always)]
unsafe fn bytes(skb: *mut __sk_buff, offset: usize, length: usize) -> Option<*const u8> {
    // SAFETY: by the caller's promise.
    let (start, end) = unsafe { ((*skb).data as usize + offset, (*skb).data_end as usize) };
    (start + length <= end).then_some(start as *const u8)
}

const IPV4: usize = 20;
const IPV6: usize = 40;

/// The IP version and the protocol behind the header.
///
/// # Safety
///
/// As above.
#[inline(always)]
unsafe fn protocol(skb: *mut __sk_buff) -> Option<(u8, u8)> {
    // SAFETY: by the caller's promise, and as many bytes as were asked for.
    unsafe {
        let header = bytes(skb, 0, IPV4)?;
        match *header >> 4 {
            4 => Some((4, *header.add(9))),
            6 => Some((6, *header.add(6))),
            _ => None,
        }
    }
}

/// # Safety
///
/// As above.
#[inline(always)]
unsafe fn ends(skb: *mut __sk_buff) -> Option<Ends> {
    // SAFETY: as above.
    unsafe {
        let (version, protocol) = protocol(skb)?;
        let (source, destination, length) = if version == 4 {
            let header = bytes(skb, 0, IPV4)?;
            let [source, destination] = header.add(12).cast::<[u32; 2]>().read();
            let length = usize::from(*header & 15) * 4;
            (mapped(source), mapped(destination), length)
        } else {
            let header = bytes(skb, 0, IPV6)?;
            let [a, b, c, d] = header.add(8).cast::<[u64; 4]>().read_unaligned();
            ([a, b], [c, d], IPV6)
        };
        let mut ports = [0_u16; 2];
        if has_ports(protocol)
            && let Some(found) = bytes(skb, length, 4)
        {
            ports = found.cast::<[u16; 2]>().read();
        }
        Some(Ends {
            source,
            destination,
            source_port: u16::from_be(ports[0]),
            destination_port: u16::from_be(ports[1]),
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
fn find(cookie: u64, key: u64) -> Option<(*mut Flow, u32)> {
    for way in 0..WAYS {
        let slot = flow::place(cookie, key, way);
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
    let (flow, slot) = claim(cookie, key)?;
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
fn claim(cookie: u64, key: u64) -> Option<(*mut Flow, u32)> {
    for way in 0..WAYS {
        let slot = flow::place(cookie, key, way);
        let flow = FLOWS.get_ptr_mut(slot)?;
        // SAFETY: the map's own memory.
        let was = unsafe { atomic::replace_zero(&raw mut (*flow).key, key) };
        // Or another CPU was faster with the same flow.
        if was == 0 || was == key {
            return Some((flow, slot));
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
        copy(flow, &raw mut (*turn).flow);
    }
    entry.submit(WAKE);
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
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
    }
}

/// Follows the states of TCP sockets, and tells when one is closed.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn see_state(ctx: BtfTracePointContext) -> i32 {
    let sk: *mut core::ffi::c_void = ctx.arg(0);
    let state: u32 = ctx.arg(2);
    // SAFETY: the kernel passes a valid socket.
    let cookie = unsafe { bpf_get_socket_cookie(sk) };
    let Some((flow, slot)) = find(cookie, cookie) else {
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
        record::count_kept(record::RECORDS.output::<Closed>(&closed, WAKE).is_ok());
    }
    PASS
}
