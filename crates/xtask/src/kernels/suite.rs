//! The test programs that are run on each kernel.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

/// A test program.
#[derive(Debug)]
pub(crate) struct Suite {
    /// What it is called in results.
    pub(crate) name: &'static str,
    package: &'static str,
    test: &'static str,
    /// Those of its tests that belong to the suite, by what their names begin with; all, if it names none.
    pub(crate) only: &'static [&'static str],
    /// Those that do not.
    pub(crate) not: &'static [&'static str],
    /// What `--quick` leaves of it, where that is less.
    pub(crate) quick: &'static [&'static str],
    /// Whether `--quick` leaves nothing of it.
    pub(crate) is_long: bool,
    /// Whether they need systemd as the first process; such suites come last.
    pub(crate) needs_systemd: bool,
}

/// The suite of tests that only run where the kernel has every module they ask for.
pub(crate) const MODULES: &str = "modules";

/// The suite of machines that sleep.
pub(crate) const SLEEP: &str = "sleep";

/// The suite of lockne's systemd units.
pub(crate) const SERVICE: &str = "service";

/// Each of them; those that ask the kernel the most directly come first.
pub(crate) const SUITES: [Suite; 11] = [
    Suite {
        quick: &["mark::", "remark::", "guard::", "stamp::", "lifetime::next"],
        ..suite("kernel", "lockne-daemon", "kernel")
    },
    Suite {
        quick: &["lookup::"],
        ..suite("route", "lockne-daemon", "route")
    },
    Suite {
        quick: &["constant_filters", "kernel_takes"],
        ..suite("observe", "lockne-daemon", "observe")
    },
    Suite {
        quick: &["kernel_tunnel_talks", "kernel_tunnel_is"],
        ..suite("wireguard", "lockne-daemon", "wireguard")
    },
    Suite {
        quick: &["plain_tunnel_comes", "refusal_has"],
        ..suite("internet", "lockne-lab", "lab")
    },
    Suite {
        not: &["escape::", "module::", "service::", "sleep::"],
        quick: &[
            "path::tunnelled_program",
            "path::strict",
            "hole::socket_bound_to_another",
            "dns::sockets_of_resolvers",
            "flows::connection_of_a_tunnel",
        ],
        ..suite("lab", "lockne", "lab")
    },
    // What only asks for itself where the kernel has everything.
    Suite {
        only: &["module::"],
        quick: &["module::systemd"],
        ..suite(MODULES, "lockne", "lab")
    },
    // Each way out, for each kind of user.
    Suite {
        only: &["escape::"],
        is_long: true,
        ..suite("escape", "lockne", "lab")
    },
    Suite {
        quick: &["kprobe_uprobe::each_connection", "tc_shaper::packets_wait"],
        ..suite("demos", "demos", "demos")
    },
    // The machine sleeps, and with it whatever runs there.
    Suite {
        only: &["sleep::"],
        is_long: true,
        ..suite(SLEEP, "lockne", "lab")
    },
    Suite {
        only: &["service::"],
        is_long: true,
        needs_systemd: true,
        ..suite(SERVICE, "lockne", "lab")
    },
];

const fn suite(name: &'static str, package: &'static str, test: &'static str) -> Suite {
    Suite {
        name,
        package,
        test,
        only: &[],
        not: &[],
        quick: &[],
        is_long: false,
        needs_systemd: false,
    }
}

impl Suite {
    /// What the names of its tests begin with, one run of the program for each; `None` for any.
    pub(crate) fn selections(&self, is_quick: bool) -> Vec<Option<&'static str>> {
        let some = if is_quick && !self.quick.is_empty() {
            self.quick
        } else {
            self.only
        };
        if is_quick && self.is_long {
            return Vec::new();
        }
        if some.is_empty() {
            return vec![None];
        }
        some.iter().copied().map(Some).collect()
    }
}

/// What cargo built.
pub(crate) struct Built {
    /// The test programs, in the order of the suites.
    pub(crate) tests: Vec<(&'static str, PathBuf)>,
    /// The programs that they start.
    pub(crate) programs: Vec<PathBuf>,
}

/// A line of `cargo --message-format json-render-diagnostics`; what the compiler says goes to the user.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    src_path: PathBuf,
}

/// Builds these, with the programs they start, exactly as `cargo test --workspace` does, since with fewer tests the
/// libraries below them would have other features: who has run that waits for nothing.
pub(crate) fn build(root: &Path, suites: &[&Suite]) -> Result<Built> {
    let output = Command::new("cargo")
        .args(["test", "--workspace", "--no-run", "--locked", "--test", "*"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the tests cannot be built");
    let mut programs = Vec::new();
    let mut tests = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(Message {
            target: Some(target),
            executable: Some(executable),
        }) = serde_json::from_slice(line)
        else {
            continue;
        };
        match target.kind.first().map(String::as_str) {
            // Where its tests look for it; the copy with a hash holds the program's own tests.
            Some("bin") if executable.parent().is_some_and(|at| !at.ends_with("deps")) => {
                programs.push(executable);
            }
            Some("test") => tests.push((target, executable)),
            _ => {}
        }
    }
    let tests = suites.iter().map(|suite| {
        let found = tests.iter().find(|(target, _)| {
            target.name == suite.test
                && target.src_path.strip_prefix(root).is_ok_and(|path| {
                    path.components()
                        .any(|part| part.as_os_str() == suite.package)
                })
        });
        match found {
            Some((_, executable)) => Ok((suite.name, executable.clone())),
            None => bail!("there is no test `{}` of {}", suite.test, suite.package),
        }
    });
    Ok(Built {
        tests: tests.collect::<Result<_>>()?,
        programs,
    })
}
