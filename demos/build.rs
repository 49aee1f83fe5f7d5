//! Puts the kernel's side of each demo where `include_bytes!` finds it: built from source where the
//! tools for it are installed, else the kept copies.
//!
//! `LOCKNE_EBPF=kept` and `LOCKNE_EBPF=source` force one or the other.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::object::Toolchain;

#[path = "build/kept.rs"]
mod kept;
#[expect(dead_code, reason = "shared with lockne's own object")]
#[path = "../crates/lockne-daemon/build/object.rs"]
mod object;

fn main() -> Result<()> {
    let demos = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = demos
        .parent()
        .context("the crate is not in its workspace")?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo::rerun-if-env-changed=LOCKNE_EBPF");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    for path in kept::SOURCES.iter().chain([&kept::FOLDER]) {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }

    let tools = match env::var("LOCKNE_EBPF").as_deref() {
        Ok("source") => Some(Toolchain::find().context("run `cargo xtask setup`")?),
        Ok("kept") => None,
        Ok(other) => bail!("LOCKNE_EBPF is `{other}`, neither `source` nor `kept`"),
        Err(_) => match Toolchain::find() {
            Ok(tools) => Some(tools),
            Err(missing) => {
                println!("cargo::warning=using the kept kernel objects: {missing:#}");
                None
            }
        },
    };
    match tools {
        // Shared with lockne's own object, so that `core` is built once.
        Some(tools) => kept::build(
            &tools,
            root,
            &out.ancestors().nth(4).unwrap_or(&out).join("ebpf"),
            &out,
        ),
        None => copy(root, &out),
    }
}

fn copy(root: &Path, out: &Path) -> Result<()> {
    ensure!(
        kept::is_fresh(root)?,
        "the objects in {} are not made of these sources; run `cargo xtask setup` to build them from source",
        kept::FOLDER
    );
    for demo in kept::demos(root)? {
        let from = root.join(kept::FOLDER).join(&demo);
        fs::copy(&from, out.join(&demo))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}
