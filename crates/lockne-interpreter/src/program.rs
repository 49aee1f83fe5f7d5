//! A program, linked and ready to run.

use std::{any::Any, ptr, slice};

use aya_obj::generated::bpf_insn;

use crate::{Error, Packet, context::Context, helper, lines::Line, world::World};

const BPF_LD_IMM64: u8 = 0x18;
const BPF_JA: u8 = 0x05;
const BPF_CALL: u8 = 0x85;
const BPF_PSEUDO_MAP_FD: u8 = 1;
const BPF_PSEUDO_MAP_VALUE: u8 = 2;
const FRAME_POINTER: u8 = 10;

/// A helper that does not exist, so that the interpreter stops at its call.
const STOP: i32 = 0x0051_0b51;

/// A program, linked with the functions it calls.
#[derive(Clone, Debug)]
pub struct Program {
    name: String,
    instructions: Vec<bpf_insn>,
    lines: Vec<(usize, Option<Line>)>,
    /// Where each function starts; the program itself at 0.
    functions: Vec<usize>,
}

/// How a run ended that was to stop at an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    Yes,
    No,
}

impl Program {
    pub(crate) fn new(
        name: String,
        instructions: Vec<bpf_insn>,
        lines: Vec<(usize, Option<Line>)>,
        mut functions: Vec<usize>,
    ) -> Self {
        functions.push(0);
        functions.sort_unstable();
        functions.dedup();
        Self {
            name,
            instructions,
            lines,
            functions,
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs the program once and returns its verdict.
    ///
    /// # Errors
    ///
    /// If it calls a helper that is not imitated, or touches memory that is not its own.
    pub fn run<C: Context>(
        &self,
        world: &mut World,
        context: &mut C,
        packet: &mut Packet,
    ) -> Result<u32, Error> {
        self.interpret(&self.instructions, world, context, packet)
    }

    /// Runs the program until it comes to the instruction `at`.
    pub(crate) fn reaches<C: Context>(
        &self,
        at: usize,
        world: &mut World,
        context: &mut C,
        packet: &mut Packet,
    ) -> Result<Reached, Error> {
        let mut instructions = self.instructions.clone();
        if instructions[at].code == BPF_LD_IMM64 {
            // The second half is not an instruction by itself.
            instructions[at + 1] = instruction(BPF_JA, 0);
        }
        instructions[at] = instruction(BPF_CALL, STOP);
        match self.interpret(&instructions, world, context, packet) {
            Ok(_) => Ok(Reached::No),
            Err(Error::Stopped { reason, .. }) if reason.contains(&format!("{STOP:#x}")) => {
                Ok(Reached::Yes)
            }
            Err(error) => Err(error),
        }
    }

    /// The instructions that can be come to: all but second halves.
    pub(crate) fn reachable(&self) -> impl Iterator<Item = usize> {
        let mut is_half = false;
        self.instructions
            .iter()
            .enumerate()
            .filter_map(move |(at, instruction)| {
                let this = !is_half;
                is_half = this && instruction.code == BPF_LD_IMM64;
                this.then_some(at)
            })
    }

    /// The line that an instruction is from, if the compiler knows one.
    pub(crate) fn line(&self, at: usize) -> Option<&Line> {
        let after = self.lines.partition_point(|(start, _)| *start <= at);
        self.lines[..after].last()?.1.as_ref()
    }

    fn interpret<C: Context>(
        &self,
        instructions: &[bpf_insn],
        world: &mut World,
        context: &mut C,
        packet: &mut Packet,
    ) -> Result<u32, Error> {
        let code = bytecode(&patch(instructions, world));
        let stopped = |error: rbpf::lib::Error| Error::Stopped {
            program: self.name.clone(),
            reason: error.to_string(),
        };
        let mut machine = rbpf::EbpfVmMbuff::new(None).map_err(stopped)?;
        machine
            .set_stack_usage_calculator(stack_usage, Box::new(self.functions.clone()))
            .map_err(stopped)?;
        machine.set_program(&code).map_err(stopped)?;
        for (number, helper) in helper::ALL {
            machine.register_helper(*number, *helper).map_err(stopped)?;
        }
        for range in world.memory() {
            machine.register_allowed_memory(range);
        }
        packet.bytes().clone_into(&mut world.packet);
        // SAFETY: `Context` promises plain bytes; both are borrowed until the run is over.
        let context = unsafe {
            slice::from_raw_parts_mut(ptr::from_mut(context).cast::<u8>(), size_of::<C>())
        };
        let verdict = helper::with(world, || {
            machine.execute_program(packet.bytes_mut(), context)
        });
        // The kernel takes the lower half of what a program returns.
        #[expect(clippy::cast_possible_truncation, reason = "as said")]
        verdict.map(|value| value as u32).map_err(stopped)
    }
}

/// Puts the addresses of this world's data sections where the loader puts file descriptors.
fn patch(instructions: &[bpf_insn], world: &mut World) -> Vec<bpf_insn> {
    let mut patched = instructions.to_vec();
    for at in 0..patched.len() {
        if patched[at].code != BPF_LD_IMM64 {
            continue;
        }
        match patched[at].src_reg() {
            BPF_PSEUDO_MAP_FD => patched[at].set_src_reg(0),
            BPF_PSEUDO_MAP_VALUE => {
                let handle = u64::from(patched[at].imm.cast_unsigned());
                let offset = u64::from(patched[at + 1].imm.cast_unsigned());
                let address = world.section(handle).map_or(0, |start| start + offset);
                patched[at].set_src_reg(0);
                #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
                let (low, high) = (address as i32, (address >> 32) as i32);
                patched[at].imm = low;
                patched[at + 1].imm = high;
            }
            _ => {}
        }
    }
    patched
}

fn instruction(code: u8, imm: i32) -> bpf_insn {
    // SAFETY: integers may be zero.
    let empty: bpf_insn = unsafe { std::mem::zeroed() };
    bpf_insn { code, imm, ..empty }
}

fn bytecode(instructions: &[bpf_insn]) -> Vec<u8> {
    let encode = |instruction: &bpf_insn| {
        let registers = instruction.src_reg() << 4 | instruction.dst_reg();
        let [off0, off1] = instruction.off.to_le_bytes();
        let [imm0, imm1, imm2, imm3] = instruction.imm.to_le_bytes();
        [
            instruction.code,
            registers,
            off0,
            off1,
            imm0,
            imm1,
            imm2,
            imm3,
        ]
    };
    instructions.iter().flat_map(encode).collect()
}

/// How much stack the function has in which the instruction `at` is.
fn stack_usage(code: &[u8], at: usize, functions: &mut dyn Any) -> u16 {
    const NONE: &[usize] = &[0];
    let functions = functions
        .downcast_ref::<Vec<usize>>()
        .map_or(NONE, Vec::as_slice);
    let all = code.len() / 8;
    let next = functions.partition_point(|start| *start <= at);
    let start = functions[next.saturating_sub(1)];
    let end = functions.get(next).copied().unwrap_or(all);
    let deepest = code[start * 8..end * 8]
        .chunks_exact(8)
        .filter_map(depth)
        .max();
    deepest.unwrap_or(0).next_multiple_of(8)
}

/// How far below the frame pointer an instruction reaches; too much where it is not sure.
fn depth(instruction: &[u8]) -> Option<u16> {
    const BPF_ADD64_IMM: u8 = 0x07;
    const CLASS: u8 = 0x07;
    let (code, registers) = (instruction[0], instruction[1]);
    let off = i16::from_le_bytes([instruction[2], instruction[3]]);
    let imm = i32::from_le_bytes(*instruction[4..].first_chunk()?);
    let (to, from) = (registers & 0xf, registers >> 4);
    let below = match code & CLASS {
        // Loads, and stores of numbers and of registers.
        1 if from == FRAME_POINTER => off,
        2 | 3 if to == FRAME_POINTER => off,
        // Addresses on the stack are made by adding a negative number.
        _ if code == BPF_ADD64_IMM && (-512..0).contains(&imm) => i16::try_from(imm).ok()?,
        _ => 0,
    };
    Some(below.min(0).unsigned_abs())
}
