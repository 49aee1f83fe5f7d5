//! Each demo as a user runs it: started, given something to see, its output read, ended by its time
//! and by Ctrl-C, and nothing left behind.
//!
//! Needs root; without it each test counts as ignored, and says why.

#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test, which clippy does not see without the usual harness"
)]

mod cgroup_skb;
mod kprobe_uprobe;
mod maps;
mod packet_monitor;
mod ping_monitor;
mod process_tracker;
mod run;
mod socket_cookie;
mod socket_filter;
mod syscall_tracer;
mod tc_shaper;
mod traffic;
mod xdp_balancer;
mod xdp_filter;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use lockne_lab::Namespace;

/// The tests of a module, by name.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[(&str, fn())] = &[$((stringify!($name), $name as fn())),*];
    };
}
pub(crate) use tests;

/// The tests of a demo, by name.
type Tests = &'static [(&'static str, fn())];

const DEMOS: &[(&str, Tests)] = &[
    ("packet_monitor", packet_monitor::TESTS),
    ("process_tracker", process_tracker::TESTS),
    ("ping_monitor", ping_monitor::TESTS),
    ("xdp_filter", xdp_filter::TESTS),
    ("xdp_balancer", xdp_balancer::TESTS),
    ("tc_shaper", tc_shaper::TESTS),
    ("syscall_tracer", syscall_tracer::TESTS),
    ("socket_filter", socket_filter::TESTS),
    ("kprobe_uprobe", kprobe_uprobe::TESTS),
    ("cgroup_skb", cgroup_skb::TESTS),
    ("maps", maps::TESTS),
    ("socket_cookie", socket_cookie::TESTS),
];

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[1..] {
        // Started by a test, as something for a demo to see.
        ["flood", to] => tc_shaper::flood(to, || true),
        ["datagrams", ref to @ ..] => {
            cgroup_skb::datagrams(to);
            return ExitCode::SUCCESS;
        }
        ["lookup", ref hosts @ ..] => {
            kprobe_uprobe::look_up(hosts);
            return ExitCode::SUCCESS;
        }
        ["syscalls", calls] => {
            syscall_tracer::call(calls);
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let missing = Namespace::create("trial").err();
    if let Some(error) = &missing {
        eprintln!("the tests of the demos are ignored: {error}");
    }
    let has_kprobes = kprobe_uprobe::has_kprobes();
    if !has_kprobes {
        eprintln!("the tests of kprobes are ignored: this kernel has none");
    }
    let has_fq = tc_shaper::has_fq();
    if !has_fq {
        eprintln!("the tests of fq are ignored: this kernel has none");
    }
    let kprobes = (&"kprobe_uprobe", &kprobe_uprobe::KPROBE_TESTS, has_kprobes);
    let fq = (&"tc_shaper", &tc_shaper::FQ_TESTS, has_fq);
    let mut trials = Vec::new();
    for (module, tests, is_possible) in DEMOS
        .iter()
        .map(|(module, tests)| (module, tests, true))
        .chain([kprobes, fq])
    {
        for (name, test) in *tests {
            let run = || {
                test();
                Ok(())
            };
            let is_ignored = missing.is_some() || !is_possible;
            let trial = Trial::test(format!("{module}::{name}"), run);
            trials.push(trial.with_ignored_flag(is_ignored));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
