//! Filters: the text up to the first line end is one, what follows is a packet. The kernel's instructions
//! are of a shape that its verifier takes, and decide as the program does.
#![no_main]

use std::mem::size_of;

use libfuzzer_sys::fuzz_target;
use lockne_abi::observe::Packet;
use lockne_core::filter::{self, Code, Expression, Link, Next, Program, Tunnel};

const JUMP: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOAD_MAP: u8 = 0x18;

fuzz_target!(|bytes: &[u8]| {
    let at = bytes.iter().position(|byte| *byte == b'\n');
    let (text, frame) = bytes.split_at(at.unwrap_or(bytes.len()));
    let Ok(text) = str::from_utf8(text) else {
        return;
    };
    let expression: Expression = match text.parse() {
        Ok(expression) => expression,
        Err(error) => {
            let error: filter::Error = error;
            assert!(error.at <= text.len(), "{error:?}");
            let _told = (error.to_string(), error.problem.hint());
            return;
        }
    };
    let tunnel = |name: &str| match name.len() % 3 {
        0 => Tunnel::default(),
        1 => Tunnel {
            ifindex: Some(7),
            policies: vec![3, 5],
            mask: 0xff00_0000,
        },
        _ => Tunnel {
            ifindex: None,
            policies: (0..=255).collect(),
            mask: 0xff,
        },
    };
    let Ok(program) = Program::new(&expression, &tunnel) else {
        return;
    };
    check_steps(&program);
    let function = Code::function(&program);
    // For an interpreter, which takes ends that nothing leads to.
    check_shape(function.instructions(), false);
    let classifier = Code::classifier(&program, 3, 4, 1);
    check_shape(classifier.instructions(), true);

    let frame = frame.get(1..).unwrap_or_default();
    for link in [Link::Ethernet, Link::Bare] {
        let packet = filter::packet(frame, link);
        assert_eq!(program.wants(&packet), run(&function, &packet), "{text}");
    }
});

/// Jumps lead forward, and every step is reached.
fn check_steps(program: &Program) {
    let steps = program.steps();
    let mut reached = vec![false; steps.len()];
    let mut go = |next: Next, from: Option<usize>| {
        if let Next::Step(to) = next {
            assert!(from.is_none_or(|from| to > from), "backwards");
            reached[to] = true;
        }
    };
    go(program.first(), None);
    for (number, step) in steps.iter().enumerate() {
        go(step.then, Some(number));
        go(step.otherwise, Some(number));
    }
    assert!(reached.iter().all(|it| *it), "steps that nothing leads to");
}

/// Control never leaves the code, never goes back, and never lands inside an instruction of two slots. With
/// `all`, every instruction is reached: the kernel refuses what is not.
fn check_shape(code: &[u64], all: bool) {
    let mut reached = vec![false; code.len()];
    reached[0] = true;
    let mut at = 0;
    while at < code.len() {
        let [operation, _, low, high, ..] = code[at].to_le_bytes();
        let offset = i16::from_le_bytes([low, high]);
        let length = if operation == LOAD_MAP { 2 } else { 1 };
        if reached[at] {
            // Classes 5 and 6 are jumps.
            let is_jump = matches!(operation & 7, 5 | 6) && !matches!(operation, CALL | EXIT);
            if is_jump {
                let to = at + 1 + usize::try_from(offset).expect("forward");
                reached[to] = true;
            }
            if !matches!(operation, JUMP | EXIT) {
                reached[at + length] = true;
            }
        } else {
            assert!(!all || length == 0, "instruction {at} cannot be reached");
        }
        if length == 2 {
            assert!(!reached[at + 1], "a jump into an instruction");
        }
        at += length;
    }
    assert_eq!(code.last().map(|last| last.to_le_bytes()[0]), Some(EXIT));
}

fn run(code: &Code, packet: &Packet) -> bool {
    let instructions: Vec<u8> = code
        .instructions()
        .iter()
        .flat_map(|instruction| instruction.to_le_bytes())
        .collect();
    let machine = rbpf::EbpfVmRaw::new(Some(&instructions)).expect("rbpf takes it");
    // SAFETY: `Packet` has no padding, as it crosses from the kernel as bytes.
    let bytes = unsafe {
        std::slice::from_raw_parts(std::ptr::from_ref(packet).cast::<u8>(), size_of::<Packet>())
    };
    machine
        .execute_program(&mut bytes.to_vec())
        .expect("it ends")
        == 1
}
