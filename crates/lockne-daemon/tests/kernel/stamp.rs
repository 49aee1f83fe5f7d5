//! The classifier on the ingress of tunnel devices.

use aya::programs::{SchedClassifier, TcAttachType, tc};
use lockne_abi::name;
use lockne_daemon::kernel::{Error, Kernel};

use crate::{
    hooks,
    probe::Probe,
    tests,
    world::{self, World, id},
};

tests! {
    stamp_ends_when_it_is_taken_off,
    device_that_came_back_is_stamped_again,
    wrong_name_of_a_device_is_refused,
    stamp_works_by_clsact_and_leaves_nothing,
}

/// How many replies were counted, which takes the stamp.
fn counted_replies(world: &mut World) -> u64 {
    let before = world.kernel().counters(id(7)).unwrap().rx_packets;
    let mut probe = Probe::start();
    world
        .kernel()
        .set_process(probe.pid(), Some(id(7)))
        .unwrap();
    assert_eq!(probe.ask("socket udp4"), "ok");
    assert_eq!(probe.ask(&format!("send-to {} text", world.tun.far4)), "ok");
    assert_eq!(probe.ask("receive"), "4");
    world.kernel().counters(id(7)).unwrap().rx_packets - before
}

fn stamp_ends_when_it_is_taken_off() {
    let mut world = World::new();
    let policy = world.tunnel_policy(7);
    let tun = world.tun;
    assert_eq!(counted_replies(&mut world), 0);

    world
        .kernel()
        .stamp(tun.index, tun.name, Some(policy))
        .unwrap();
    assert_eq!(counted_replies(&mut world), 1);
    world
        .kernel()
        .stamp(tun.index, tun.name, Some(policy))
        .unwrap();
    assert_eq!(counted_replies(&mut world), 1, "a second time is no harm");

    world.kernel().stamp(tun.index, tun.name, None).unwrap();
    assert_eq!(counted_replies(&mut world), 0);
    world.kernel().stamp(tun.index, tun.name, None).unwrap();
}

fn device_that_came_back_is_stamped_again() {
    let mut world = World::new();
    let policy = world.tunnel_policy(7);
    let tun = world.tun;
    world
        .kernel()
        .stamp(tun.index, tun.name, Some(policy))
        .unwrap();
    world::delete(&tun);
    world::make(&tun, "tun-far");

    world
        .kernel()
        .stamp(tun.index, tun.name, Some(policy))
        .unwrap();

    assert!(is_stamped(tun.name));
    world::delete(&tun);
    world.kernel().stamp(tun.index, tun.name, None).unwrap();
}

/// Whether the classifier sits on a device, in the way that this kernel has.
fn is_stamped(device: &str) -> bool {
    match SchedClassifier::query_tcx(device, TcAttachType::Ingress) {
        Ok((_, attached)) => attached.len() == 1,
        Err(_) => {
            tc::qdisc_detach_program(device, TcAttachType::Ingress, name::STAMP_REPLY).is_ok()
        }
    }
}

fn wrong_name_of_a_device_is_refused() {
    let mut world = World::new();
    let policy = world.tunnel_policy(7);
    let (tun, wan) = (world.tun, world.wan);

    for name in [wan.name, "none"] {
        let error = world
            .kernel()
            .stamp(tun.index, name, Some(policy))
            .unwrap_err();

        assert!(matches!(error, Error::Device { .. }), "{error}");
    }
}

fn stamp_works_by_clsact_and_leaves_nothing() {
    let mut world = World::new();
    let policy = world.tunnel_policy(7);
    let tun = world.tun;
    let filters = || {
        let ingress = TcAttachType::Ingress;
        tc::qdisc_detach_program(tun.name, ingress, name::STAMP_REPLY).is_ok()
    };

    for _ in 0..2 {
        world
            .kernel()
            .stamp_by_clsact(tun.index, tun.name, policy)
            .unwrap();
        assert_eq!(counted_replies(&mut world), 1);
    }
    world.close();
    world.open();
    assert_eq!(counted_replies(&mut world), 1, "it outlives the daemon");

    world.close();
    let removed = Kernel::remove(&world.pins()).unwrap();

    assert_eq!(removed.programs as usize, hooks() + 1);
    assert!(!filters(), "it does not outlive `remove`");
}
