//! What lockne does in the kernel: one module per hook.
//!
//! Each hook reads, decides by a pure function and acts. The crate compiles on the host too, so that
//! those functions have unit tests.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(
    clippy::inline_always,
    reason = "calls cost, and the verifier loses what it knew of the arguments"
)]
#![allow(
    clippy::cast_ptr_alignment,
    reason = "packets and names are where the kernel aligns them, and its verifier checks each access"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "of sizes known here, and of a process id from the upper half of a word"
)]

mod call;
mod config;
mod dns;
mod exec;
mod family;
mod guard;
mod lan;
mod map;
mod mark;
mod option;
mod process;
mod remark;
mod reply;
mod strict;
mod unix;
mod verdict;

/// The programs call helpers that the kernel gives to GPL programs only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier refuses programs that could get here.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
