//! `cargo xtask ebpf`: the kernel object that is kept in the repository.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    demos,
    object::{KEPT, RECORD, Record, Toolchain, hash_sources},
};

/// What to do with the kept object.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail if the kept object is not what the sources make
    #[arg(long)]
    check: bool,
}

/// Builds the kept object anew, or checks it.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    if args.check {
        check(root)?;
        demos::check(root)
    } else {
        keep(root)?;
        demos::keep(root)
    }
}

fn keep(root: &Path) -> Result<()> {
    let tools = Toolchain::find().context("run `cargo xtask setup`")?;
    let object = build(&tools, root)?;
    let record = tools.record(root)?;
    fs::write(root.join(KEPT), &object).with_context(|| format!("cannot write {KEPT}"))?;
    fs::write(root.join(RECORD), record.to_string())
        .with_context(|| format!("cannot write {RECORD}"))?;
    say(&format!("{KEPT}: {} bytes", object.len()));
    Ok(())
}

fn check(root: &Path) -> Result<()> {
    let Some(record) = Record::read(root)? else {
        bail!("there is no {RECORD}; run `cargo xtask ebpf`");
    };
    if record.sources != hash_sources(root)? {
        bail!("{KEPT} is stale; run `cargo xtask ebpf`");
    }
    let tools = Toolchain::find().context("run `cargo xtask setup`")?;
    let object = build(&tools, root)?;
    let now = tools.record(root)?;
    if now != record {
        say(&format!(
            "{KEPT} was made with other tools, so its bytes were not compared\nthen:\n{record}now:\n{now}"
        ));
        return Ok(());
    }
    let kept = fs::read(root.join(KEPT)).with_context(|| format!("cannot read {KEPT}"))?;
    if kept != object {
        bail!("{KEPT} has other bytes than its sources make; run `cargo xtask ebpf`");
    }
    say(&format!("{KEPT} is what its sources make"));
    Ok(())
}

fn build(tools: &Toolchain, root: &Path) -> Result<Vec<u8>> {
    let object = tools.build(root, &target_dir(root))?;
    fs::read(&object).with_context(|| format!("cannot read {}", object.display()))
}

/// Where kernel code is built.
pub(crate) fn target_dir(root: &Path) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    target.join("ebpf")
}

/// Says something to whoever typed the command.
#[expect(clippy::print_stdout, reason = "the answer of the command")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
