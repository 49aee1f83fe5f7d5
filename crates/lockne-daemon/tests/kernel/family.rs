//! `sched_process_fork` and `sched_process_exit`.

use std::thread;

use aya::maps::{Array, MapData};
use lockne_abi::{PROCESSES_PER_PAGE, Policy, name};
use rustix::mount::MountFlags;

use crate::{
    probe::Probe,
    tests,
    world::{World, mark},
};

tests! {
    child_grandchild_program_and_thread_inherit,
    no_fork_misses_its_policy_however_quick,
    thirty_two_thousand_processes_each_have_their_policy,
    process_that_ended_is_forgotten,
    process_keeps_its_policy_after_its_first_thread_ended,
    what_is_no_process_gets_no_policy,
    lost_child_of_a_policed_process_gets_no_socket,
}

const EPERM: &str = "1";

fn child_grandchild_program_and_thread_inherit() {
    let mut world = World::new();
    let policy = world.policy(7, Policy::BLOCK);
    let mut probe = Probe::under(&mut world, policy);

    for heir in ["thread", "child", "grandchild", "program"] {
        assert_eq!(probe.ask(&format!("of-{heir}")), mark(7), "{heir}");
    }
}

fn no_fork_misses_its_policy_however_quick() {
    let mut world = World::new();
    let policy = world.policy(7, Policy::BLOCK);
    let mut probes = [Probe::start(), Probe::start(), Probe::start()];
    for probe in &probes {
        world
            .kernel()
            .set_process(probe.pid(), Some(policy))
            .unwrap();
    }

    for probe in &mut probes {
        probe.tell("forks 3334");
    }

    for probe in &mut probes {
        assert_eq!(probe.answer(), "0");
    }
    let mut left: Vec<_> = probes.iter().map(Probe::pid).collect();
    left.sort_unstable();
    assert_eq!(world.kernel().processes(policy), left);
}

fn thirty_two_thousand_processes_each_have_their_policy() {
    const MANY: u64 = 32_000;
    let mut world = World::new();
    let policy = world.policy(7, Policy::BLOCK);
    let mut probe = Probe::under(&mut world, policy);

    // By as many as there are ids for: some systems have 32 768 of them for all processes and threads.
    let (alive, right) = {
        let answer = probe.ask(&format!("crowd {MANY}"));
        let (alive, right) = answer.split_once(' ').unwrap();
        (alive.parse::<u64>().unwrap(), right.parse::<u64>().unwrap())
    };
    let members = world.kernel().members(policy);
    let disperse = probe.ask("disperse");

    assert_eq!(alive, MANY, "the machine has not the room for so many");
    assert_eq!(right, MANY, "each one's first socket has the mark");
    assert_eq!(members, MANY + 1);
    assert_eq!(disperse, "ok");
    assert_eq!(world.kernel().members(policy), 1, "each one was forgotten");
}

fn process_that_ended_is_forgotten() {
    let mut world = World::new();
    let policy = world.policy(7, Policy::BLOCK);
    let (first, second) = (Probe::start(), Probe::start());
    let (pid, left) = (first.pid(), second.pid());
    for probe in [&first, &second] {
        world
            .kernel()
            .set_process(probe.pid(), Some(policy))
            .unwrap();
    }

    first.end();

    assert_eq!(world.kernel().process(pid), None);
    assert_eq!(world.kernel().processes(policy), [left]);
    drop(second);
    assert_eq!(world.kernel().members(policy), 0);
}

fn process_keeps_its_policy_after_its_first_thread_ended() {
    let mut world = World::new();
    let policy = world.policy(7, Policy::BLOCK);
    let mut probe = Probe::under(&mut world, policy);

    assert_eq!(probe.ask("leader-leaves"), "ok");
    let stat = format!("/proc/{}/stat", probe.pid());
    while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
        thread::yield_now();
    }

    assert_eq!(probe.mark_of("udp4"), mark(7));
    assert_eq!(probe.ask("of-child"), mark(7));
    assert_eq!(world.kernel().members(policy), 1);
    // It still is a process that can be given another policy.
    world.kernel().set_process(probe.pid(), None).unwrap();
    world
        .kernel()
        .set_process(probe.pid(), Some(policy))
        .unwrap();
    probe.end();
    assert_eq!(world.kernel().members(policy), 0);
}

fn what_is_no_process_gets_no_policy() {
    let mut world = World::new();
    let policy = world.policy(7, Policy::BLOCK);
    let probe = Probe::start();
    let pid = probe.pid();
    probe.end();
    let thread = rustix::thread::gettid().as_raw_nonzero().get();

    for pid in [pid, thread.try_into().unwrap(), u32::MAX] {
        world.kernel().set_process(pid, Some(policy)).unwrap_err();
    }

    assert_eq!(world.kernel().members(policy), 0);
}

/// As after `kernel.pid_max` was raised: the table ends soon after the process.
fn lost_child_of_a_policed_process_gets_no_socket() {
    let mut world = World::without_kernel();
    let pins = world.pins();
    std::fs::create_dir(&pins).unwrap();
    rustix::mount::mount("bpf", &pins, "bpf", MountFlags::empty(), c"").unwrap();
    // In this order, so that both are in the table.
    let mut stranger = Probe::start();
    let mut probe = Probe::start();
    let pages = probe.pid() / PROCESSES_PER_PAGE + 1;
    let table = Array::<MapData, [u16; PROCESSES_PER_PAGE as usize]>::create(pages, 1024).unwrap();
    table.pin(pins.join(name::PROCESSES)).unwrap();
    world.open();
    let policy = world.policy(7, Policy::BLOCK);
    world
        .kernel()
        .set_process(probe.pid(), Some(policy))
        .unwrap();
    let beyond = pages * PROCESSES_PER_PAGE;
    let stranger_before = stranger.ask(&format!("fork-until {beyond}"));
    assert!(!world.kernel().has_overflowed().unwrap());

    let lost = probe.ask(&format!("fork-until {beyond}"));

    assert_eq!(stranger_before, mark(0), "nobody was lost yet");
    assert_eq!(lost, EPERM);
    assert!(world.kernel().has_overflowed().unwrap());
    assert_eq!(probe.mark_of("udp4"), mark(7), "the parent is known");
    assert_eq!(stranger.mark_of("udp4"), mark(0), "so is who has no policy");
}
