//! `connect4`, `connect6`, `sendmsg4` and `sendmsg6`: sockets that are older than their policy.

use aya_ebpf::bindings::bpf_sock_addr;
use lockne_abi::{LanKey, Policy, name};
use lockne_interpreter::{World, context};

use crate::run::{
    OTHERS, Outcome, bytes_of, counters, mark, pointer, run, set_policy, set_process,
};

const ALLOW: u32 = 1;
const REFUSE: u32 = 0;

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;

const CURL: u32 = 100;
const ETH0: u32 = 2;
const WG0: u32 = 3;
const PRINTER: [u8; 4] = [192, 0, 2, 9];

/// Lets a process under policy 7 use a socket with `mark` that is bound to `device`.
fn call(
    hook: &str,
    mark: u32,
    device: u32,
    prepare: impl Fn(&mut World, &mut bpf_sock_addr),
) -> Outcome<bpf_sock_addr> {
    run(hook, &[], |world, _| {
        set_policy(world, 7, Policy::tunnel(WG0));
        set_process(world, CURL, 7);
        world.process = CURL;
        let mut socket = context::sock();
        (socket.mark, socket.bound_dev_if) = (mark, device);
        // SAFETY: integers only.
        let bytes = unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(&socket).cast(), size_of_val(&socket))
        };
        let mut addr = context::sock_addr();
        addr.__bindgen_anon_1.sk = pointer(world.block(bytes));
        prepare(world, &mut addr);
        addr
    })
}

fn set_mark(world: &World) -> Option<u32> {
    let value = world.socket_options.get(&(SOL_SOCKET, SO_MARK))?;
    Some(u32::from_ne_bytes(value.as_slice().try_into().unwrap()))
}

#[test]
fn connect_marks_an_older_socket_in_time() {
    for hook in [name::CONNECT4, name::CONNECT6] {
        let after = call(hook, OTHERS, 0, |_, _| {});

        assert_eq!(
            (after.verdict, set_mark(&after.world)),
            (ALLOW, Some(mark(7)))
        );
    }
}

#[test]
fn datagram_of_an_older_socket_is_refused_because_the_mark_comes_too_late_for_it() {
    for hook in [name::SENDMSG4, name::SENDMSG6] {
        let mut after = call(hook, OTHERS, 0, |_, _| {});

        assert_eq!((after.verdict, after.world.retval), (REFUSE, Some(-11)));
        assert_eq!(set_mark(&after.world), Some(mark(7)));
        assert_eq!(counters(&mut after.world, 7).refused, 1);
    }
}

#[test]
fn socket_that_has_the_mark_already_is_not_touched() {
    for hook in [
        name::CONNECT4,
        name::CONNECT6,
        name::SENDMSG4,
        name::SENDMSG6,
    ] {
        let after = call(hook, mark(7), 0, |_, _| {});

        assert_eq!((after.verdict, set_mark(&after.world)), (ALLOW, None));
    }
}

#[test]
fn socket_that_cannot_be_marked_is_refused() {
    for hook in [
        name::CONNECT4,
        name::CONNECT6,
        name::SENDMSG4,
        name::SENDMSG6,
    ] {
        let mut after = call(hook, OTHERS, 0, |world, _| world.setsockopt_result = -1);

        assert_eq!((after.verdict, after.world.retval), (REFUSE, None));
        assert_eq!(counters(&mut after.world, 7).refused, 1);
    }
}

#[test]
fn other_processes_and_namespaces_are_not_touched() {
    for hook in [
        name::CONNECT4,
        name::CONNECT6,
        name::SENDMSG4,
        name::SENDMSG6,
    ] {
        let free = call(hook, OTHERS, ETH0, |world, _| world.process = 1);
        let away = call(hook, OTHERS, ETH0, |world, _| world.netns_cookie += 1);

        for after in [free, away] {
            assert_eq!((after.verdict, set_mark(&after.world)), (ALLOW, None));
        }
    }
}

#[test]
fn connection_that_the_guard_would_silence_is_refused_at_once() {
    for hook in [name::CONNECT4, name::CONNECT6] {
        let mut after = call(hook, mark(7), ETH0, |_, _| {});
        assert_eq!((after.verdict, after.world.retval), (REFUSE, Some(-101)));
        assert_eq!(counters(&mut after.world, 7).refused, 1);

        for device in [1, WG0] {
            assert_eq!(call(hook, mark(7), device, |_, _| {}).verdict, ALLOW);
        }
    }
}

#[test]
fn bound_socket_still_reaches_an_open_network() {
    let mut mapped = [0; 16];
    mapped[10..12].copy_from_slice(&[0xff, 0xff]);
    mapped[12..].copy_from_slice(&PRINTER);
    let open = |world: &mut World, bits: u32| {
        let key = LanKey {
            policy: 7,
            address: mapped,
        };
        let key = [&bits.to_ne_bytes(), bytes_of(&key)].concat();
        assert!(world.map(name::LAN).set(&key, &[1]));
    };
    let v4 = call(name::CONNECT4, mark(7), ETH0, |world, addr| {
        open(world, LanKey::V4_OFFSET + 32);
        addr.user_ip4 = u32::from_ne_bytes(PRINTER);
    });
    // An IPv6 socket that talks IPv4.
    let v6 = call(name::CONNECT6, mark(7), ETH0, |world, addr| {
        open(world, LanKey::V6_OFFSET + 128);
        for (word, part) in addr.user_ip6.iter_mut().zip(mapped.chunks_exact(4)) {
            *word = u32::from_ne_bytes(part.try_into().unwrap());
        }
    });

    assert_eq!((v4.verdict, v6.verdict), (ALLOW, ALLOW));
}
