//! What demo 06 counts.

crate::shared! {
    /// A system call of a process.
    struct Call {
        /// The process.
        pid: u32,
        /// The number of the system call.
        number: u32,
    }

    /// How long the system calls of a process took.
    struct Latency {
        /// Entry `n` counts those that took from 2^n nanoseconds to just below twice that.
        slots: [u64; 32],
        /// The name of the process, ended by a zero.
        name: [u8; 16],
    }
}
