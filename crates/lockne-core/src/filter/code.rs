//! A program in the kernel's own instructions.
//!
//! Each step is a load, a mask where there is one, and a jump; there are no loops, so the verifier sees
//! each instruction once or twice, on any kernel that has 32-bit jumps (5.1).

use std::mem::offset_of;

use lockne_abi::observe::Packet;

use super::program::{Field, Next, Program, Relation, Step};

/// Instructions, eight bytes each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code(Vec<u64>);

/// Where an instruction wants to jump.
type Jump = (usize, Next);

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
/// The packet.
const R6: u8 = 6;
/// The context.
const R8: u8 = 8;
const R10: u8 = 10;

const LOAD_WORD: u8 = 0x61;
const LOAD_HALF: u8 = 0x69;
const LOAD_BYTE: u8 = 0x71;
const STORE_WORD: u8 = 0x62;
const LOAD_MAP: u8 = 0x18;
const PSEUDO_MAP: u8 = 1;
const AND32: u8 = 0x54;
const ADD: u8 = 0x07;
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const JUMP: u8 = 0x05;
const JUMP_NULL: u8 = 0x15;
const JUMP_EQUAL: u8 = 0x16;
const JUMP_NOT_EQUAL: u8 = 0x56;
const JUMP_AT_LEAST: u8 = 0x36;
const JUMP_LESS: u8 = 0xa6;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

const MAP_LOOKUP: i32 = 1;
const TAIL_CALL: i32 = 12;
const TC_ACT_UNSPEC: i32 = -1;

impl Code {
    /// A function of a pointer to [`Packet`] that returns 1 if the packet is wanted, else 0.
    #[must_use]
    pub fn function(program: &Program) -> Self {
        let mut code = Self(vec![instruction(MOVE, R6, R1, 0, 0)]);
        let jumps = code.steps(program);
        let accept = code.0.len();
        code.push(SET, R0, 0, 0, 1);
        code.push(EXIT, 0, 0, 0, 0);
        let reject = code.0.len();
        code.push(SET, R0, 0, 0, 0);
        code.push(EXIT, 0, 0, 0, 0);
        code.patch(&jumps, accept, reject);
        code
    }

    /// A classifier that finds the packet in the first entry of the map `scratch`, and goes on with
    /// the program at `stage` of the map `stages` if it is wanted. Both are file descriptors.
    #[must_use]
    pub fn classifier(program: &Program, scratch: i32, stages: i32, stage: u32) -> Self {
        let mut code = Self(vec![
            instruction(MOVE, R8, R1, 0, 0),
            instruction(STORE_WORD, R10, 0, -4, 0),
            instruction(MOVE, R2, R10, 0, 0),
            instruction(ADD, R2, 0, 0, -4),
        ]);
        code.map(R1, scratch);
        code.push(CALL, 0, 0, 0, MAP_LOOKUP);
        let mut jumps = vec![(code.0.len(), Next::Reject)];
        code.push(JUMP_NULL, R0, 0, 0, 0);
        code.push(MOVE, R6, R0, 0, 0);
        jumps.extend(code.steps(program));
        let accept = code.0.len();
        // The verifier refuses what cannot be reached.
        if program.can_accept() {
            code.push(MOVE, R1, R8, 0, 0);
            code.map(R2, stages);
            code.push(SET, R3, 0, 0, stage.cast_signed());
            // Comes back only if nothing is there.
            code.push(CALL, 0, 0, 0, TAIL_CALL);
        }
        let reject = code.0.len();
        code.push(SET, R0, 0, 0, TC_ACT_UNSPEC);
        code.push(EXIT, 0, 0, 0, 0);
        code.patch(&jumps, accept, reject);
        code
    }

    /// The instructions as the kernel takes them.
    #[must_use]
    pub fn instructions(&self) -> &[u64] {
        &self.0
    }

    fn push(&mut self, operation: u8, to: u8, from: u8, offset: i16, value: i32) {
        self.0.push(instruction(operation, to, from, offset, value));
    }

    fn map(&mut self, to: u8, descriptor: i32) {
        self.push(LOAD_MAP, to, PSEUDO_MAP, 0, descriptor);
        self.push(0, 0, 0, 0, 0);
    }

    fn steps(&mut self, program: &Program) -> Vec<Jump> {
        let mut jumps = Vec::new();
        let mut starts = Vec::new();
        self.jump(JUMP, program.first(), &mut jumps, 0);
        let steps = program.steps();
        for (number, step) in steps.iter().enumerate() {
            let behind = match number + 1 {
                next if next < steps.len() => Next::Step(next),
                _ => Next::Accept,
            };
            starts.push(self.0.len());
            self.step(step, behind, &mut jumps);
        }
        // What goes to a step is known now; the rest is for the caller.
        jumps.retain(|(at, next)| {
            let Next::Step(number) = next else {
                return true;
            };
            self.land(*at, starts[*number]);
            false
        });
        jumps
    }

    /// `behind` is what comes without a jump.
    fn step(&mut self, step: &Step, behind: Next, jumps: &mut Vec<Jump>) {
        let test = &step.test;
        let (load, offset) = place(test.field);
        self.push(load, R1, R6, offset, 0);
        if test.mask != u32::MAX {
            self.push(AND32, R1, 0, 0, test.mask.cast_signed());
        }
        let (holds, fails) = match test.relation {
            Relation::Equal => (JUMP_EQUAL, JUMP_NOT_EQUAL),
            Relation::AtLeast => (JUMP_AT_LEAST, JUMP_LESS),
        };
        let value = test.value.cast_signed();
        if step.then == behind {
            self.jump(fails, step.otherwise, jumps, value);
        } else {
            self.jump(holds, step.then, jumps, value);
            if step.otherwise != behind {
                self.jump(JUMP, step.otherwise, jumps, 0);
            }
        }
    }

    fn jump(&mut self, operation: u8, to: Next, jumps: &mut Vec<Jump>, value: i32) {
        jumps.push((self.0.len(), to));
        let register = if operation == JUMP { 0 } else { R1 };
        self.push(operation, register, 0, 0, value);
    }

    fn patch(&mut self, jumps: &[Jump], accept: usize, reject: usize) {
        for (at, next) in jumps {
            let target = if *next == Next::Accept {
                accept
            } else {
                reject
            };
            self.land(*at, target);
        }
    }

    /// Lets the jump at `at` go to `target`.
    fn land(&mut self, at: usize, target: usize) {
        let offset = i16::try_from(target - at - 1).expect("the longest program is shorter");
        self.0[at] |= u64::from(offset.cast_unsigned()) << 16;
    }
}

fn instruction(operation: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    u64::from(operation)
        | u64::from(to | from << 4) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(value.cast_unsigned()) << 32
}

/// How a field is loaded, and from where.
fn place(field: Field) -> (u8, i16) {
    let (load, offset) = match field {
        Field::Source(word) => (
            LOAD_WORD,
            offset_of!(Packet, source) + usize::from(word) * 4,
        ),
        Field::Destination(word) => (
            LOAD_WORD,
            offset_of!(Packet, destination) + usize::from(word) * 4,
        ),
        Field::Name(word) => (LOAD_WORD, offset_of!(Packet, name) + usize::from(word) * 4),
        Field::Pid => (LOAD_WORD, offset_of!(Packet, pid)),
        Field::Mark => (LOAD_WORD, offset_of!(Packet, mark)),
        Field::Device => (LOAD_WORD, offset_of!(Packet, ifindex)),
        Field::Length => (LOAD_WORD, offset_of!(Packet, length)),
        Field::Ethertype => (LOAD_HALF, offset_of!(Packet, ethertype)),
        Field::SourcePort => (LOAD_HALF, offset_of!(Packet, source_port)),
        Field::DestinationPort => (LOAD_HALF, offset_of!(Packet, destination_port)),
        Field::Protocol => (LOAD_BYTE, offset_of!(Packet, protocol)),
        Field::Behind => (LOAD_BYTE, offset_of!(Packet, behind)),
        Field::Flags => (LOAD_BYTE, offset_of!(Packet, flags)),
    };
    (load, i16::try_from(offset).expect("a small struct"))
}
