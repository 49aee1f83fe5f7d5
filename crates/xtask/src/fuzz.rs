//! `cargo xtask fuzz`: random input for whatever lockne reads, by cargo-fuzz, on stable Rust.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::Mutex,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};

/// The last version that was tried.
const CARGO_FUZZ: &str = "0.13.2";

/// What to try, and for how long
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this one; without it, all, as many at a time as there are processors
    target: Option<String>,
    /// How long each takes
    #[arg(long, value_name = "N", default_value_t = 15)]
    seconds: u32,
    /// Where chance starts, so that a run can be had again; without it, each is another
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
}

/// Builds all and runs them, each from its seeds and what earlier runs here have found.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    install()?;
    let folder = root.join("fuzz");
    let mut targets: Vec<String> = fs::read_dir(folder.join("fuzz_targets"))
        .context("cannot list fuzz/fuzz_targets")?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .filter(|name| args.target.as_ref().is_none_or(|target| target == name))
        .collect();
    // The last one is taken first.
    targets.sort_by(|a, b| b.cmp(a));
    ensure!(
        !targets.is_empty(),
        "there is no such target in fuzz/fuzz_targets"
    );
    let status = cargo_fuzz(&folder, "build")
        .args(&args.target)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cannot build the targets");

    let at_once = thread::available_parallelism().map_or(1, usize::from);
    let (left, failed) = (Mutex::new(targets), Mutex::new(Vec::new()));
    let next = || left.lock().expect("nobody panics").pop();
    let work = || -> Result<()> {
        while let Some(target) = next() {
            let start = Instant::now();
            let output = try_one(&folder, &target, args)?;
            report(&target, &output, start);
            if !output.status.success() {
                failed.lock().expect("nobody panics").push(target);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let mut results = workers
            .into_iter()
            .map(|it| it.join().expect("it does not panic"));
        results.try_for_each(|result| result)
    })?;
    let failed = failed.into_inner().expect("nobody panics");
    if !failed.is_empty() {
        bail!(
            "found something in {}: mend it, and keep the input from fuzz/artifacts in fuzz/seeds",
            failed.join(", ")
        );
    }
    Ok(())
}

fn try_one(folder: &Path, target: &str, args: &Args) -> Result<Output> {
    let found = folder.join("corpus").join(target);
    fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    cargo_fuzz(folder, "run")
        .arg(target)
        .arg(&found)
        .arg(folder.join("seeds").join(target))
        .arg("--")
        .arg(format!("-max_total_time={}", args.seconds))
        // Nothing is that slow, and machines that do other things, too, are not judged.
        .args(["-timeout=120", "-rss_limit_mb=2048", "-print_final_stats=1"])
        .args(args.seed.map(|seed| format!("-seed={seed}")))
        .output()
        .context("cannot run cargo")
}

/// A line where nothing was found, else everything that was said.
#[expect(clippy::print_stdout, reason = "what somebody waits for")]
fn report(target: &str, output: &Output, start: Instant) {
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        println!("{said}");
    }
    let tried = said
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let tried = tried.map_or("?", str::trim);
    let seconds = start.elapsed().as_secs();
    println!("{target}: {tried} inputs in {seconds} s");
}

fn cargo_fuzz(folder: &Path, verb: &str) -> Command {
    let mut command = Command::new("cargo");
    // Sanitizers need a nightly compiler, and nearly all that is tried here is safe Rust.
    command
        .args(["fuzz", verb, "--sanitizer", "none"])
        .args(["--codegen-units", "16"])
        // Set by the `cargo` that runs this.
        .env_remove("CARGO_TARGET_DIR")
        .current_dir(folder);
    command
}

fn install() -> Result<()> {
    let version = Command::new("cargo").args(["fuzz", "--version"]).output();
    if version.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    // It only starts others, so it need not be fast, but soon there.
    let status = Command::new("cargo")
        .args(["install", "cargo-fuzz", "--locked", "--debug"])
        .args(["--version", CARGO_FUZZ])
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cannot install cargo-fuzz");
    Ok(())
}
