//! `keep_mark`: what a program may set on its sockets.

use aya_ebpf::bindings::bpf_sockopt;
use lockne_abi::name;
use lockne_interpreter::{World, context};

use crate::run::{Outcome, counters, mark, pointer, run, set_process};

const ALLOW: u32 = 1;
const REFUSE: u32 = 0;

const CURL: u32 = 100;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const SO_PRIORITY: i32 = 12;

/// Lets process `pid` set an option; `CURL` is under policy 7.
fn set(
    pid: u32,
    option: i32,
    value: &[u8],
    prepare: impl Fn(&mut World, &mut bpf_sockopt),
) -> Outcome<bpf_sockopt> {
    run(name::KEEP_MARK, &[], |world, _| {
        set_process(world, CURL, 7);
        world.process = pid;
        let mut call = context::sockopt();
        (call.level, call.optname) = (SOL_SOCKET, option);
        call.optlen = i32::try_from(value.len()).unwrap();
        let address = world.block(value);
        call.__bindgen_anon_2.optval = pointer(address);
        call.__bindgen_anon_3.optval_end = pointer(address + value.len() as u64);
        prepare(world, &mut call);
        call
    })
}

#[test]
fn policed_process_sets_no_mark_but_its_policys() {
    for (value, verdict) in [
        (mark(7), ALLOW),
        (mark(8), REFUSE),
        (0, REFUSE),
        (crate::run::OTHERS, REFUSE),
    ] {
        let mut after = set(CURL, SO_MARK, &value.to_ne_bytes(), |_, _| {});

        assert_eq!(after.verdict, verdict, "{value:#x}");
        let refused = u64::from(verdict == REFUSE);
        assert_eq!(counters(&mut after.world, 7).refused, refused);
    }
}

#[test]
fn other_options_and_other_processes_are_let_alone() {
    let zero = 0_u32.to_ne_bytes();

    assert_eq!(set(CURL, SO_PRIORITY, &zero, |_, _| {}).verdict, ALLOW);
    assert_eq!(set(CURL + 1, SO_MARK, &zero, |_, _| {}).verdict, ALLOW);
    let elsewhere = |world: &mut World, _: &mut bpf_sockopt| world.netns_cookie += 1;
    assert_eq!(set(CURL, SO_MARK, &zero, elsewhere).verdict, ALLOW);
}

#[test]
fn mark_that_is_too_short_is_refused() {
    assert_eq!(set(CURL, SO_MARK, &[0; 2], |_, _| {}).verdict, REFUSE);
}

#[test]
fn long_value_is_taken_from_the_program() {
    let after = set(CURL, SO_MARK, &[0; 8192], |_, _| {});

    assert_eq!((after.verdict, after.context.optlen), (ALLOW, 0));
}
