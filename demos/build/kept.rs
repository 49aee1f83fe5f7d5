//! The kept objects of the demos: where they are, and whether they are fresh.
//!
//! Shared, as a file, by the demos' build script and by `cargo xtask`.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::object::{self, Toolchain};

/// The crate with the kernel's side.
pub(crate) const PACKAGE: &str = "demos-ebpf";

/// Where the kept objects are, from the root of the workspace.
pub(crate) const FOLDER: &str = "demos/objects";

/// What the objects were made of, among them.
pub(crate) const RECORD: &str = "demos/objects/record.txt";

/// What the objects are made of, from the root of the workspace.
pub(crate) const SOURCES: [&str; 3] = [
    "crates/lockne-daemon/build/object.rs",
    "demos/ebpf/Cargo.toml",
    "demos/ebpf/src",
];

/// The names of the demos' programs, in order.
///
/// # Errors
///
/// If the folder of the sources cannot be read.
pub(crate) fn demos(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("demos/ebpf/src/bin");
    let mut names = Vec::new();
    for entry in
        fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?
    {
        if let Some(name) = entry?.path().file_stem() {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Compiles the object of each demo into the folder `to`.
///
/// # Errors
///
/// If the compiler fails; its messages are in the error.
pub(crate) fn build(tools: &Toolchain, root: &Path, target_dir: &Path, to: &Path) -> Result<()> {
    let built = tools.build_package(PACKAGE, root, target_dir)?;
    for demo in demos(root)? {
        tools.strip(&built.join(format!("{demo}-ebpf")), &to.join(&demo))?;
    }
    Ok(())
}

/// Whether the kept objects are made of the sources as they are.
///
/// # Errors
///
/// If a source cannot be read.
pub(crate) fn is_fresh(root: &Path) -> Result<bool> {
    let Ok(record) = fs::read_to_string(root.join(RECORD)) else {
        return Ok(false);
    };
    let sources = object::hash(root, &SOURCES)?;
    Ok(record
        .lines()
        .any(|line| line == format!("sources: {sources}")))
}
