//! What lives on when a daemon dies, what the next one takes over, and what is left in the end.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use aya::programs::{
    SchedClassifier, TcAttachType,
    links::{FdLink, LinkInfo, PinnedLink},
    loaded_programs,
};
use lockne_abi::{MarkField, Policy};
use lockne_daemon::kernel::{Error, Kernel, Removed};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::{
    hooks, missed,
    probe::Probe,
    tests,
    world::{self, World, id, mark},
};

tests! {
    everything_holds_without_a_daemon,
    next_daemon_adopts_everything,
    guard_is_as_strict_under_the_next_daemon,
    there_is_no_gap_while_a_daemon_replaces_another,
    adoption_replaces_every_program_within_its_link,
    pins_may_be_in_a_bpffs_of_somebody_else,
    pins_of_another_namespace_are_refused_and_stay_in_force,
    other_field_of_the_mark_is_refused,
    nothing_is_left_after_remove,
    remove_of_nothing_is_fine,
}

const EPERM: &str = "1";

fn everything_holds_without_a_daemon() {
    let mut world = World::new();
    world.tunnel_policy(7);
    let mut probe = Probe::under(&mut world, id(7));

    world.close();

    assert_eq!(probe.mark_of("udp4"), mark(7));
    assert_eq!(probe.ask("of-child"), mark(7));
    assert_eq!(
        probe.ask(&format!("send-to {} leak", world.wan.far4)),
        EPERM
    );
    assert!(world.arrived().is_empty());
    assert!(Kernel::exists(&world.pins()));
}

fn next_daemon_adopts_everything() {
    let mut world = World::new();
    let policy = world.tunnel_policy(7);
    let tun = world.tun;
    let lan = BTreeSet::from(["192.0.2.0/24".parse().unwrap()]);
    world.kernel().set_lan(policy, &lan).unwrap();
    world
        .kernel()
        .stamp(tun.index, tun.name, Some(policy))
        .unwrap();
    let mut probe = Probe::under(&mut world, id(7));
    exchange(&world, &mut probe);
    let before = world.kernel().counters(policy).unwrap();
    assert_eq!((before.tx_packets, before.rx_packets), (1, 1));

    world.open();

    assert_eq!(
        world.kernel().policy(policy).unwrap(),
        Policy::tunnel(tun.index)
    );
    assert_eq!(world.kernel().processes(policy), [probe.pid()]);
    assert_eq!(world.kernel().counters(policy).unwrap(), before);
    exchange(&world, &mut probe);
    let after = world.kernel().counters(policy).unwrap();
    assert_eq!((after.tx_packets, after.rx_packets), (2, 2));
    assert_eq!(probe.ask("of-child"), mark(7));
}

fn guard_is_as_strict_under_the_next_daemon() {
    let mut world = World::new();
    world.tunnel_policy(7);
    world.open();
    assert!(!world.kernel().is_strict().unwrap());
    let mut probe = Probe::under(&mut world, id(7));
    // It runs as root, so it can mark packets.
    assert_eq!(probe.ask("socket udp4"), "ok");
    assert!(world.kernel().is_strict().unwrap());

    for _ in 0..2 {
        world.open();

        assert!(world.kernel().is_strict().unwrap());
    }
}

/// A datagram and its echo through the tunnel, and another pair past it.
fn exchange(world: &World, probe: &mut Probe) {
    for far in [world.tun.far4, world.wan.far4] {
        assert_eq!(probe.ask("socket udp4"), "ok");
        assert_eq!(probe.ask(&format!("send-to {far} text")), "ok");
        assert_eq!(probe.ask("receive"), "4");
    }
}

fn there_is_no_gap_while_a_daemon_replaces_another() {
    let mut world = World::new();
    world.tunnel_policy(7);
    let mut probe = Probe::under(&mut world, id(7));
    let mut parent = Probe::under(&mut world, id(7));
    assert_eq!(probe.ask(&format!("hammer {}", world.wan.far4)), "ok");
    parent.tell("forks 1000");

    for _ in 0..5 {
        world.open();
    }

    assert_eq!(parent.answer(), "0");
    assert_eq!(
        probe.ask("hammer-stop"),
        "1 0 0",
        "many sockets, none unmarked, nothing sent"
    );
    assert!(world.arrived().is_empty());
    let mut left = [probe.pid(), parent.pid()];
    left.sort_unstable();
    assert_eq!(world.kernel().processes(id(7)), left);
}

fn adoption_replaces_every_program_within_its_link() {
    let tracepoints = 3 + missed();
    let mut world = World::new();
    let before = attached(&world);

    world.open();

    let after = attached(&world);
    assert_eq!((before.len(), after.len()), (hooks(), hooks()));
    let programs = ids(&before, LinkInfo::program_id);
    assert!(programs.is_disjoint(&ids(&after, LinkInfo::program_id)));
    // A link that was made anew would have left a gap; tracepoints overlap instead.
    let links = ids(&before, LinkInfo::id);
    let kept = links.intersection(&ids(&after, LinkInfo::id)).count();
    assert_eq!(kept, before.len() - tracepoints);
    wait_until_gone(&programs);
}

fn pins_may_be_in_a_bpffs_of_somebody_else() {
    world::new_namespace();
    let dir = tempfile::tempdir().unwrap();
    rustix::mount::mount("bpf", dir.path(), "bpf", MountFlags::empty(), c"").unwrap();
    let pins = dir.path().join("lockne");
    drop(Kernel::open(&pins, MarkField::DEFAULT).unwrap());

    let removed = Kernel::remove(&pins).unwrap();

    assert_eq!(removed.programs as usize, hooks());
    assert!(!pins.exists() && dir.path().exists());
    rustix::mount::unmount(dir.path(), UnmountFlags::empty()).unwrap();
}

fn pins_of_another_namespace_are_refused_and_stay_in_force() {
    let mut world = World::new();
    let mut probe = Probe::under(&mut world, id(7));
    let pins = world.pins();

    let error = thread::spawn(move || {
        world::new_namespace();
        Kernel::open(&pins, MarkField::DEFAULT).unwrap_err()
    });

    let error = error.join().unwrap();
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
    assert_eq!(probe.mark_of("udp4"), mark(7));
}

fn other_field_of_the_mark_is_refused() {
    let world = World::new();

    let error = Kernel::open(&world.pins(), MarkField::new(8).unwrap()).unwrap_err();

    assert!(matches!(error, Error::Foreign { .. }), "{error}");
    assert!(error.hint().is_some());
}

fn nothing_is_left_after_remove() {
    let mut world = World::new();
    let policy = world.tunnel_policy(7);
    let tun = world.tun;
    world
        .kernel()
        .stamp(tun.index, tun.name, Some(policy))
        .unwrap();
    let mut probe = Probe::under(&mut world, id(7));
    let programs = ids(&attached(&world), LinkInfo::program_id);
    // Before Linux 6.6, the classifier of the device has no link that could be pinned.
    let has_link = SchedClassifier::query_tcx(tun.name, TcAttachType::Ingress).is_ok();
    assert_eq!(programs.len(), hooks() + usize::from(has_link));
    world.close();

    let removed = Kernel::remove(&world.pins()).unwrap();

    let expected = Removed {
        programs: u32::try_from(hooks() + 1).unwrap(),
        processes: 1,
    };
    assert_eq!(removed, expected);
    assert!(!Kernel::exists(&world.pins()) && !world.pins().exists());
    assert_eq!(probe.mark_of("udp4"), mark(0), "at once");
    wait_until_gone(&programs);
}

fn remove_of_nothing_is_fine() {
    let dir = tempfile::tempdir().unwrap();

    for pins in [dir.path().join("none"), dir.path().to_owned()] {
        assert_eq!(Kernel::remove(&pins).unwrap(), Removed::default());
    }
}

/// What the kernel says about the pinned links.
fn attached(world: &World) -> Vec<LinkInfo> {
    std::fs::read_dir(world.pins())
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.starts_with(char::is_lowercase) && !name.contains('.')
        })
        .map(|entry| {
            let link: FdLink = PinnedLink::from_pin(entry.path()).unwrap().into();
            link.info().unwrap()
        })
        .collect()
}

fn ids(links: &[LinkInfo], id: fn(&LinkInfo) -> u32) -> BTreeSet<u32> {
    links.iter().map(id).collect()
}

/// The kernel frees programs some milliseconds after their last use.
fn wait_until_gone(programs: &BTreeSet<u32>) {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let left = loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| programs.contains(&program.id()))
            .count();
        if left == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{left} programs are left");
        thread::yield_now();
    }
}
