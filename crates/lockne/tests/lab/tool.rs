//! Programs of others that a test needs.
//!
//! Where one is missing, the test counts as ignored and says why; with `CI=true` it fails, since
//! nobody reads what a green run says on the side.

use std::collections::BTreeSet;

use libtest_mimic::{Failed, Trial};

/// A test with its name and the programs that it needs.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) run: fn(),
    pub(crate) needs: &'static [&'static str],
}

/// The tests of a module, by name, each with the programs it needs: `name needs ["curl"]`.
macro_rules! tests {
    ($($name:ident $(needs [$($tool:literal),+])?),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::tool::Test] = &[$($crate::tool::Test {
            name: stringify!($name),
            run: $name,
            needs: &[$($($tool),+)?],
        }),*];
    };
}
pub(crate) use tests;

/// Makes a trial of a test; `obstacle` is what keeps every test from running here.
pub(crate) fn trial(module: &str, test: &'static Test, obstacle: Option<&str>) -> Trial {
    let missing: BTreeSet<&str> = test
        .needs
        .iter()
        .filter(|tool| which::which(tool).is_err())
        .copied()
        .collect();
    let reason = match (obstacle, missing.is_empty()) {
        (Some(obstacle), _) => Some(obstacle.to_owned()),
        (None, false) => Some(format!("{} not installed", list(&missing))),
        (None, true) => None,
    };
    let name = format!("{module}::{}", test.name);
    let Some(reason) = reason else {
        let run = move || {
            (test.run)();
            Ok(())
        };
        return Trial::test(name, run);
    };
    if std::env::var_os("CI").is_some_and(|value| value == "true") {
        let reason = format!("{reason}, and with CI=true nothing is ignored");
        return Trial::test(name, move || Err(Failed::from(reason)));
    }
    eprintln!("{name} is ignored: {reason}");
    Trial::test(name, move || Err(Failed::from(reason))).with_ignored_flag(true)
}

fn list(missing: &BTreeSet<&str>) -> String {
    let names: Vec<&str> = missing.iter().copied().collect();
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", names.join(" and "))
}
