//! What watches for `lockne monitor` and `lockne trace`: loaded while somebody does, and gone after.
//!
//! Nothing here decides about packets or processes but [`ping`], where somebody asked for it.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(
    clippy::inline_always,
    reason = "calls cost, and the verifier loses what it knew of the arguments"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "of sizes known here, and of a process id from the upper half of a word"
)]

mod config;
mod headers;
mod life;
mod monitor;
mod owner;
mod ping;
mod record;
mod storage;

/// The programs call helpers that the kernel gives to GPL programs only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
