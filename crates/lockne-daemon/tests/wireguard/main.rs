//! WireGuard tunnels with real packets, each test in network namespaces of its own.
//!
//! Needs root and /dev/net/tun; without them every test is reported as ignored.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

mod carry;
mod conf;
mod kernel;
mod life;
mod other;
mod side;

use std::{fs::File, process::ExitCode};

use libtest_mimic::{Arguments, Trial};

/// A test by its name, and what it cannot do without.
type Test = (&'static str, fn(), Needs);

/// What a test cannot do without, beside root and /dev/net/tun.
#[derive(Clone, Copy)]
enum Needs {
    Nothing,
    Program(&'static str),
    KernelWireguard,
}

impl Needs {
    /// What of it is not here.
    fn missing(self) -> Option<&'static str> {
        match self {
            Self::Program(program) if !side::has_program(program) => Some(program),
            Self::KernelWireguard if !kernel::is_there() => Some("WireGuard in the kernel"),
            _ => None,
        }
    }
}

fn main() -> ExitCode {
    if let Some(name) = std::env::var_os(life::SERVE) {
        life::serve(name.to_str().unwrap());
    }
    let arguments = Arguments::from_args();
    let missing = missing();
    if let Some(reason) = &missing {
        eprintln!("ignored: {reason}");
    }
    let tests = [carry::TESTS, life::TESTS, other::TESTS, kernel::TESTS].concat();
    let trials = tests.into_iter().map(|(name, test, needs)| {
        let lacks = needs.missing();
        if let Some(lacks) = lacks {
            eprintln!("ignored: {name}: no {lacks} here");
        }
        let trial = Trial::test(name, move || {
            test();
            Ok(())
        });
        trial.with_ignored_flag(missing.is_some() || lacks.is_some())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    tun.err().map(|error| format!("/dev/net/tun: {error}"))
}
