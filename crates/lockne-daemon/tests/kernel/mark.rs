//! `cgroup/sock_create`.

use lockne_abi::Policy;

use crate::{
    probe::Probe,
    tests,
    world::{self, World, mark},
};

tests! {
    each_kind_of_socket_carries_the_mark,
    process_without_a_policy_is_left_alone,
    socket_in_another_namespace_is_left_alone,
    freed_process_is_left_alone_again,
    multipath_tcp_is_refused_so_that_applications_fall_back,
}

const EPROTONOSUPPORT: &str = "93";

fn each_kind_of_socket_carries_the_mark() {
    let mut world = World::new();
    let policy = world.policy(7, Policy::BLOCK);
    let mut probe = Probe::under(&mut world, policy);

    for kind in ["udp4", "udp6", "tcp4", "tcp6", "raw4", "raw6"] {
        assert_eq!(probe.mark_of(kind), mark(7), "{kind}");
    }
}

fn process_without_a_policy_is_left_alone() {
    let mut world = World::new();
    let policy = world.policy(7, Policy::BLOCK);
    let (policed, mut other) = (Probe::start(), Probe::start());

    world
        .kernel()
        .set_process(policed.pid(), Some(policy))
        .unwrap();

    for kind in ["udp4", "tcp6", "mptcp4"] {
        assert_eq!(other.mark_of(kind), mark(0), "{kind}");
    }
}

fn socket_in_another_namespace_is_left_alone() {
    let mut world = World::new();
    let policy = world.policy(7, Policy::BLOCK);
    let mut probe = std::thread::spawn(|| {
        world::new_namespace();
        Probe::start()
    })
    .join()
    .unwrap();

    world
        .kernel()
        .set_process(probe.pid(), Some(policy))
        .unwrap();

    assert_eq!(probe.mark_of("udp4"), mark(0));
    assert_eq!(probe.mark_of("mptcp4"), mark(0));
}

fn freed_process_is_left_alone_again() {
    let mut world = World::new();
    let policy = world.policy(7, Policy::BLOCK);
    let mut probe = Probe::under(&mut world, policy);

    world.kernel().set_process(probe.pid(), None).unwrap();

    assert_eq!(probe.mark_of("udp4"), mark(0));
    assert_eq!(world.kernel().members(policy), 0);
}

fn multipath_tcp_is_refused_so_that_applications_fall_back() {
    let mut world = World::new();
    let policy = world.policy(7, Policy::BLOCK);
    let mut probe = Probe::under(&mut world, policy);

    let (v4, v6) = (probe.mark_of("mptcp4"), probe.mark_of("mptcp6"));

    assert_eq!(
        (v4.as_str(), v6.as_str()),
        (EPROTONOSUPPORT, EPROTONOSUPPORT)
    );
    assert_eq!(world.kernel().counters(policy).unwrap().refused, 2);
}
