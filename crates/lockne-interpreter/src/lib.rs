//! Kernel programs in user space: packets in, verdicts out, no privileges.
//!
//! The bytecode is the one that the kernel gets, relocated by the same code that the loader uses
//! (aya-obj), and interpreted by rbpf. Maps and helpers are ours: what the programs here need, kept as
//! simple as they can be. So a run says what a program decides. It does not say that the kernel's
//! verifier takes it, that it is attached, or that the kernel's maps and helpers do the same; the
//! tests on the kernel are there for that.
//!
//! ```no_run
//! use lockne_interpreter::{Object, Packet, context};
//!
//! # fn main() -> Result<(), lockne_interpreter::Error> {
//! let object = Object::parse(&std::fs::read("filter.bpf.o").unwrap())?;
//! let program = object.program("filter")?;
//! let mut world = object.world();
//! let mut packet = Packet::new(&[0; 64])?;
//! let mut context = context::xdp(&packet);
//! assert_eq!(program.run(&mut world, &mut context, &mut packet)?, 2);
//! # Ok(())
//! # }
//! ```

pub mod context;
pub mod coverage;
mod error;
mod helper;
mod lines;
mod object;
mod packet;
mod program;
mod table;
mod world;

pub use self::{
    error::Error,
    lines::Line,
    object::Object,
    packet::Packet,
    program::Program,
    table::{Kind, Table},
    world::World,
};
