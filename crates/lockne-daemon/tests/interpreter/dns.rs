//! Questions for names: who gets them, and what the program is told about that.

use std::net::IpAddr;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use lockne_abi::{Endpoint, Policy, Resolver, Resolvers, is_mapped, name, words};
use lockne_interpreter::{World, context};

use crate::run::{Outcome, bytes_of, counters, mark, pointer, run, set_policy, set_process};

const ALLOW: u32 = 1;
const REFUSE: u32 = 0;
const HOST_UNREACHABLE: Option<i32> = Some(-113);

const CURL: u32 = 100;
const WG0: u32 = 3;

const FAR4: &str = "10.64.0.1";
const FAR6: &str = "fd00:64::1";

fn at(address: &str, port: u16) -> Endpoint {
    Endpoint::new(address.parse().unwrap(), port)
}

fn resolvers() -> Resolvers {
    let resolver = |far, own: &str, stub| Resolver {
        far: at(far, 53),
        stub: at(stub, 800),
        own: words(own.parse().unwrap()),
    };
    Resolvers {
        v4: resolver(FAR4, "10.64.0.2", "127.0.0.1"),
        v6: resolver(FAR6, "fd00:64::2", "::1"),
    }
}

fn set_resolvers(world: &mut World, resolvers: &Resolvers) {
    let key = 7_u32.to_ne_bytes();
    assert!(world.map(name::RESOLVERS).set(&key, bytes_of(resolvers)));
}

/// The other end, as `hook` of either family has it.
fn peer(addr: &bpf_sock_addr, hook: &str) -> Endpoint {
    let address = if hook.ends_with('4') {
        words(IpAddr::from(addr.user_ip4.to_ne_bytes()))
    } else {
        addr.user_ip6
    };
    let port = addr.user_port;
    Endpoint { address, port }
}

fn set_peer(addr: &mut bpf_sock_addr, hook: &str, peer: &Endpoint) {
    addr.user_port = peer.port;
    if hook.ends_with('4') {
        addr.user_ip4 = peer.address[3];
    } else {
        addr.user_ip6 = peer.address;
    }
}

/// A policed program comes to `hook` with the other end `asked`; with a socket of policy 7.
fn call(
    hook: &str,
    asked: &Endpoint,
    prepare: impl Fn(&mut World, &mut bpf_sock),
) -> Outcome<bpf_sock_addr> {
    run(hook, &[], |world, _| {
        set_policy(world, 7, Policy::tunnel(WG0));
        set_resolvers(world, &resolvers());
        set_process(world, CURL, 7);
        world.process = CURL;
        let mut socket = context::sock();
        socket.mark = mark(7);
        prepare(world, &mut socket);
        // SAFETY: integers only.
        let bytes = unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(&socket).cast(), size_of_val(&socket))
        };
        let mut addr = context::sock_addr();
        addr.__bindgen_anon_1.sk = pointer(world.block(bytes));
        set_peer(&mut addr, hook, asked);
        addr
    })
}

/// The hooks that a question to `address` comes to.
fn hooks(address: &str) -> &'static [&'static str] {
    if address.contains(':') {
        &[name::CONNECT6, name::SENDMSG6]
    } else {
        // As IPv6 sockets ask by IPv4, too.
        &[name::CONNECT4, name::SENDMSG4, name::CONNECT6]
    }
}

#[test]
fn question_to_anybody_goes_to_the_tunnels_resolver() {
    for (asked, far) in [
        ("127.0.0.53", FAR4),
        ("192.168.1.1", FAR4),
        ("8.8.8.8", FAR4),
        ("::1", FAR6),
        ("fe80::1", FAR6),
        ("2001:4860::8888", FAR6),
    ] {
        for hook in hooks(asked) {
            let after = call(hook, &at(asked, 53), |_, _| {});

            assert_eq!(after.verdict, ALLOW, "{hook} {asked}");
            assert_eq!(peer(&after.context, hook), at(far, 53), "{hook} {asked}");
        }
    }
}

#[test]
fn what_is_no_question_goes_where_it_was_sent() {
    for (asked, port) in [("127.0.0.53", 5353), ("8.8.8.8", 443), ("::1", 853)] {
        for hook in hooks(asked) {
            let after = call(hook, &at(asked, port), |_, _| {});

            assert_eq!(after.verdict, ALLOW);
            assert_eq!(peer(&after.context, hook), at(asked, port));
        }
    }
}

#[test]
fn direct_program_asks_whom_it_wants() {
    for hook in hooks("127.0.0.53") {
        let after = call(hook, &at("127.0.0.53", 53), |world, _| {
            set_policy(world, 7, Policy::DIRECT);
        });

        assert_eq!(after.verdict, ALLOW);
        assert_eq!(peer(&after.context, hook), at("127.0.0.53", 53));
    }
}

#[test]
fn free_program_asks_whom_it_wants() {
    for hook in hooks("8.8.8.8") {
        let after = call(hook, &at("8.8.8.8", 53), |world, _| world.process = 1);

        assert_eq!(peer(&after.context, hook), at("8.8.8.8", 53));
    }
}

#[test]
fn socket_bound_to_this_machine_asks_the_stub() {
    let own = u32::from_ne_bytes([192, 168, 1, 2]);
    for hook in [name::CONNECT4, name::SENDMSG4] {
        let after = call(hook, &at("192.168.1.1", 53), |_, socket| {
            socket.src_ip4 = own;
        });

        assert_eq!(peer(&after.context, hook), at("127.0.0.1", 800));
    }
    for hook in [name::CONNECT6, name::SENDMSG6] {
        let after = call(hook, &at("::1", 53), |_, socket| {
            socket.src_ip6 = words("::1".parse().unwrap());
        });

        assert_eq!(peer(&after.context, hook), at("::1", 800));
    }
}

#[test]
fn without_a_resolver_this_machine_is_not_asked() {
    for asked in ["127.0.0.53", "::1"] {
        for hook in hooks(asked) {
            let mut after = call(hook, &at(asked, 53), |world, _| {
                set_resolvers(world, &Resolvers::default());
            });

            assert_eq!(
                (after.verdict, after.world.retval),
                (REFUSE, HOST_UNREACHABLE)
            );
            assert_eq!(counters(&mut after.world, 7).refused, 1);
        }
    }
}

#[test]
fn program_is_told_the_name_that_it_asked() {
    for (asked, send, receive) in [
        ("127.0.0.53", name::SENDMSG4, name::RECVMSG4),
        ("127.0.0.53", name::CONNECT4, name::GETPEERNAME4),
        ("127.0.0.53", name::CONNECT6, name::GETPEERNAME6),
        ("fe80::1", name::SENDMSG6, name::RECVMSG6),
        ("fe80::1", name::CONNECT6, name::GETPEERNAME6),
    ] {
        let far = if is_mapped(&at(asked, 53).address) {
            FAR4
        } else {
            FAR6
        };
        let mut sent = call(send, &at(asked, 53), |_, _| {});
        let names = sent.world.map(name::NAMES).get(&[]).unwrap().to_vec();
        let answered = |from: &Endpoint| {
            let after = call(receive, from, |world, _| {
                assert!(world.map(name::NAMES).set(&[], &names));
            });
            peer(&after.context, receive)
        };

        assert_eq!(answered(&at(far, 53)), at(asked, 53), "{receive}");
        assert_eq!(answered(&at(far, 54)), at(far, 54), "{receive}");
        let other = if far == FAR4 {
            "10.64.0.9"
        } else {
            "fd00:64::9"
        };
        assert_eq!(answered(&at(other, 53)), at(other, 53), "{receive}");
    }
}
