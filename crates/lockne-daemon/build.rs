//! Puts the kernel objects where `include_bytes!` finds them: built from source where the tools for it
//! are installed, else the kept copies.
//!
//! `LOCKNE_EBPF=kept` and `LOCKNE_EBPF=source` force one or the other.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::object::{Record, Toolchain};

#[allow(dead_code, reason = "the rest is for `cargo xtask`")]
#[path = "build/object.rs"]
mod object;

fn main() -> Result<()> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = manifest
        .ancestors()
        .nth(2)
        .context("the crate is not in its workspace")?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo::rerun-if-env-changed=LOCKNE_EBPF");
    println!("cargo::rerun-if-changed=build.rs");
    for path in object::SOURCES.iter().chain([&object::FOLDER]) {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }

    let folder = match env::var("LOCKNE_EBPF").as_deref() {
        Ok("source") => from_source(root, &out)?,
        Ok("kept") => kept(root)?,
        Ok(other) => bail!("LOCKNE_EBPF is `{other}`, neither `source` nor `kept`"),
        Err(_) => from_source_or_kept(root, &out)?,
    };
    for object in &object::OBJECTS {
        let from = folder.join(object.file);
        fs::copy(&from, out.join(object.file))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}

fn from_source_or_kept(root: &Path, out: &Path) -> Result<PathBuf> {
    match Toolchain::find() {
        Ok(tools) => build(&tools, root, out),
        Err(missing) => {
            println!("cargo::warning=using the kept kernel objects: {missing:#}");
            kept(root)
        }
    }
}

fn from_source(root: &Path, out: &Path) -> Result<PathBuf> {
    let tools = Toolchain::find().context("run `cargo xtask setup`")?;
    build(&tools, root, out)
}

fn build(tools: &Toolchain, root: &Path, out: &Path) -> Result<PathBuf> {
    // Beside the profiles' folders, so that all of them share one build. Not OUT_DIR itself: cargo
    // would wait for its own lock.
    let shared = out.ancestors().nth(4).unwrap_or(out);
    let folder = shared.join("ebpf");
    tools.build(root, &folder)?;
    Ok(folder)
}

fn kept(root: &Path) -> Result<PathBuf> {
    let sources = object::hash_sources(root)?;
    if Record::read(root)?.is_none_or(|record| record.sources != sources) {
        bail!(
            "{} has objects of other sources; run `cargo xtask setup` to build them from source",
            object::FOLDER
        );
    }
    Ok(root.join(object::FOLDER))
}
