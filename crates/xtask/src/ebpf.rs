//! `cargo xtask ebpf`: the kernel objects that are kept in the repository.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    demos,
    object::{FOLDER, OBJECTS, RECORD, Record, Toolchain, hash_sources},
};

/// What to do with the kept objects.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail if the kept objects are not what the sources make
    #[arg(long)]
    check: bool,
}

/// Builds the kept objects anew, or checks them.
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
    let built = target_dir(root);
    tools.build(root, &built)?;
    for object in &OBJECTS {
        let kept = object.kept();
        let size = fs::copy(built.join(object.file), root.join(&kept))
            .with_context(|| format!("cannot write {kept}"))?;
        say(&format!("{kept}: {size} bytes"));
    }
    fs::write(root.join(RECORD), tools.record(root)?.to_string())
        .with_context(|| format!("cannot write {RECORD}"))
}

fn check(root: &Path) -> Result<()> {
    let Some(record) = Record::read(root)? else {
        bail!("there is no {RECORD}; run `cargo xtask ebpf`");
    };
    if record.sources != hash_sources(root)? {
        bail!("{FOLDER} is stale; run `cargo xtask ebpf`");
    }
    let tools = Toolchain::find().context("run `cargo xtask setup`")?;
    let built = target_dir(root);
    tools.build(root, &built)?;
    let now = tools.record(root)?;
    if now != record {
        say(&format!(
            "{FOLDER} was made with other tools, so its bytes were not compared\nthen:\n{record}now:\n{now}"
        ));
        return Ok(());
    }
    for object in &OBJECTS {
        let read = |path: PathBuf| {
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let kept = object.kept();
        if read(root.join(&kept))? != read(built.join(object.file))? {
            bail!("{kept} has other bytes than its sources make; run `cargo xtask ebpf`");
        }
        say(&format!("{kept} is what its sources make"));
    }
    Ok(())
}

/// Where kernel code is built.
pub(crate) fn target_dir(root: &Path) -> PathBuf {
    crate::target(root).join("ebpf")
}

/// Says something to whoever typed the command.
#[expect(clippy::print_stdout, reason = "the answer of the command")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
