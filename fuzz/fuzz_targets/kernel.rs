//! The kernel programs that look at packets and at calls, in an interpreter: they touch no memory but their own, a
//! policed packet does not leave by another device than its tunnel, and a question for a name goes to nobody but
//! the policy's resolver. The first byte says which program.
#![no_main]

use std::sync::LazyLock;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use lockne_abi::{Config, Endpoint, MarkField, PROCESSES_PER_PAGE, Policy, Resolver, Resolvers, name, words};
use lockne_interpreter::{Object, Packet, Program, World, context};

const COOKIE: u64 = 77;
const ID: u8 = 7;
const LOOPBACK: u32 = 1;
const ETH0: u32 = 2;
const WG0: u32 = 3;
const PASS: u32 = 1;
const CURL: u32 = 100;

static OBJECT: LazyLock<Object> = LazyLock::new(|| {
    let bytes = include_bytes!("../../crates/lockne-daemon/ebpf/lockne.bpf.o").to_vec();
    let config = Config {
        netns_cookie: COOKIE,
        mark_shift: MarkField::DEFAULT.shift(),
        max_processes: PROCESSES_PER_PAGE,
        has_set_retval: 1,
        ..Config::default()
    };
    let globals = [(name::CONFIG, bytes_of(&config))];
    Object::parse_with(&bytes, &globals, &[(name::PROCESSES, 1)]).expect("our own object")
});

static GUARD: LazyLock<Program> = LazyLock::new(|| program(name::GUARD_EGRESS));
static CALLS: LazyLock<[Program; 4]> = LazyLock::new(|| {
    [name::CONNECT4, name::CONNECT6, name::SENDMSG4, name::SENDMSG6].map(program)
});

fn program(name: &str) -> Program {
    OBJECT.program(name).expect("the object has it")
}

fn bytes_of<T>(value: &T) -> &[u8] {
    // SAFETY: what crosses into the kernel has no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

fn world() -> World {
    let mut world = OBJECT.world();
    world.netns_cookie = COOKIE;
    let key = u32::from(ID).to_ne_bytes();
    assert!(world.map(name::POLICIES).set(&key, bytes_of(&Policy::tunnel(WG0))));
    world
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    let _short = match input.arbitrary::<u8>() {
        Ok(kind) if kind % 2 == 0 => leave(&mut input),
        Ok(_) => ask(&mut input),
        Err(_) => return,
    };
});

/// A packet leaves.
fn leave(input: &mut Unstructured<'_>) -> libfuzzer_sys::arbitrary::Result<()> {
    let mut world = world();
    let device = *input.choose(&[LOOPBACK, ETH0, WG0])?;
    let mark = *input.choose(&[MarkField::DEFAULT.mark(ID), 0, 0xca6c])? | input.arbitrary::<u8>()? as u32;
    let mut packet = Packet::new(input.take_rest()).expect("there is room");
    let mut skb = context::skb(&packet);
    (skb.mark, skb.ifindex) = (mark, device);
    let verdict = GUARD
        .run(&mut world, &mut skb, &mut packet)
        .expect("it touches its own memory");
    if MarkField::DEFAULT.policy(mark) == 0 || device == WG0 {
        assert_eq!(verdict, PASS);
    } else if device == ETH0 {
        assert_ne!(verdict, PASS, "it leaves by another device than its tunnel");
    }
    Ok(())
}

/// A policed program connects, or sends to somebody.
fn ask(input: &mut Unstructured<'_>) -> libfuzzer_sys::arbitrary::Result<()> {
    let mut world = world();
    let page = 0_u32.to_ne_bytes();
    let mut processes = world.map(name::PROCESSES).get(&page).expect("a page").to_vec();
    processes[2 * CURL as usize] = ID;
    assert!(world.map(name::PROCESSES).set(&page, &processes));
    world.process = CURL;
    let at = |address: &str, port| Endpoint::new(address.parse().expect("an address"), port);
    let own = |address: &str| words(address.parse().expect("an address"));
    let v4 = Resolver { far: at("10.64.0.1", 53), stub: at("127.0.0.1", 800), own: own("10.64.0.2") };
    let v6 = Resolver { far: at("fd00:64::1", 53), stub: at("::1", 800), own: own("fd00:64::2") };
    let resolvers = match input.arbitrary::<u8>()? % 3 {
        0 => Resolvers::default(),
        1 => Resolvers { v4, v6: Resolver { far: Endpoint::default(), own: Default::default(), ..v6 } },
        _ => Resolvers { v4, v6 },
    };
    let key = u32::from(ID).to_ne_bytes();
    assert!(world.map(name::RESOLVERS).set(&key, bytes_of(&resolvers)));

    let mut socket: bpf_sock = context::sock();
    socket.mark = MarkField::DEFAULT.mark(ID);
    socket.src_ip4 = input.arbitrary()?;
    socket.src_ip6 = input.arbitrary()?;
    let socket = world.block(bytes_of(&socket));
    let mut addr: bpf_sock_addr = context::sock_addr();
    addr.__bindgen_anon_1.sk = std::ptr::with_exposed_provenance_mut(socket as usize);
    let number = input.choose_index(CALLS.len())?;
    let is_v4 = number % 2 == 0;
    addr.user_ip4 = input.arbitrary()?;
    addr.user_ip6 = input.arbitrary()?;
    let port = *input.choose(&[53_u16, 53, 443, 5353])?;
    addr.user_port = u32::from(port.to_be());
    let asked = (addr.user_ip4, addr.user_ip6, addr.user_port);

    let mut packet = Packet::new(&[]).expect("there is room");
    let verdict = CALLS[number]
        .run(&mut world, &mut addr, &mut packet)
        .expect("it touches its own memory");
    if verdict != PASS {
        return Ok(());
    }
    if port != 53 {
        assert_eq!((addr.user_ip4, addr.user_ip6, addr.user_port), asked);
        return Ok(());
    }
    let address = if is_v4 { words(addr.user_ip4.to_ne_bytes().into()) } else { addr.user_ip6 };
    let now = Endpoint { address, port: addr.user_port };
    if resolvers.exist() {
        let allowed = [v4.far, v4.stub, v6.far, v6.stub];
        assert!(allowed.contains(&now), "{now:?} is asked in place of the policy's resolver");
    } else {
        assert_eq!((addr.user_ip4, addr.user_ip6, addr.user_port), asked);
        assert_ne!(now.address, words(std::net::Ipv6Addr::LOCALHOST.into()));
    }
    Ok(())
}
