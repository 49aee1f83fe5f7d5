//! The kernel programs that read packets and calls, in an interpreter: they touch no memory but their own, a policed
//! packet leaves by its tunnel or not at all, and a question for a name goes to nobody but the policy's resolver.
//! The first byte says which program; what a packet is, `lockne_core::filter` says too.
#![no_main]

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use libfuzzer_sys::{
    arbitrary::{Result, Unstructured},
    fuzz_target,
};
use lockne_abi::{
    Config, Endpoint, LanKey, MarkField, Policy, Resolver, Resolvers, is_loopback, name, words,
};
use lockne_core::filter::{self, Link};
use lockne_interpreter::{Object, Packet, Program, World, context};

const COOKIE: u64 = 77;
const ID: u8 = 7;
const LOOPBACK: u32 = 1;
const ETH0: u32 = 2;
const WG0: u32 = 3;
const PASS: u32 = 1;
const CURL: u32 = 50;
const DNS: u16 = 53;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Networks that the policy reaches past its tunnel.
const LAN4: [u8; 3] = [192, 168, 1];
const LAN6: [u8; 2] = [0xfd, 0x01];

struct Kernel {
    object: Object,
    guard: Program,
    calls: [Program; 4],
}

static KERNEL: LazyLock<Kernel> = LazyLock::new(|| {
    let bytes = include_bytes!("../../crates/lockne-daemon/ebpf/lockne.bpf.o").to_vec();
    let config = Config {
        netns_cookie: COOKIE,
        mark_shift: MarkField::DEFAULT.shift(),
        max_processes: lockne_abi::PROCESSES_PER_PAGE,
        has_set_retval: 1,
        ..Config::default()
    };
    // Each run has maps of its own, so none larger than need be.
    let few = [
        (name::PROCESSES, 1),
        (name::LAN, 2),
        (name::EXECUTABLES, 1),
        (name::PLACES, 1),
        (name::SCRIPTS, 1),
        (name::USERS, 1),
        (name::GROUPS, 1),
        (name::SEEN, 1),
    ];
    let object = Object::parse_with(&bytes, &[(name::CONFIG, bytes_of(&config))], &few)
        .expect("our own object");
    let program = |name| object.program(name).expect("the object has it");
    Kernel {
        guard: program(name::GUARD_EGRESS),
        calls: [
            name::CONNECT4,
            name::CONNECT6,
            name::SENDMSG4,
            name::SENDMSG6,
        ]
        .map(program),
        object,
    }
});

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    let _short = match input.arbitrary::<u8>() {
        Ok(kind) if kind % 2 == 0 => leave(&mut input),
        Ok(_) => ask(&mut input),
        Err(_) => return,
    };
});

/// A policed packet leaves, or one of somebody else.
fn leave(input: &mut Unstructured<'_>) -> Result<()> {
    let mut world = world();
    let device = [LOOPBACK, ETH0, WG0][usize::from(input.arbitrary::<u8>()? % 3)];
    let is_policed = input.arbitrary::<u8>()? % 4 != 0;
    let others = u32::from(input.arbitrary::<u16>()?);
    let mark = if is_policed {
        MarkField::DEFAULT.mark(ID) | others
    } else {
        others
    };
    let bytes = input.bytes(input.len())?;
    let mut packet = Packet::new(bytes).expect("there is room");
    let mut skb = context::skb(&packet);
    (skb.mark, skb.ifindex) = (mark, device);

    let verdict = KERNEL
        .guard
        .run(&mut world, &mut skb, &mut packet)
        .expect("it touches its own memory");

    if !is_policed || device == WG0 {
        assert_eq!(verdict, PASS);
        return Ok(());
    }
    let seen = filter::packet(bytes, Link::Bare);
    let is_question =
        matches!(seen.protocol, TCP | UDP) && seen.destination_port == DNS && has_ports(bytes);
    let is_lan = is_in_lan(&seen.destination);
    if is_question || device == ETH0 && !is_lan {
        assert_ne!(verdict, PASS, "it leaves past its tunnel");
    } else if !is_later_fragment(bytes) {
        // What looks like a port in a later fragment may hold one back, but never lets one out.
        assert_eq!(verdict, PASS, "what may leave is held back");
    }
    Ok(())
}

fn has_ports(bytes: &[u8]) -> bool {
    filter::packet(bytes, Link::Bare).has(lockne_abi::observe::Packet::PORTS)
}

fn is_later_fragment(bytes: &[u8]) -> bool {
    let is_v4 = bytes.first().is_some_and(|byte| byte >> 4 == 4);
    let offset = bytes
        .get(6..8)
        .map(|it| u16::from_be_bytes([it[0], it[1]]) & 0x1fff);
    is_v4 && offset.is_some_and(|offset| offset != 0)
}

fn is_in_lan(address: &[u8; 16]) -> bool {
    let lan4 = [&[0; 10][..], &[0xff, 0xff], &LAN4].concat();
    address.starts_with(&lan4) || address.starts_with(&LAN6)
}

/// A policed program connects, or sends to somebody.
fn ask(input: &mut Unstructured<'_>) -> Result<()> {
    let mut world = world();
    let page = 0_u32.to_ne_bytes();
    let processes = world.map(name::PROCESSES);
    let mut members = processes.get(&page).expect("a page").to_vec();
    members[2 * CURL as usize] = ID;
    assert!(processes.set(&page, &members));
    world.process = CURL;

    let resolvers = resolvers(input.arbitrary::<u8>()?);
    let key = u32::from(ID).to_ne_bytes();
    assert!(world.map(name::RESOLVERS).set(&key, bytes_of(&resolvers)));

    let number = usize::from(input.arbitrary::<u8>()? % 4);
    let is_v4 = number % 2 == 0;
    let port = [DNS, DNS, 443, 5353][usize::from(input.arbitrary::<u8>()? % 4)];
    let mut addr: bpf_sock_addr = context::sock_addr();
    addr.user_port = u32::from(port.to_be());
    let asked = if is_v4 {
        let address = input.arbitrary::<[u8; 4]>()?;
        addr.user_ip4 = u32::from_ne_bytes(address);
        words(Ipv4Addr::from(address).into())
    } else {
        let address = input.arbitrary::<[u8; 16]>()?;
        addr.user_ip6 = words(Ipv6Addr::from(address).into());
        addr.user_ip6
    };
    let mut socket: bpf_sock = context::sock();
    socket.mark = MarkField::DEFAULT.mark(ID);
    socket.bound_dev_if = [0, LOOPBACK, ETH0, WG0][usize::from(input.arbitrary::<u8>()? % 4)];
    socket.src_ip4 = input.arbitrary()?;
    socket.src_ip6 = input.arbitrary()?;
    let socket = world.block(bytes_of(&socket));
    addr.__bindgen_anon_1.sk =
        std::ptr::with_exposed_provenance_mut(usize::try_from(socket).expect("an address"));

    let mut packet = Packet::new(&[]).expect("there is room");
    let verdict = KERNEL.calls[number]
        .run(&mut world, &mut addr, &mut packet)
        .expect("it touches its own memory");

    if verdict != PASS {
        return Ok(());
    }
    let address = if is_v4 {
        words(Ipv4Addr::from(addr.user_ip4.to_ne_bytes()).into())
    } else {
        addr.user_ip6
    };
    let now = Endpoint {
        address,
        port: addr.user_port,
    };
    let as_asked = Endpoint {
        address: asked,
        port: u32::from(port.to_be()),
    };
    if port == DNS && resolvers.exist() {
        let allowed = [&resolvers.v4, &resolvers.v6].map(|it| [it.far, it.stub]);
        let allowed = allowed.as_flattened();
        assert!(now.port != 0 && allowed.contains(&now), "{now:?} is asked");
    } else {
        assert_eq!(now, as_asked);
        let is_refused = is_loopback(&asked) || is_in_lan(bytes_of(&asked).try_into().expect("16"));
        assert!(port != DNS || !is_refused, "{now:?} is asked");
    }
    Ok(())
}

/// None, of IPv4 only, of IPv6 only, of both.
fn resolvers(kind: u8) -> Resolvers {
    let resolver = |far: &str, own: &str, stub: &str| {
        let address = |text: &str| text.parse().expect("an address");
        Resolver {
            far: Endpoint::new(address(far), DNS),
            stub: Endpoint::new(address(stub), 800),
            own: words(address(own)),
        }
    };
    let v4 = resolver("10.64.0.1", "10.64.0.2", "127.0.0.1");
    let v6 = resolver("fd00:64::1", "fd00:64::2", "::1");
    let without = |resolver: Resolver| Resolver {
        stub: resolver.stub,
        ..Resolver::default()
    };
    match kind % 4 {
        0 => Resolvers::default(),
        1 => Resolvers {
            v4,
            v6: without(v6),
        },
        2 => Resolvers {
            v4: without(v4),
            v6,
        },
        _ => Resolvers { v4, v6 },
    }
}

fn world() -> World {
    let mut world = KERNEL.object.world();
    world.netns_cookie = COOKIE;
    let key = u32::from(ID).to_ne_bytes();
    let policy = Policy::tunnel(WG0);
    assert!(world.map(name::POLICIES).set(&key, bytes_of(&policy)));
    let mut lan4 = [0; 16];
    lan4[10..12].fill(0xff);
    lan4[12..15].copy_from_slice(&LAN4);
    let mut lan6 = [0; 16];
    lan6[..2].copy_from_slice(&LAN6);
    for (bits, address) in [
        (LanKey::V4_OFFSET + 24, lan4),
        (LanKey::V6_OFFSET + 16, lan6),
    ] {
        let key = LanKey {
            policy: ID,
            address,
        };
        let key = [&bits.to_ne_bytes()[..], bytes_of(&key)].concat();
        assert!(world.map(name::LAN).set(&key, &[1]));
    }
    world
}

fn bytes_of<T>(value: &T) -> &[u8] {
    // SAFETY: what crosses into the kernel has no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}
