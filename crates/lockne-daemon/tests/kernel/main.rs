//! The kernel programs at work, each test in network namespaces of its own.
//!
//! Needs root. Without it, each test is reported as ignored.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "all of this is a test, and nothing outside can name what is in it"
)]

mod crowd;
mod exec;
mod family;
mod filter;
mod guard;
mod lifetime;
mod mark;
mod probe;
mod remark;
mod sender;
mod stage;
mod stamp;
mod world;

use std::{env, process::ExitCode, thread};

use libtest_mimic::{Arguments, Failed, Trial};
use lockne_daemon::kernel::version;

/// A list of tests under their own names.
#[macro_export]
macro_rules! tests {
    ($($name:ident,)*) => {
        pub const TESTS: &[(&str, fn())] = &[$((stringify!($name), $name)),*];
    };
}

/// How many programs are attached once, on this kernel.
pub(crate) fn hooks() -> usize {
    // The one on Unix sockets came with Linux 6.7.
    14 + usize::from(version().unwrap() >= (6, 7)) + missed()
}

/// How many programs there are for what others may miss on this kernel.
pub(crate) fn missed() -> usize {
    if version().unwrap() >= (6, 19) { 2 } else { 0 }
}

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some("probe") {
        return probe::main();
    }
    // As the interpreter of a script: the path of that comes first.
    if env::args().nth(2).as_deref() == Some("mark-first") {
        let mut out = std::io::stdout();
        std::io::Write::write_fmt(
            &mut out,
            format_args!("{}\n", probe::mark_of_new().unwrap()),
        )
        .unwrap();
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("ignored: the kernel tests need root");
    }
    let modules = [
        ("mark", mark::TESTS),
        ("remark", remark::TESTS),
        ("family", family::TESTS),
        ("exec", exec::TESTS),
        ("filter", filter::TESTS),
        ("guard", guard::TESTS),
        ("stamp", stamp::TESTS),
        ("lifetime", lifetime::TESTS),
    ];
    let trials = modules
        .into_iter()
        .flat_map(|(module, tests)| tests.iter().map(move |test| (module, test)))
        .map(|(module, (name, test))| {
            Trial::test(format!("{module}::{name}"), || run(*test)).with_ignored_flag(!is_root)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs a test on a thread that ends with it, because it changes the namespace of its thread.
fn run(test: fn()) -> Result<(), Failed> {
    thread::spawn(test).join().map_err(|panic| {
        let owned = panic.downcast_ref::<String>().map(String::as_str);
        let message = owned.or_else(|| panic.downcast_ref::<&str>().copied());
        Failed::from(message.unwrap_or("the test panicked"))
    })
}
