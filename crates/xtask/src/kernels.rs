//! `cargo xtask kernels`: the tests, on the kernels that people have.

mod archive;
pub(crate) mod debian;
mod disk;
mod guest;
mod kernel;
mod lack;
mod machine;
mod module;
mod qemu;
mod results;
mod suite;
mod systemd;
mod watch;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

pub(crate) use self::{debian::run as run_command, guest::main as guest, guest::rest};
use self::{
    guest::Run,
    kernel::KERNELS,
    machine::{Machine, Report},
    qemu::Qemu,
    suite::{Built, SUITES, Suite},
};
use crate::{ebpf::say, turn::Turn};

/// Which tests to run, and where.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the tests whose names contain one of these, or `suite/` and this
    #[arg(value_name = "TEST")]
    filters: Vec<String>,
    /// Only on this kernel, as often as given
    #[arg(long, value_name = "VERSION")]
    kernel: Vec<String>,
    /// Only the tests of this program, as often as given
    #[arg(long, value_name = "NAME")]
    suite: Vec<String>,
    /// Leave out the tests whose names contain this, as often as given
    #[arg(long, value_name = "TEST")]
    skip: Vec<String>,
    /// How many minutes a kernel may take
    #[arg(long, value_name = "MINUTES", default_value_t = 20)]
    limit: u64,
    /// How many kernels run at once; as many as there are processors, unless given
    #[arg(long, value_name = "COUNT")]
    at_once: Option<usize>,
    /// Of each suite only what asks the kernel the most, in an emulator's time
    #[arg(long)]
    quick: bool,
    /// Keep the results, and write docs/kernels.md anew
    #[arg(long)]
    write: bool,
    /// Name the kernels and the test programs, and do nothing
    #[arg(long)]
    list: bool,
}

/// Runs the tests on each kernel.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    if args.list {
        for kernel in &KERNELS {
            say(&format!("kernel {}", kernel.name));
        }
        for suite in &SUITES {
            say(&format!("suite {}", suite.name));
        }
        return Ok(());
    }
    let kernels = chosen("kernel", &args.kernel, KERNELS.iter(), |kernel| kernel.name)?;
    let suites = chosen("suite", &args.suite, SUITES.iter(), |suite| suite.name)?;
    let cache = cache(root);
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let _turn = Turn::wait(&crate::target(root))?;

    let qemu = Qemu::get(&cache)?;
    let built = suite::build(root, &suites)?;
    let base = cache.join("base.cpio");
    let missing = disk::write(&built, &cache, &base)?;
    if !missing.is_empty() {
        say(&format!("this machine has no {}", missing.join(", ")));
    }
    // One after the other, as they share a cache.
    let kernels = kernels
        .into_iter()
        .map(|kernel| Ok((kernel, kernel.get(&cache)?)))
        .collect::<Result<Vec<_>>>()?;

    let queue = Mutex::new(kernels.iter());
    let reports = Mutex::new(Vec::new());
    let at_once = args
        .at_once
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    thread::scope(|scope| {
        for _ in 0..at_once.max(1) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.next());
                    let Some((kernel, files)) = next else { break };
                    let machine = Machine {
                        name: kernel.name,
                        files,
                        qemu: &qemu,
                        base: &base,
                        runs: &runs(&built, &suites, args, &files.release),
                        lacks: &lacks(&suites, &files.release),
                        folder: &cache,
                        limit: Duration::from_secs(args.limit * 60),
                    };
                    let report = machine.run();
                    if let Ok(mut reports) = reports.lock() {
                        reports.push((kernel.name, report));
                    }
                }
            });
        }
    });
    let reports = reports.into_inner().unwrap_or_default();
    if args.write {
        let good = reports.iter().filter_map(|(kernel, report)| {
            let report = report.as_ref().ok()?;
            Some(((*kernel).to_owned(), report.result()))
        });
        results::write(root, good.collect())?;
    }
    judge(&reports)
}

fn judge(reports: &[(&str, Result<Report>)]) -> Result<()> {
    let mut bad = 0;
    for (kernel, report) in reports {
        match report {
            Ok(report) => {
                say(&format!("{kernel}: {report}"));
                bad += usize::from(!report.is_good());
            }
            Err(error) => {
                say(&format!("{kernel}: {error:#}"));
                bad += 1;
            }
        }
    }
    ensure!(bad == 0, "{bad} of {} kernels failed", reports.len());
    Ok(())
}

/// What to run on a kernel of this release.
fn runs(built: &Built, suites: &[&Suite], args: &Args, release: &str) -> Vec<Run> {
    let version = lack::version(release);
    if version < lack::MINIMUM {
        return vec![refusal(built)];
    }
    let mut runs = Vec::new();
    for suite in suites {
        let Some((_, program)) = built.tests.iter().find(|(name, _)| *name == suite.name) else {
            continue;
        };
        let skipped = |name: &str| format!("--skip={name}");
        let lacks = lack::of(suite.name, version).into_iter();
        let lacks = lacks.map(|(test, _)| skipped(test));
        let mut skip: Vec<_> = lacks.collect();
        skip.extend(suite.not.iter().copied().map(skipped));
        skip.extend(args.skip.iter().map(|name| skipped(name)));
        let filters = args
            .filters
            .iter()
            .map(|filter| match filter.split_once('/') {
                Some((of, filter)) => (of == suite.name).then_some(Some(filter)),
                None => Some(Some(filter.as_str())),
            });
        let mut filters: Vec<_> = filters.flatten().collect();
        if args.filters.is_empty() {
            filters.push(None);
        }
        let selections = suite.selections(args.quick).into_iter();
        let crossed = selections.flat_map(|one| filters.iter().map(move |filter| (one, *filter)));
        for (selection, filter) in crossed {
            let filter = match (filter, selection) {
                (None, selection) => selection,
                (Some(filter), None) => Some(filter),
                // A program takes one of them.
                (Some(filter), Some(selection)) if filter.starts_with(selection) => Some(filter),
                (Some(_), Some(_)) => continue,
            };
            let mut arguments = vec!["--format=json".to_owned(), "--test-threads=1".to_owned()];
            arguments.extend(skip.iter().cloned());
            arguments.extend(filter.map(ToOwned::to_owned));
            runs.push(Run {
                suite: suite.name.to_owned(),
                program: program.clone(),
                arguments,
                finds: selection.map(ToOwned::to_owned),
                needs_systemd: suite.needs_systemd,
            });
        }
    }
    runs
}

/// On a kernel that is too old there is one thing to see: that lockne says so.
fn refusal(built: &Built) -> Run {
    let lockne = built.programs.iter().find(|path| path.ends_with("lockne"));
    let arguments = ["--state-dir", "/run/lockne", "run", "--block", "--", "true"];
    Run {
        suite: machine::REFUSAL.to_owned(),
        program: lockne.cloned().unwrap_or_default(),
        arguments: arguments.map(ToOwned::to_owned).to_vec(),
        finds: None,
        needs_systemd: false,
    }
}

fn lacks(suites: &[&Suite], release: &str) -> Vec<(String, String)> {
    let version = lack::version(release);
    if version < lack::MINIMUM {
        return Vec::new();
    }
    let of = |suite: &&Suite| {
        let name = suite.name;
        let lacks = lack::of(name, version).into_iter();
        lacks.map(move |(test, reason)| (format!("{name}/{test}"), reason.to_owned()))
    };
    suites.iter().flat_map(of).collect()
}

/// Those of `all` with these names, or all of them.
fn chosen<'a, T>(
    kind: &str,
    names: &[String],
    all: impl Iterator<Item = &'a T> + Clone,
    name_of: impl Fn(&T) -> &'static str,
) -> Result<Vec<&'a T>> {
    if names.is_empty() {
        return Ok(all.collect());
    }
    let find = |name: &String| {
        let mut all = all.clone();
        all.find(|one| name_of(one) == name)
    };
    let chosen = names.iter().map(|name| match find(name) {
        Some(one) => Ok(one),
        None => bail!("there is no {kind} `{name}`; `cargo xtask kernels --list` names them"),
    });
    chosen.collect()
}

/// Where kernels, file systems and logs are kept.
fn cache(root: &Path) -> PathBuf {
    crate::target(root).join("kernels")
}
