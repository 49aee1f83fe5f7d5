//! What can go wrong.

use std::io;

/// Why a program was not run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The object is not one, or refers to what it does not have.
    #[error("cannot read the object: {reason}")]
    Object {
        /// What the parser or the linker says.
        reason: String,
    },
    /// There is no such program.
    #[error("the object has no program `{name}`")]
    NoProgram {
        /// What was looked for.
        name: String,
    },
    /// A map is of a type that is not imitated here.
    #[error("the map `{name}` is of type {kind}, which is not imitated")]
    MapType {
        /// The map.
        name: String,
        /// Its `BPF_MAP_TYPE_*`.
        kind: u32,
    },
    /// No memory where 32 bits can point to it.
    #[error("cannot get {len} bytes below 4 GiB")]
    Memory {
        /// How much was asked for.
        len: usize,
        /// What the last attempt said, if it failed by itself.
        #[source]
        source: Option<io::Error>,
    },
    /// The interpreter refused the program or stopped it: a helper that it was not given, or memory
    /// that is not the program's.
    #[error("`{program}` was stopped: {reason}")]
    Stopped {
        /// The program.
        program: String,
        /// What the interpreter says.
        reason: String,
    },
}
