//! Counts packets in each kind of map.
//!
//! Hook: TC egress. Idea: a map is a question. Which one you ask decides what it costs.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{btf_map, classifier, map},
    maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, lpm_trie::Key,
    },
    programs::TcContext,
};
use demos_ebpf::{
    packet::{ETHERNET, Ip},
    storage::SocketStorage,
};

demos_ebpf::program!();

#[map]
static HASH: HashMap<u16, u64> = HashMap::with_max_entries(65536, 0);

#[map]
static PER_CPU_HASH: PerCpuHashMap<u16, u64> = PerCpuHashMap::with_max_entries(65536, 0);

#[map]
static LRU: LruHashMap<u16, u64> = LruHashMap::with_max_entries(1024, 0);

#[map]
static ARRAY: Array<u64> = Array::with_max_entries(256, 0);

#[map]
static PER_CPU_ARRAY: PerCpuArray<u64> = PerCpuArray::with_max_entries(256, 0);

#[map]
static LPM: LpmTrie<[u8; 16], u64> = LpmTrie::with_max_entries(1024, 0);

#[map]
static RING: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

#[btf_map]
static STORAGE: SocketStorage<u64> = SocketStorage::new();

/// What all of the others do too: read the packet.
#[classifier]
fn nothing(ctx: TcContext) -> i32 {
    read(&ctx);
    TC_ACT_UNSPEC
}

/// Which socket sent how much?
#[classifier]
fn hash(ctx: TcContext) -> i32 {
    let (port, _) = read(&ctx);
    match HASH.get_ptr_mut(port) {
        Some(count) => add(count),
        None => drop(HASH.insert(port, 1, 0)),
    }
    TC_ACT_UNSPEC
}

/// The same, without two CPUs writing to the same place.
#[classifier]
fn per_cpu_hash(ctx: TcContext) -> i32 {
    let (port, _) = read(&ctx);
    match PER_CPU_HASH.get_ptr_mut(port) {
        Some(count) => add(count),
        None => drop(PER_CPU_HASH.insert(port, 1, 0)),
    }
    TC_ACT_UNSPEC
}

/// The same, for as many as there may ever be: the longest unused are forgotten.
#[classifier]
fn lru(ctx: TcContext) -> i32 {
    let (port, _) = read(&ctx);
    match LRU.get_ptr_mut(port) {
        Some(count) => add(count),
        None => drop(LRU.insert(port, 1, 0)),
    }
    TC_ACT_UNSPEC
}

/// How much of each protocol? There are 256 of them, known before.
#[classifier]
fn array(ctx: TcContext) -> i32 {
    let (_, ip) = read(&ctx);
    if let Some(count) = ARRAY.get_ptr_mut(u32::from(ip.protocol)) {
        add(count);
    }
    TC_ACT_UNSPEC
}

/// The same, without two CPUs writing to the same place.
#[classifier]
fn per_cpu_array(ctx: TcContext) -> i32 {
    let (_, ip) = read(&ctx);
    if let Some(count) = PER_CPU_ARRAY.get_ptr_mut(u32::from(ip.protocol)) {
        add(count);
    }
    TC_ACT_UNSPEC
}

/// Which network? The longest prefix that fits.
#[classifier]
fn lpm(ctx: TcContext) -> i32 {
    let (_, ip) = read(&ctx);
    if let Some(count) = LPM.get(Key::new(128, ip.destination)) {
        add(core::ptr::from_ref(count).cast_mut());
    }
    TC_ACT_UNSPEC
}

/// What exactly happened?
#[classifier]
fn ring(ctx: TcContext) -> i32 {
    let (port, _) = read(&ctx);
    // User space counts, and notices what is missing.
    let _ = RING.output::<u64>(u64::from(port), 0);
    TC_ACT_UNSPEC
}

/// What do I know about this socket?
#[classifier]
fn storage(ctx: TcContext) -> i32 {
    read(&ctx);
    // SAFETY: a valid packet; its socket is checked before it is used.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if !socket.is_null() {
            let count = STORAGE.get(socket.cast());
            if !count.is_null() {
                add(count);
            }
        }
    }
    TC_ACT_UNSPEC
}

/// The source port and the IP header.
#[inline(always)]
fn read(ctx: &TcContext) -> (u16, Ip) {
    let none = Ip {
        source: [0; 16],
        destination: [0; 16],
        protocol: 0,
        payload: 0,
    };
    let ip = Ip::read(&ctx.skb, ETHERNET).unwrap_or(none);
    (ip.ports(&ctx.skb).unwrap_or_default().0, ip)
}

/// Adds one. In a map that CPUs share, two may do so at once and one be lost.
#[inline(always)]
fn add(count: *mut u64) {
    // SAFETY: a map gave this address, and it stays valid until the program ends.
    unsafe { *count += 1 };
}
