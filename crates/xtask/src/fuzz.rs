//! `cargo xtask fuzz`: random input for whatever lockne reads, by cargo-fuzz, on stable Rust.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};

/// The last version that was tried.
const CARGO_FUZZ: &str = "0.13.2";

/// What to try, and for how long
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this one; without it, all one after the other
    target: Option<String>,
    /// How long each takes
    #[arg(long, value_name = "N", default_value_t = 15)]
    seconds: u32,
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
    targets.sort();
    ensure!(
        !targets.is_empty(),
        "there is no such target in fuzz/fuzz_targets"
    );
    let mut failed = Vec::new();
    for target in targets {
        let found = folder.join("corpus").join(&target);
        fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
        // Sanitizers need a nightly compiler, and all that is tried here is safe Rust.
        let status = Command::new("cargo")
            .args(["fuzz", "run", "--sanitizer", "none", &target])
            .arg(&found)
            .arg(folder.join("seeds").join(&target))
            .arg("--")
            .arg(format!("-max_total_time={}", args.seconds))
            .args([
                "-timeout=10",
                "-rss_limit_mb=1024",
                "-print_final_stats=1",
                "-verbosity=0",
            ])
            // Set by the `cargo` that runs this.
            .env_remove("CARGO_TARGET_DIR")
            .current_dir(&folder)
            .status()
            .context("cannot run cargo")?;
        if !status.success() {
            failed.push(target);
        }
    }
    if !failed.is_empty() {
        bail!(
            "found something in {}: mend it, and keep the input from fuzz/artifacts in fuzz/seeds",
            failed.join(", ")
        );
    }
    Ok(())
}

fn install() -> Result<()> {
    let version = Command::new("cargo").args(["fuzz", "--version"]).output();
    if version.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    let status = Command::new("cargo")
        .args(["install", "cargo-fuzz", "--locked", "--version", CARGO_FUZZ])
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cannot install cargo-fuzz");
    Ok(())
}
