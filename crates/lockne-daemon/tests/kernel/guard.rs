//! `cgroup_skb/egress` and `ingress`.

use lockne_abi::Policy;

use crate::{
    probe::Probe,
    tests,
    world::{World, id, namespace_number, reuse_namespace_number},
};

tests! {
    nothing_leaves_by_a_wrong_device,
    blocked_process_sends_nothing,
    direct_process_uses_any_device,
    policy_without_content_lets_nothing_out,
    change_of_a_policy_holds_at_once,
    loopback_stays_open,
    lan_prefix_is_reached_past_the_tunnel,
    other_namespace_with_the_same_mark_is_left_alone,
    namespace_with_the_number_of_a_dead_one_is_left_alone,
    counters_are_exact,
    shared_tunnel_counts_for_the_policy_of_the_socket,
}

const EPERM: &str = "1";
const ENETUNREACH: &str = "101";

fn send(probe: &mut Probe, kind: &str, setup: &[&str], to: impl std::fmt::Display) -> String {
    assert_eq!(probe.ask(&format!("socket {kind}")), "ok");
    for command in setup {
        assert_eq!(probe.ask(command), "ok");
    }
    probe.ask(&format!("send-to {to} leak"))
}

fn nothing_leaves_by_a_wrong_device() {
    let mut world = World::new();
    let policy = world.tunnel_policy(7);
    let mut probe = Probe::under(&mut world, id(7));

    // A socket that says where it wants to go is told at once that it cannot.
    for (setup, told) in [(&[][..], EPERM), (&["bind-device wan"], ENETUNREACH)] {
        for (kind, far) in [("udp4", world.wan.far4), ("udp6", world.wan.far6)] {
            assert_eq!(send(&mut probe, kind, setup, far), told, "{kind} {setup:?}");
        }
        let raw = send(&mut probe, "raw4", setup, world.wan.far4);
        assert_eq!(raw, EPERM, "{setup:?}");
    }

    assert!(world.arrived().is_empty());
    let counters = world.kernel().counters(policy).unwrap();
    assert_eq!((counters.refused, counters.tx_packets), (6, 0));
    assert_eq!(send(&mut probe, "udp4", &[], world.tun.far4), "ok");
    assert_eq!(world.arrived(), [b"leak"]);
}

fn blocked_process_sends_nothing() {
    let mut world = World::new();
    world.policy(7, Policy::BLOCK);
    let mut probe = Probe::under(&mut world, id(7));

    for far in [world.wan.far4, world.tun.far4] {
        assert_eq!(send(&mut probe, "udp4", &[], far), EPERM);
    }

    assert!(world.arrived().is_empty());
}

fn direct_process_uses_any_device() {
    // A number of its own: with `direct`, the packets of tests beside would count too.
    let mut world = World::new();
    let policy = world.policy(249, Policy::DIRECT);
    let mut probe = Probe::under(&mut world, id(249));

    for far in [world.wan.far4, world.tun.far4] {
        assert_eq!(send(&mut probe, "udp4", &[], far), "ok");
    }

    assert_eq!(world.arrived().len(), 2);
    assert_eq!(world.kernel().counters(policy).unwrap().tx_packets, 2);
}

fn policy_without_content_lets_nothing_out() {
    let mut world = World::new();
    let mut probe = Probe::under(&mut world, id(200));

    assert_eq!(send(&mut probe, "udp4", &[], world.wan.far4), EPERM);

    assert!(world.arrived().is_empty());
}

fn change_of_a_policy_holds_at_once() {
    let mut world = World::new();
    let policy = world.tunnel_policy(7);
    let mut probe = Probe::under(&mut world, id(7));
    assert_eq!(probe.ask("socket udp4"), "ok");
    let send = format!("send-to {} text", world.tun.far4);
    assert_eq!(probe.ask(&send), "ok");

    world.kernel().set_policy(policy, Policy::BLOCK).unwrap();

    assert_eq!(probe.ask(&send), EPERM);
}

fn loopback_stays_open() {
    let mut world = World::new();
    let policy = world.policy(7, Policy::BLOCK);
    let mut probe = Probe::under(&mut world, id(7));

    assert_eq!(send(&mut probe, "udp4", &[], "127.0.0.1:9"), "ok");
    assert_eq!(send(&mut probe, "udp6", &[], "[::1]:9"), "ok");

    let counters = world.kernel().counters(policy).unwrap();
    assert_eq!((counters.refused, counters.tx_packets), (0, 0));
}

fn lan_prefix_is_reached_past_the_tunnel() {
    let mut world = World::new();
    let policy = world.tunnel_policy(7);
    let other = world.policy(8, Policy::BLOCK);
    let mut probe = Probe::under(&mut world, id(7));
    let mut blocked = Probe::under(&mut world, id(8));
    let prefixes = ["192.0.2.2/32", "2001:db8:1::/64"].map(|prefix| prefix.parse().unwrap());
    let elsewhere = ["203.0.113.0/24".parse().unwrap()];

    world.kernel().set_lan(policy, &prefixes.into()).unwrap();
    world.kernel().set_lan(other, &elsewhere.into()).unwrap();

    assert_eq!(send(&mut probe, "udp4", &[], world.wan.far4), "ok");
    assert_eq!(send(&mut probe, "udp6", &[], world.wan.far6), "ok");
    // An IPv6 socket that talks IPv4 is no other way.
    assert_eq!(send(&mut probe, "udp6", &[], "[::ffff:192.0.2.2]:7"), "ok");
    assert_eq!(send(&mut probe, "udp4", &[], "192.0.2.3:7"), EPERM);
    assert_eq!(send(&mut blocked, "udp4", &[], world.wan.far4), EPERM);
    world
        .kernel()
        .set_lan(policy, &[prefixes[1]].into())
        .unwrap();
    assert_eq!(send(&mut probe, "udp4", &[], world.wan.far4), EPERM);
    assert_eq!(send(&mut probe, "udp6", &[], world.wan.far6), "ok");
}

fn other_namespace_with_the_same_mark_is_left_alone() {
    let mut blocking = World::new();
    blocking.policy(7, Policy::BLOCK);
    let other = std::thread::spawn(|| {
        let world = World::without_kernel();
        let mut probe = Probe::start();
        let mark = ["set-mark 117440512"];
        let answer = send(&mut probe, "udp4", &mark, world.wan.far4);
        (answer, world.arrived())
    });

    let (answer, arrived) = other.join().unwrap();

    assert_eq!(answer, "ok");
    assert_eq!(arrived, [b"leak"]);
    assert_eq!(blocking.kernel().counters(id(7)).unwrap().refused, 0);
}

/// The programs of a daemon that died with its namespace are still there.
fn namespace_with_the_number_of_a_dead_one_is_left_alone() {
    let dead = std::thread::spawn(|| {
        let mut blocking = World::new();
        blocking.policy(7, Policy::BLOCK);
        blocking.close();
        (blocking, namespace_number())
    });
    let (_blocking, number) = dead.join().unwrap();

    reuse_namespace_number(number);
    let world = World::here();
    let mut probe = Probe::start();
    let answer = send(&mut probe, "udp4", &["set-mark 117440512"], world.wan.far4);

    assert_eq!(answer, "ok");
    assert_eq!(world.arrived(), [b"leak"]);
}

fn counters_are_exact() {
    const DATAGRAMS: u64 = 100;
    let mut world = World::new();
    let policy = world.tunnel_policy(7);
    let tun = world.tun;
    world
        .kernel()
        .stamp(tun.index, tun.name, Some(policy))
        .unwrap();
    let mut probe = Probe::under(&mut world, id(7));

    for (kind, far) in [("udp4", tun.far4), ("udp6", tun.far6)] {
        assert_eq!(probe.ask(&format!("socket {kind}")), "ok");
        for _ in 0..DATAGRAMS {
            assert_eq!(probe.ask(&format!("send-to {far} 0123456789")), "ok");
            assert_eq!(probe.ask("receive"), "10");
        }
    }

    // Payload, UDP header, IPv4 and IPv6 header.
    let bytes = DATAGRAMS * (10 + 8 + 20) + DATAGRAMS * (10 + 8 + 40);
    let counters = world.kernel().counters(policy).unwrap();
    assert_eq!(
        (counters.tx_packets, counters.tx_bytes),
        (2 * DATAGRAMS, bytes)
    );
    assert_eq!(
        (counters.rx_packets, counters.rx_bytes),
        (2 * DATAGRAMS, bytes)
    );
    assert_eq!(counters.refused, 0);
}

fn shared_tunnel_counts_for_the_policy_of_the_socket() {
    let mut world = World::new();
    let tun = world.tun;
    for number in [7, 8] {
        world.policy(number, Policy::tunnel(tun.index).shared());
    }
    world
        .kernel()
        .stamp(tun.index, tun.name, Some(id(7)))
        .unwrap();

    for (number, datagrams) in [(7, 3), (8, 5)] {
        let mut probe = Probe::under(&mut world, id(number));
        assert_eq!(probe.ask("socket udp4"), "ok");
        for _ in 0..datagrams {
            assert_eq!(probe.ask(&format!("send-to {} text", tun.far4)), "ok");
            assert_eq!(probe.ask("receive"), "4");
        }
    }

    let received =
        |world: &mut World, number| world.kernel().counters(id(number)).unwrap().rx_packets;
    assert_eq!((received(&mut world, 7), received(&mut world, 8)), (3, 5));
}
