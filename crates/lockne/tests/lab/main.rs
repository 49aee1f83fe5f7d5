//! lockne itself, on a small internet: real programs, real tunnels, and packets counted on the home link.
//!
//! Needs root; without it each test counts as ignored, and says why.

#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test, which clippy does not see without the usual harness"
)]

mod action;
mod attach;
mod compare;
mod counter;
mod desktop;
mod dns;
mod escape;
mod event;
mod explain;
mod failover;
mod family;
mod fault;
mod flows;
mod footprint;
mod hole;
mod home;
mod leaktest;
mod mend;
mod metrics;
mod module;
mod monitor;
mod network;
mod older;
mod order;
mod path;
mod peer;
mod remote;
mod rule;
mod service;
mod sleep;
mod survival;
mod terminal;
mod tool;
mod top;
mod trace;
mod user;
mod way;

use std::process::ExitCode;

use libtest_mimic::Arguments;
use lockne_lab::{Namespace, probe};

pub(crate) use tool::tests;

fn main() -> ExitCode {
    if let Some(code) = probe::run_if_asked().or_else(lockne_lab::escape::run_if_asked) {
        return code;
    }
    if let Some(page) = std::env::var_os("LOCKNE_COMPARISON") {
        compare::write(page.as_ref());
        return ExitCode::SUCCESS;
    }
    let obstacle = Namespace::create("trial").err();
    let obstacle = obstacle.map(|error| error.to_string());
    let modules = [
        ("action", action::TESTS),
        ("attach", attach::TESTS),
        ("counter", counter::TESTS),
        ("desktop", desktop::TESTS),
        ("dns", dns::TESTS),
        ("failover", failover::TESTS),
        ("compare", compare::TESTS),
        ("escape", escape::TESTS),
        ("event", event::TESTS),
        ("explain", explain::TESTS),
        ("family", family::TESTS),
        ("fault", fault::TESTS),
        ("flows", flows::TESTS),
        ("hole", hole::TESTS),
        ("metrics", metrics::TESTS),
        ("monitor", monitor::TESTS),
        ("leaktest", leaktest::TESTS),
        ("mend", mend::TESTS),
        ("network", network::TESTS),
        ("older", older::TESTS),
        ("order", order::TESTS),
        ("path", path::TESTS),
        ("peer", peer::TESTS),
        ("remote", remote::TESTS),
        ("rule", rule::TESTS),
        ("survival", survival::TESTS),
        ("top", top::TESTS),
        ("trace", trace::TESTS),
        ("user", user::TESTS),
    ];
    // What these ask for is not on every machine, and nothing may count as ignored.
    let is_own_machine = std::env::var_os("LOCKNE_KERNEL_MODULES").is_some();
    let of_machines = [
        ("module", module::TESTS),
        ("service", service::TESTS),
        ("sleep", sleep::TESTS),
    ];
    let of_machines = of_machines.into_iter().filter(|_| is_own_machine);
    let tests = modules
        .into_iter()
        .chain(of_machines)
        .flat_map(|(module, tests)| tests.iter().map(move |test| (module, test)));
    let trials = tests.map(|(module, test)| tool::trial(module, test, obstacle.as_deref()));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
