//! The command line as its user meets it.
//!
//! What needs root counts as ignored without it, and says why.

#![allow(
    clippy::format_push_string,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test, which clippy does not see without the usual harness"
)]

mod control;
mod doctor;
mod errors;
mod help;
mod output;
mod place;
mod program;
mod rule;
mod secret;
mod unit;
mod user;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use lockne_lab::Namespace;

/// Tests by name.
type Tests = &'static [(&'static str, fn())];

/// The tests of a module, by name.
macro_rules! tests {
    ($list:ident: $($name:ident),* $(,)?) => {
        pub(crate) const $list: crate::Tests = &[$((stringify!($name), $name as fn())),*];
    };
}
pub(crate) use tests;

fn main() -> ExitCode {
    let missing = Namespace::create("trial").err();
    if let Some(error) = &missing {
        eprintln!("the tests in a namespace are ignored: {error}");
    }
    let anywhere = [
        ("help", help::TESTS),
        ("rule", rule::TESTS),
        ("errors", errors::TESTS),
        ("secret", secret::TESTS),
    ];
    let rooted = [
        ("control", control::ROOTED),
        ("doctor", doctor::ROOTED),
        ("errors", errors::ROOTED),
        ("output", output::ROOTED),
        ("program", program::ROOTED),
        ("secret", secret::ROOTED),
        ("user", user::ROOTED),
    ];
    let trials = |modules: &[(&str, Tests)], ignored: bool| {
        let tests = modules.iter().flat_map(|(module, tests)| {
            tests
                .iter()
                .map(move |(name, test)| (format!("{module}::{name}"), *test))
        });
        let trials = tests.map(|(name, test)| {
            let run = move || {
                test();
                Ok(())
            };
            Trial::test(name, run).with_ignored_flag(ignored)
        });
        trials.collect::<Vec<_>>()
    };
    let mut all = trials(&anywhere, false);
    all.extend(trials(&rooted, missing.is_some()));
    let lacks_systemd = which::which("systemd-socket-activate").is_err();
    if lacks_systemd {
        eprintln!("the tests of units are ignored, but with CI=true: systemd is not installed");
    }
    let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    let ignored = missing.is_some() || lacks_systemd && !in_ci;
    all.extend(trials(&[("unit", unit::ROOTED)], ignored));
    libtest_mimic::run(&Arguments::from_args(), all).exit_code()
}
