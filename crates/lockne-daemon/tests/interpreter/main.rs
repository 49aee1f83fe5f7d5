//! What lockne's kernel programs decide, without a kernel: the bytecode that the daemon loads,
//! interpreted.
//!
//! No privileges, no namespaces: packets and processes in, verdicts and marks out. That the kernel
//! runs the programs at all, and where, is what the test `kernel` is about. With `LOCKNE_LCOV=FILE` the
//! lines of the kernel code that the cases came to are written there, in the format of lcov.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall panic")]

mod connect;
mod dns;
mod guard;
mod option;
mod process;
mod run;
mod socket;
mod stamp;
