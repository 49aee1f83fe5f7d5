//! `cgroup/connect` and `cgroup/sendmsg`: sockets that are older than the policy.

use crate::{
    probe::Probe,
    tests,
    world::{World, mark},
};

tests! {
    connect_marks_an_older_socket,
    older_socket_loses_one_datagram_and_then_is_marked,
    other_bits_of_an_older_mark_stay,
    connect_of_a_socket_bound_to_a_wrong_device_fails_at_once,
}

const EAGAIN: &str = "11";
const ENETUNREACH: &str = "101";

fn connect_marks_an_older_socket() {
    let mut world = World::new();
    let policy = world.tunnel_policy(7);
    for (kind, far) in [
        ("tcp4", world.tun.far4),
        ("tcp6", world.tun.far6),
        ("udp4", world.tun.far4),
        ("udp6", world.tun.far6),
    ] {
        let mut probe = Probe::start();
        assert_eq!(probe.mark_of(kind), mark(0));
        world
            .kernel()
            .set_process(probe.pid(), Some(policy))
            .unwrap();

        assert_eq!(probe.ask(&format!("connect {far}")), "ok", "{kind}");

        assert_eq!(probe.ask("mark"), mark(7), "{kind}");
    }
}

fn older_socket_loses_one_datagram_and_then_is_marked() {
    let mut world = World::new();
    let policy = world.tunnel_policy(7);
    for (kind, far) in [("udp4", world.tun.far4), ("udp6", world.tun.far6)] {
        let mut probe = Probe::start();
        assert_eq!(probe.mark_of(kind), mark(0));
        world
            .kernel()
            .set_process(probe.pid(), Some(policy))
            .unwrap();

        assert_eq!(probe.ask(&format!("send-to {far} first")), EAGAIN, "{kind}");
        assert_eq!(probe.ask(&format!("send-to {far} second")), "ok", "{kind}");

        assert_eq!(probe.ask("mark"), mark(7), "{kind}");
        assert_eq!(world.arrived(), [b"second"], "{kind}");
    }
    assert_eq!(world.kernel().counters(policy).unwrap().refused, 2);
}

fn other_bits_of_an_older_mark_stay() {
    let mut world = World::new();
    let policy = world.tunnel_policy(7);
    let mut probe = Probe::start();
    assert_eq!(probe.ask("socket udp4"), "ok");
    assert_eq!(probe.ask("set-mark 51820"), "ok");
    world
        .kernel()
        .set_process(probe.pid(), Some(policy))
        .unwrap();

    assert_eq!(probe.ask(&format!("connect {}", world.tun.far4)), "ok");

    assert_eq!(probe.ask("mark"), format!("{:#x}", 0x0700_0000 + 51820));
}

fn connect_of_a_socket_bound_to_a_wrong_device_fails_at_once() {
    let mut world = World::new();
    let policy = world.tunnel_policy(7);
    let mut probe = Probe::under(&mut world, policy);
    for (kind, wan, tun) in [
        ("tcp4", world.wan.far4, world.tun.far4),
        ("tcp6", world.wan.far6, world.tun.far6),
        ("udp4", world.wan.far4, world.tun.far4),
    ] {
        assert_eq!(probe.ask(&format!("socket {kind}")), "ok");
        assert_eq!(probe.ask("bind-device wan"), "ok");
        assert_eq!(probe.ask(&format!("connect {wan}")), ENETUNREACH, "{kind}");

        assert_eq!(probe.ask(&format!("socket {kind}")), "ok");
        assert_eq!(probe.ask("bind-device tun"), "ok");
        assert_eq!(probe.ask(&format!("connect {tun}")), "ok", "{kind}");
    }
    assert_eq!(world.kernel().counters(policy).unwrap().refused, 3);
    let lan = "192.0.2.0/24".parse().unwrap();

    world.kernel().set_lan(policy, &[lan].into()).unwrap();

    assert_eq!(probe.ask("socket tcp4"), "ok");
    assert_eq!(probe.ask("bind-device wan"), "ok");
    assert_eq!(probe.ask(&format!("connect {}", world.wan.far4)), "ok");
}
