//! The demos' part of `cargo xtask ebpf`: the kept objects, one for each demo.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{
    ebpf::{say, target_dir},
    kept::{FOLDER, RECORD, SOURCES, build, demos, is_fresh},
    object::{Record, Toolchain, hash},
};

/// Builds the kept objects anew.
pub(crate) fn keep(root: &Path) -> Result<()> {
    let tools = Toolchain::find().context("run `cargo xtask setup`")?;
    let folder = root.join(FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {FOLDER}"))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {FOLDER}"))?;
    build(&tools, root, &target_dir(root), &folder)?;
    fs::write(root.join(RECORD), record(&tools, root)?.to_string())
        .with_context(|| format!("cannot write {RECORD}"))?;
    say(&format!("{FOLDER}: {} objects", demos(root)?.len()));
    Ok(())
}

/// Fails if the kept objects are not what the sources make.
pub(crate) fn check(root: &Path) -> Result<()> {
    if !is_fresh(root)? {
        bail!("{FOLDER} is stale; run `cargo xtask ebpf`");
    }
    let tools = Toolchain::find().context("run `cargo xtask setup`")?;
    let then =
        fs::read_to_string(root.join(RECORD)).with_context(|| format!("cannot read {RECORD}"))?;
    let now = record(&tools, root)?.to_string();
    if then != now {
        say(&format!(
            "{FOLDER} was made with other tools, so its bytes were not compared\nthen:\n{then}now:\n{now}"
        ));
        return Ok(());
    }
    let built = target_dir(root).join("demos");
    fs::create_dir_all(&built).with_context(|| format!("cannot make {}", built.display()))?;
    build(&tools, root, &target_dir(root), &built)?;
    for demo in demos(root)? {
        let read = |folder: &Path| {
            let path = folder.join(&demo);
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        if read(&root.join(FOLDER))? != read(&built)? {
            bail!("{FOLDER}/{demo} has other bytes than its sources make; run `cargo xtask ebpf`");
        }
    }
    say(&format!("{FOLDER} is what its sources make"));
    Ok(())
}

fn record(tools: &Toolchain, root: &Path) -> Result<Record> {
    Ok(Record {
        sources: hash(root, &SOURCES)?,
        ..tools.record(root)?
    })
}
