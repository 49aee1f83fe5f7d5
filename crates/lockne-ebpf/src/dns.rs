//! Questions for names: whomever a policed program asks on port 53, its policy's resolver gets the question.
//!
//! `connect` and `sendmsg` name the resolver behind the tunnel in place of the one that the program
//! named, and `recvmsg` and `getpeername` give the old name back, so that the program notices nothing. A
//! socket that cannot ask behind the tunnel, because it is bound to another address of this machine or
//! because the resolver is of the other IP version, asks the daemon's stub, which asks in its place.
//!
//! Where a policy has no resolver, questions go through the tunnel to whom they were for; but not to
//! this machine or past the tunnel, where somebody who is not policed would ask on.

use core::ptr::read_volatile;

use aya_ebpf::{
    bindings::bpf_sock,
    btf_maps::SkStorage,
    macros::{btf_map, cgroup_sock_addr},
    programs::SockAddrContext,
};
use lockne_abi::{
    Endpoint, Policy, Rename, Renames, Resolvers, Words, is_loopback, is_mapped, is_unspecified,
};

use crate::{
    call::{self, Call, Family, V4, V6},
    config, lan,
    map::{self, RESOLVERS},
    verdict::{ALLOW, Errno, refuse},
};

#[btf_map]
static NAMES: SkStorage<Renames> = SkStorage::new();

/// What happens to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// It goes where the program sends it.
    Leave,
    /// It goes there.
    Ask(Endpoint),
    Refuse,
}

/// The device that a socket is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    None,
    Loopback,
    Tunnel,
    Other,
}

/// Decides about a question of a program under policy `id`, by a socket that is bound to `device`.
#[inline(always)]
pub(crate) fn ask<F: Family>(
    ctx: &SockAddrContext,
    call: Call,
    id: u8,
    policy: Policy,
    device: u32,
) -> i32 {
    let asked = call::peer::<F>(ctx);
    let (Some(sock), Some(resolvers)) = (call::socket(ctx), RESOLVERS.get(u32::from(id))) else {
        return refused(id);
    };
    let is_lan = || lan::has(id, lan::bytes(&asked.address));
    let device = bound_to(policy, device);
    match decide(&asked, &F::source(sock), device, resolvers, is_lan) {
        Decision::Leave => ALLOW,
        Decision::Ask(given) if is_named(sock, call, &asked, &given) => ALLOW,
        Decision::Ask(given) if rename(ctx, asked, given) => {
            call::set_peer::<F>(ctx, &given);
            ALLOW
        }
        Decision::Ask(_) | Decision::Refuse => refused(id),
    }
}

/// Gives a datagram from a resolver the name that the program knows.
#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(ctx: SockAddrContext) -> i32 {
    name_back::<V4>(&ctx)
}

/// As [`recvmsg4`] for IPv6 sockets.
#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    name_back::<V6>(&ctx)
}

/// Gives a resolver that a socket is connected to the name that the program knows.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    name_back::<V4>(&ctx)
}

/// As [`getpeername4`] for IPv6 sockets.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    name_back::<V6>(&ctx)
}

#[inline(always)]
fn decide(
    asked: &Endpoint,
    source: &Words,
    device: Device,
    resolvers: &Resolvers,
    is_lan: impl FnOnce() -> bool,
) -> Decision {
    if device == Device::Other {
        return Decision::Refuse;
    }
    if !resolvers.exist() {
        return if is_loopback(&asked.address) || is_lan() {
            Decision::Refuse
        } else {
            Decision::Leave
        };
    }
    let resolver = if is_mapped(&asked.address) {
        &resolvers.v4
    } else {
        &resolvers.v6
    };
    let reaches_tunnel =
        device != Device::Loopback && (is_unspecified(source) || is_same(source, &resolver.own));
    if reaches_tunnel && resolver.far.port != 0 {
        Decision::Ask(resolver.far)
    } else if device != Device::Tunnel && resolver.stub.port != 0 {
        Decision::Ask(resolver.stub)
    } else {
        Decision::Refuse
    }
}

#[inline(always)]
fn bound_to(policy: Policy, device: u32) -> Device {
    const LOOPBACK: u32 = 1;
    match device {
        0 => Device::None,
        LOOPBACK => Device::Loopback,
        _ if policy.allows(device) => Device::Tunnel,
        _ => Device::Other,
    }
}

/// Whether the program has not named anybody: what an IPv6 socket sends by IPv4 comes here with the address
/// that the socket is connected to, which was named before.
#[inline(always)]
fn is_named(sock: *mut bpf_sock, call: Call, asked: &Endpoint, given: &Endpoint) -> bool {
    // SAFETY: the caller has a valid socket.
    let is_connected = unsafe { read_volatile(&raw const (*sock).dst_port) } != 0;
    call == Call::Sendmsg && is_connected && is_same(&asked.address, &given.address)
}

/// Remembers the name that the program gave; false if there is no room for that.
#[inline(always)]
fn rename(ctx: &SockAddrContext, asked: Endpoint, given: Endpoint) -> bool {
    let is_same = asked.port == given.port && is_same(&asked.address, &given.address);
    // SAFETY: the socket was checked for null; what is found is the map's own memory.
    let names = unsafe {
        let names = if is_same {
            // Nothing to remember, but an older name would be wrong now.
            NAMES.get_ptr_mut(ctx)
        } else {
            NAMES.get_or_insert_ptr_mut(ctx, None)
        };
        if names.is_null() {
            return is_same;
        }
        &mut *names
    };
    let name = if is_mapped(&asked.address) {
        &mut names.v4
    } else {
        &mut names.v6
    };
    *name = Rename { asked, given };
    true
}

/// Free for whoever is not policed but for a look at the socket's mark.
#[inline(always)]
fn name_back<F: Family>(ctx: &SockAddrContext) -> i32 {
    let Some(sock) = call::socket(ctx) else {
        return ALLOW;
    };
    // SAFETY: checked for null.
    let mark = unsafe { (*sock).mark };
    if config::field().policy(mark) == 0 {
        return ALLOW;
    }
    // SAFETY: as above; what is found is the map's own memory.
    let Some(names) = (unsafe { NAMES.get_ptr_mut(ctx).as_ref() }) else {
        return ALLOW;
    };
    let peer = call::peer::<F>(ctx);
    let name = if is_mapped(&peer.address) {
        &names.v4
    } else {
        &names.v6
    };
    if name.given.port == peer.port && is_same(&name.given.address, &peer.address) {
        call::set_peer::<F>(ctx, &name.asked);
    }
    ALLOW
}

#[inline(always)]
fn is_same(a: &Words, b: &Words) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

#[inline(always)]
fn refused(id: u8) -> i32 {
    map::count_refusal(id);
    refuse(Errno::HostUnreachable)
}

#[cfg(test)]
mod tests {
    use lockne_abi::{Resolver, words};

    use super::*;

    fn at(text: &str, port: u16) -> Endpoint {
        Endpoint::new(text.parse().unwrap(), port)
    }

    fn source(text: &str) -> Words {
        words(text.parse().unwrap())
    }

    /// A tunnel whose resolver speaks IPv4 only.
    fn resolvers() -> Resolvers {
        Resolvers {
            v4: Resolver {
                far: at("10.64.0.1", 53),
                stub: at("127.0.0.1", 800),
                own: source("10.64.0.2"),
            },
            v6: Resolver {
                stub: at("::1", 801),
                ..Resolver::default()
            },
        }
    }

    fn decided(asked: &str, bound: &str, device: Device) -> Decision {
        decide(&at(asked, 53), &source(bound), device, &resolvers(), || {
            true
        })
    }

    #[test]
    fn whoever_is_asked_the_tunnels_resolver_gets_the_question() {
        for asked in ["127.0.0.53", "192.168.1.1", "8.8.8.8", "10.64.0.1"] {
            for bound in ["0.0.0.0", "::", "10.64.0.2"] {
                for device in [Device::None, Device::Tunnel] {
                    let decision = decided(asked, bound, device);

                    assert_eq!(
                        decision,
                        Decision::Ask(at("10.64.0.1", 53)),
                        "{asked} {bound}"
                    );
                }
            }
        }
    }

    #[test]
    fn socket_that_cannot_reach_the_resolver_asks_the_stub() {
        for (asked, bound, device, port) in [
            ("127.0.0.53", "127.0.0.1", Device::None, 800),
            ("192.168.1.1", "192.168.1.2", Device::None, 800),
            ("127.0.0.53", "0.0.0.0", Device::Loopback, 800),
            ("::1", "::", Device::None, 801),
            ("fe80::1", "2001:db8::2", Device::None, 801),
        ] {
            let Decision::Ask(given) = decided(asked, bound, device) else {
                panic!("{asked} {bound} is not asked");
            };

            assert_eq!(given.port, u32::from(u16::to_be(port)), "{asked} {bound}");
        }
    }

    #[test]
    fn question_that_nobody_can_take_is_refused() {
        assert_eq!(decided("8.8.8.8", "::", Device::Other), Decision::Refuse);
        assert_eq!(decided("::1", "::", Device::Tunnel), Decision::Refuse);
        assert_eq!(
            decided("8.8.8.8", "192.168.1.2", Device::Tunnel),
            Decision::Refuse
        );
    }

    #[test]
    fn without_a_resolver_questions_stay_in_the_tunnel() {
        let none = Resolvers::default();
        let decided = |asked, is_lan| {
            decide(&at(asked, 53), &source("::"), Device::None, &none, || {
                is_lan
            })
        };

        assert_eq!(decided("8.8.8.8", false), Decision::Leave);
        assert_eq!(decided("fd00::1", false), Decision::Leave);
        assert_eq!(decided("192.168.1.1", true), Decision::Refuse);
        for own in ["127.0.0.53", "::1", "0.0.0.0", "::"] {
            assert_eq!(decided(own, false), Decision::Refuse, "{own}");
        }
    }
}
