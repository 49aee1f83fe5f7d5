//! `mark_socket`: what becomes of a new socket.

use lockne_abi::name;
use lockne_interpreter::{World, context};

use crate::run::{
    CONFIG, OTHERS, Outcome, choose, counters, executed, mark, note_exec, run, set_process,
};

const ALLOW: u32 = 1;
const REFUSE: u32 = 0;

const CURL: u32 = 100;
const TCP: u32 = 6;
const MPTCP: u32 = 262;

/// Lets process `pid` make a socket; `CURL` is under policy 7.
fn create(
    pid: u32,
    protocol: u32,
    prepare: impl Fn(&mut World),
) -> Outcome<aya_ebpf::bindings::bpf_sock> {
    run(name::MARK_SOCKET, &[], |world, _| {
        set_process(world, CURL, 7);
        world.process = pid;
        prepare(world);
        let mut socket = context::sock();
        (socket.protocol, socket.mark) = (protocol, OTHERS);
        socket
    })
}

#[test]
fn socket_of_a_policed_process_gets_the_mark_and_keeps_the_bits_of_others() {
    let after = create(CURL, TCP, |_| {});

    assert_eq!((after.verdict, after.context.mark), (ALLOW, mark(7)));
}

#[test]
fn socket_of_any_other_process_is_not_touched() {
    for pid in [1, CURL - 1, CURL + 1] {
        let after = create(pid, TCP, |_| {});

        assert_eq!((after.verdict, after.context.mark), (ALLOW, OTHERS));
    }
}

#[test]
fn socket_in_another_network_namespace_is_not_touched() {
    let after = create(CURL, TCP, |world| world.netns_cookie += 1);

    assert_eq!((after.verdict, after.context.mark), (ALLOW, OTHERS));
}

#[test]
fn multipath_tcp_is_refused_with_the_errno_on_which_programs_fall_back() {
    let mut after = create(CURL, MPTCP, |_| {});

    assert_eq!((after.verdict, after.world.retval), (REFUSE, Some(-93)));
    assert_eq!(counters(&mut after.world, 7).refused, 1);
    assert_eq!(create(1, MPTCP, |_| {}).verdict, ALLOW);
}

#[test]
fn process_beyond_the_table_is_free_until_a_policed_child_was_lost_there() {
    let beyond = CONFIG.max_processes;
    assert_eq!(create(beyond, TCP, |_| {}).verdict, ALLOW);

    let after = create(beyond, TCP, |world| {
        let flag = world.map(name::OVERFLOW);
        assert!(flag.set(&0_u32.to_ne_bytes(), &1_u32.to_ne_bytes()));
    });
    assert_eq!(after.verdict, REFUSE);
}

/// A process with these rights, in a user namespace this deep.
fn rights(world: &mut World, rights: u64, level: u32) {
    let mut namespace = [0; 64];
    let at = CONFIG.user_ns_level as usize;
    namespace[at..at + 4].copy_from_slice(&level.to_ne_bytes());
    let namespace = world.block(&namespace);
    let mut cred = [0; 64];
    let at = CONFIG.cred_permitted as usize;
    cred[at..at + 8].copy_from_slice(&rights.to_ne_bytes());
    let at = CONFIG.cred_user_ns as usize;
    cred[at..at + 8].copy_from_slice(&namespace.to_ne_bytes());
    let cred = world.block(&cred);
    let mut task = [0; 64];
    let at = CONFIG.task_cred as usize;
    task[at..at + 8].copy_from_slice(&cred.to_ne_bytes());
    world.task = world.block(&task);
}

#[test]
fn guard_becomes_strict_when_a_policed_process_that_can_mark_packets_makes_a_socket() {
    const NET_ADMIN: u64 = 1 << 12;
    const NET_RAW: u64 = 1 << 13;
    const OTHERS: u64 = !(NET_ADMIN | NET_RAW);
    let cases = [
        (CURL, NET_ADMIN, 0, 1),
        (CURL, NET_RAW, 0, 1),
        (CURL, OTHERS, 0, 0),
        (CURL, NET_ADMIN, 1, 0),
        (CURL + 1, NET_ADMIN, 0, 0),
    ];
    for (pid, bits, level, strict) in cases {
        let mut after = create(pid, TCP, |world| rights(world, bits, level));

        for map in [name::STRICT, name::BSS] {
            let flag = after.world.map(map).get(&[0; 4]).unwrap();
            assert_eq!(flag, u32::to_ne_bytes(strict), "{pid} {bits:#x} {level}");
        }
    }
}

#[test]
fn guard_becomes_strict_where_the_rights_cannot_be_read() {
    let mut after = create(CURL, TCP, |_| {});

    let flag = after.world.map(name::BSS).get(&[0; 4]).unwrap();
    assert_eq!(flag, u32::to_ne_bytes(1));
}

/// The socket of a process whose `noted`th exec was the last one seen, and which has executed `count` programs.
fn create_after(noted: Option<u8>, count: u64, chosen: bool) -> (u32, u32) {
    let after = create(CURL, TCP, |world| {
        if let Some(noted) = noted {
            note_exec(world, CURL, noted);
        }
        if chosen {
            choose(world, CURL);
        }
        world.task = executed(world, count);
    });
    (after.verdict, after.context.mark)
}

#[test]
fn program_whose_start_was_missed_gets_no_socket() {
    assert_eq!(create_after(Some(3), 3, false), (ALLOW, mark(7)));
    assert_eq!(create_after(Some(3), 4, false), (REFUSE, OTHERS));
    // The number is kept in a byte.
    assert_eq!(create_after(Some(3), 3 + 255, false), (ALLOW, mark(7)));
    assert_eq!(create_after(Some(3), 3 + 256, false), (REFUSE, OTHERS));
}

#[test]
fn start_that_was_missed_does_not_matter_where_no_rule_would_have_been_asked() {
    assert_eq!(create_after(Some(3), 4, true), (ALLOW, mark(7)));
}

#[test]
fn process_that_is_older_than_lockne_gets_its_socket() {
    assert_eq!(create_after(None, 4, false), (ALLOW, mark(7)));
}
