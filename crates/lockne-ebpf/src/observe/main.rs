//! What watches for `lockne monitor`, `trace`, `flows` and `top`: loaded while somebody does, and gone after.
//!
//! Nothing here decides about packets or processes but [`ping`], where somebody asked for it.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
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

mod atomic;
mod config;
mod headers;
mod life;
mod meter;
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
