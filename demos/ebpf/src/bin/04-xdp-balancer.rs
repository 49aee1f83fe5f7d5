//! Spreads the connections to one address over two back ends.
//!
//! Hook: XDP. Idea: "direct server return". The packet keeps its addresses, only its Ethernet header changes;
//! both back ends have the service's address and answer the client themselves.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::ptr::read_volatile;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        bpf_fib_lookup as Lookup,
        xdp_action::{XDP_DROP, XDP_PASS},
    },
    helpers::generated::{bpf_fib_lookup, bpf_redirect},
    macros::{map, xdp},
    maps::{Array, PerCpuArray},
    programs::XdpContext,
};
use demos_ebpf::{
    packet::{ETHERNET, Ip, is_v4},
    report::count,
    xdp_balancer::{BACKENDS, LOST, Service},
};

demos_ebpf::program!();

#[unsafe(no_mangle)]
static SERVICE: Service = Service {
    address: [0; 16],
    port: 0,
};

#[map]
static ADDRESSES: Array<[u8; 16]> = Array::with_max_entries(BACKENDS, 0);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(BACKENDS + 1, 0);

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

#[xdp]
fn balance(ctx: XdpContext) -> u32 {
    let Some(backend) = choose(&ctx) else {
        return XDP_PASS;
    };
    if let Some(action) = send(&ctx, backend) {
        count(&COUNTERS, backend, 1);
        action
    } else {
        count(&COUNTERS, LOST, 1);
        XDP_DROP
    }
}

/// The back end for this packet, if it is for the service: the same for all packets of a connection,
/// without remembering any.
#[inline(always)]
fn choose(ctx: &XdpContext) -> Option<u32> {
    // SAFETY: the static is there; volatile, for the loader writes it after compilation.
    let service = unsafe { read_volatile(&raw const SERVICE) };
    let ip = Ip::read(ctx, ETHERNET)?;
    let (source_port, port) = ip.ports(ctx)?;
    if ip.destination != service.address || port != service.port {
        return None;
    }
    Some(hash(&ip.source, source_port) % BACKENDS)
}

/// FNV-1a over who the client is, then the end of `MurmurHash3`: FNV alone leaves clients with neighbouring ports,
/// as one machine's are, on the same side.
#[inline(always)]
fn hash(source: &[u8; 16], port: u16) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let hash = source.iter().fold(0x811c_9dc5, step);
    let hash = port.to_be_bytes().iter().fold(hash, step);
    let hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    let hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// Asks the routing table for the way to the back end, and puts the packet on it.
#[inline(always)]
fn send(ctx: &XdpContext, backend: u32) -> Option<u32> {
    let address = *ADDRESSES.get(backend)?;
    // SAFETY: integers may be zero.
    let mut way: Lookup = unsafe { core::mem::zeroed() };
    way.ifindex = ctx.ingress_ifindex() as u32;
    if is_v4(&address) {
        way.family = AF_INET;
        let [.., a, b, c, d] = address;
        way.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes([a, b, c, d]);
    } else {
        way.family = AF_INET6;
        // SAFETY: as many bytes as there are.
        way.__bindgen_anon_4.ipv6_dst =
            unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(address) };
    }
    let size = size_of::<Lookup>() as i32;
    // SAFETY: a valid packet, and a record of the size that is said.
    let found = unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut way, size, 0) };
    if found != 0 || ctx.data() + ETHERNET > ctx.data_end() {
        return None;
    }
    let ethernet = ctx.data() as *mut [[u8; 6]; 2];
    // SAFETY: the bytes are in the packet.
    unsafe { *ethernet = [way.dmac, way.smac] };
    // SAFETY: takes numbers alone.
    Some(unsafe { bpf_redirect(way.ifindex, 0) } as u32)
}
