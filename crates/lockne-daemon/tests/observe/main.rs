//! The watching programs at work, each test in a network namespace of its own.
//!
//! Needs root. Without it, each test is reported as ignored.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test, which clippy does not see without the usual harness"
)]

mod filter;
mod life;
#[path = "../../../lockne-core/tests/tcpdump/sample.rs"]
#[expect(dead_code, reason = "tcpdump is asked elsewhere")]
mod sample;

use std::{process::ExitCode, thread};

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::thread::UnshareFlags;

fn main() -> ExitCode {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("ignored: the kernel tests need root");
    }
    let tests: [(&str, fn()); 3] = [
        (
            "kernel_takes_what_the_filter_says",
            filter::kernel_takes_what_the_filter_says,
        ),
        ("constant_filters_load", filter::constant_filters_load),
        (
            "storm_of_ten_thousand_starts_is_seen_whole_or_its_loss_is_told",
            life::storm_of_ten_thousand_starts_is_seen_whole_or_its_loss_is_told,
        ),
    ];
    let trials =
        tests.map(|(name, test)| Trial::test(name, move || run(test)).with_ignored_flag(!is_root));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

/// Runs a test on a thread that ends with it, in a namespace of its own.
fn run(test: fn()) -> Result<(), Failed> {
    let isolated = move || {
        // SAFETY: the thread owns no memory or files that depend on the namespace.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        test();
    };
    thread::spawn(isolated).join().map_err(|panic| {
        let owned = panic.downcast_ref::<String>().map(String::as_str);
        let message = owned.or_else(|| panic.downcast_ref::<&str>().copied());
        Failed::from(message.unwrap_or("the test panicked"))
    })
}
