//! `follow_fork` and `forget_exit`: children inherit, and the dead are forgotten.

use lockne_abi::name;
use lockne_interpreter::World;

use crate::run::{CONFIG, executed, note_exec, noted_exec, process, run, set_process};

const SHELL: u32 = 100;
const CHILD: u32 = 200;

/// A `task_struct` as far as the programs read it: a thread `pid` of process `tgid`.
fn task(world: &mut World, tgid: u32, pid: u32, threads_left: i32) -> u64 {
    let mut signal = [0; 64];
    let at = CONFIG.signal_live as usize;
    signal[at..at + 4].copy_from_slice(&threads_left.to_ne_bytes());
    let signal = world.block(&signal);
    let mut task = [0; 64];
    for (at, bytes) in [
        (CONFIG.task_tgid, &tgid.to_ne_bytes()[..]),
        (CONFIG.task_pid, &pid.to_ne_bytes()),
        (CONFIG.task_signal, &signal.to_ne_bytes()),
    ] {
        let at = at as usize;
        task[at..at + bytes.len()].copy_from_slice(bytes);
    }
    world.block(&task)
}

/// Lets `parent` make the thread `pid` of process `tgid`.
fn fork(parent: u32, tgid: u32, pid: u32, prepare: impl Fn(&mut World)) -> World {
    run(name::FOLLOW_FORK, &[], |world, _| {
        prepare(world);
        world.process = parent;
        [task(world, tgid, pid, 1)]
    })
    .world
}

/// Lets the thread `pid` of process `SHELL` end, so that `threads_left` are left.
fn exit(pid: u32, threads_left: i32) -> World {
    run(name::FORGET_EXIT, &[], |world, _| {
        set_process(world, SHELL, 7);
        [task(world, SHELL, pid, threads_left)]
    })
    .world
}

fn forks(world: &mut World) -> u64 {
    let count = world.map(name::FORKS).get(&0_u32.to_ne_bytes()).unwrap();
    u64::from_ne_bytes(count.try_into().unwrap())
}

fn overflowed(world: &mut World) -> bool {
    let flag = world.map(name::OVERFLOW).get(&0_u32.to_ne_bytes()).unwrap();
    flag != [0; 4]
}

#[test]
fn child_of_a_policed_process_has_its_policy_and_is_counted() {
    let mut after = fork(SHELL, CHILD, CHILD, |world| set_process(world, SHELL, 7));

    assert_eq!(process(&mut after, CHILD), 7);
    assert_eq!(forks(&mut after), 1);
}

#[test]
fn child_of_a_free_process_does_not_inherit_from_the_dead_that_had_its_id() {
    let mut after = fork(SHELL, CHILD, CHILD, |world| set_process(world, CHILD, 7));

    assert_eq!(process(&mut after, CHILD), 0);
    assert_eq!(forks(&mut after), 0);
}

#[test]
fn new_thread_changes_nothing() {
    let mut after = fork(SHELL, SHELL, CHILD, |world| set_process(world, SHELL, 7));

    assert_eq!(
        (process(&mut after, SHELL), process(&mut after, CHILD)),
        (7, 0)
    );
    assert_eq!(forks(&mut after), 0);
}

#[test]
fn policed_child_beyond_the_table_is_remembered_as_lost() {
    let beyond = CONFIG.max_processes;
    let policed = |world: &mut World| set_process(world, SHELL, 7);

    assert!(overflowed(&mut fork(SHELL, beyond, beyond, policed)));
    assert!(!overflowed(&mut fork(SHELL, beyond, beyond, |_| {})));
}

#[test]
fn process_is_forgotten_with_its_last_thread_and_not_before() {
    // The first thread may end first.
    assert_eq!(process(&mut exit(SHELL, 2), SHELL), 7);
    assert_eq!(process(&mut exit(SHELL + 5, 0), SHELL), 0);
}

#[test]
fn task_that_is_already_torn_down_is_passed_over() {
    let mut after = run(name::FORGET_EXIT, &[], |world, _| {
        set_process(world, SHELL, 7);
        [world.block(&[0; 64])]
    })
    .world;

    assert_eq!(process(&mut after, SHELL), 7);
}

#[test]
fn child_is_the_program_of_its_parent_also_where_that_was_missed() {
    // It is process 0, as the task says nothing else.
    let child = |noted: Option<u8>, count: u64| {
        let mut after = run(name::FOLLOW_FORK, &[], |world, _| {
            world.process = SHELL;
            if let Some(noted) = noted {
                note_exec(world, SHELL, noted);
            }
            [executed(world, count)]
        })
        .world;
        noted_exec(&mut after, 0)
    };

    assert_eq!(child(Some(3), 3), Some(3));
    assert_eq!(
        child(Some(3), 4),
        Some(3),
        "its parent's last exec was missed"
    );
    assert_eq!(child(None, 4), Some(4), "its parent is older than lockne");
}
