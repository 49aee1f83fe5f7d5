//! The kernel objects: how they are built from source, and how the kept copies are known to be fresh.
//!
//! Shared, as a file, by the daemon's build script and by `cargo xtask`.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fmt::{self, Write as _},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

/// An object: a binary of `lockne-ebpf`, loaded apart from the others.
pub(crate) struct Object {
    /// The binary.
    pub(crate) binary: &'static str,
    /// What it is called where it is kept, and where it is built.
    pub(crate) file: &'static str,
}

/// Every object.
pub(crate) const OBJECTS: [Object; 2] = [
    Object {
        binary: "lockne-ebpf",
        file: "lockne.bpf.o",
    },
    Object {
        binary: "lockne-observe",
        file: "observe.bpf.o",
    },
];

impl Object {
    /// Where it is kept, from the root of the workspace.
    pub(crate) fn kept(&self) -> String {
        format!("{FOLDER}/{}", self.file)
    }
}

/// Where objects are kept, from the root of the workspace.
pub(crate) const FOLDER: &str = "crates/lockne-daemon/ebpf";

/// What the kept objects were made of, beside them.
pub(crate) const RECORD: &str = "crates/lockne-daemon/ebpf/lockne.bpf.txt";

/// What the objects are made of, from the root of the workspace. This file is among it: the flags are
/// in it.
pub(crate) const SOURCES: [&str; 5] = [
    "crates/lockne-abi/Cargo.toml",
    "crates/lockne-abi/src",
    "crates/lockne-daemon/build/object.rs",
    "crates/lockne-ebpf/Cargo.toml",
    "crates/lockne-ebpf/src",
];

const TARGET: &str = "bpfel-unknown-none";

/// What made an object, or would make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The hash of the sources.
    pub(crate) sources: String,
    /// The compiler.
    pub(crate) rustc: String,
    /// The linker.
    pub(crate) linker: String,
}

impl Record {
    /// What is written beside the kept objects, or `None` if there is no such file.
    ///
    /// # Errors
    ///
    /// If a line is missing.
    pub(crate) fn read(root: &Path) -> Result<Option<Self>> {
        let path = root.join(RECORD);
        if !path.exists() {
            return Ok(None);
        }
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let fields: BTreeMap<_, _> = text.lines().filter_map(|l| l.split_once(": ")).collect();
        let field = |name: &str| {
            fields
                .get(name)
                .map(|value| (*value).to_owned())
                .with_context(|| format!("{} has no line `{name}`", path.display()))
        };
        Ok(Some(Self {
            sources: field("sources")?,
            rustc: field("rustc")?,
            linker: field("bpf-linker")?,
        }))
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "sources: {}", self.sources)?;
        writeln!(f, "rustc: {}", self.rustc)?;
        writeln!(f, "bpf-linker: {}", self.linker)
    }
}

/// The SHA-256 over names and contents of all sources, and over the versions of what they depend on.
///
/// # Errors
///
/// If one of them cannot be read.
pub(crate) fn hash_sources(root: &Path) -> Result<String> {
    hash(root, &SOURCES)
}

/// The SHA-256 over names and contents of `sources`, and over the versions of what they depend on.
///
/// # Errors
///
/// If one of them cannot be read.
pub(crate) fn hash(root: &Path, sources: &[&str]) -> Result<String> {
    let mut files = Vec::new();
    for source in sources {
        list(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let name = file
            .strip_prefix(root)
            .context("a source outside the workspace")?;
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        add(&mut hash, name.as_os_str().as_encoded_bytes());
        add(&mut hash, &text);
    }
    let lock = root.join("Cargo.lock");
    let lock =
        fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    for package in lock
        .split("[[package]]")
        .filter(|p| p.contains("name = \"aya-ebpf"))
    {
        add(&mut hash, package.trim().as_bytes());
    }
    let mut text = String::new();
    for byte in hash.finalize() {
        write!(text, "{byte:02x}")?;
    }
    Ok(text)
}

fn add(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn list(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
        list(&entry?.path(), files)?;
    }
    Ok(())
}

/// The compiler and linker that turn the sources into objects.
pub(crate) struct Toolchain {
    rustc: String,
    linker: String,
    sysroot: PathBuf,
}

impl Toolchain {
    /// Finds the tools: the `rustc` in use with its own sources, and bpf-linker.
    ///
    /// # Errors
    ///
    /// Says which one is missing.
    pub(crate) fn find() -> Result<Self> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let run = |program: &OsString, arg: &[&str]| -> Result<String> {
            let output = Command::new(program)
                .args(arg)
                .output()
                .with_context(|| format!("cannot run {}", program.display()))?;
            ensure!(output.status.success(), "{} failed", program.display());
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let sysroot = PathBuf::from(run(&rustc, &["--print", "sysroot"])?);
        let core = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml");
        ensure!(core.exists(), "the component rust-src is not installed");
        let linker = run(&"bpf-linker".into(), &["--version"])?;
        let linker = linker.rsplit(' ').next().unwrap_or_default().to_owned();
        Ok(Self {
            rustc: run(&rustc, &["--version"])?,
            linker,
            sysroot,
        })
    }

    /// What the objects will be made of.
    ///
    /// # Errors
    ///
    /// If a source cannot be read.
    pub(crate) fn record(&self, root: &Path) -> Result<Record> {
        Ok(Record {
            sources: hash_sources(root)?,
            rustc: self.rustc.clone(),
            linker: self.linker.clone(),
        })
    }

    /// Compiles the objects into `target_dir`, each under its [`file`](Object::file) name.
    ///
    /// The bytes depend on the sources and the versions of the tools alone: neither on where the
    /// checkout is, nor on the profiles or flags of whoever builds.
    ///
    /// # Errors
    ///
    /// If the compiler fails; its messages are in the error.
    pub(crate) fn build(&self, root: &Path, target_dir: &Path) -> Result<()> {
        let folder = self.build_package("lockne-ebpf", root, target_dir)?;
        for object in &OBJECTS {
            self.strip(&folder.join(object.binary), &target_dir.join(object.file))?;
        }
        Ok(())
    }

    /// Compiles each binary of `package` as [`Self::build`] does and returns the folder they are in.
    ///
    /// # Errors
    ///
    /// As [`Self::build`].
    pub(crate) fn build_package(
        &self,
        package: &str,
        root: &Path,
        target_dir: &Path,
    ) -> Result<PathBuf> {
        let home = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
            .context("neither CARGO_HOME nor HOME is set")?;
        let mut flags = vec![
            "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
        ];
        for (from, to) in [
            (&*home, "cargo"),
            (root, "lockne"),
            (&*self.sysroot, "rust"),
        ] {
            flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        }
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        // What cargo sets for a build script describes the host's build, not this one.
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            let ours = text.starts_with("CARGO_") && text != "CARGO_HOME" && !text.contains("HTTP");
            if ours
                || text == "RUSTFLAGS"
                || text.starts_with("RUSTC_")
                || text.ends_with("_TARGET")
            {
                command.env_remove(&name);
            }
        }
        let output = command
            .current_dir(root)
            .args([
                "build",
                "--quiet",
                "--locked",
                "--release",
                "--package",
                package,
            ])
            .args(["--target", TARGET, "-Zbuild-std=core", "--target-dir"])
            .arg(target_dir)
            // Unstable flags of a stable compiler: the target has no ready-made `core`.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_STRIP", "none")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
            .output()
            .context("cannot run cargo")?;
        if !output.status.success() {
            bail!(
                "cannot compile {package}\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(target_dir.join(TARGET).join("release"))
    }

    /// Leaves out what only debuggers read, five sixths of the file.
    ///
    /// # Errors
    ///
    /// If the tool for it is missing or fails.
    pub(crate) fn strip(&self, from: &Path, to: &Path) -> Result<()> {
        let hosts = self.sysroot.join("lib/rustlib");
        let tool = fs::read_dir(&hosts)
            .with_context(|| format!("cannot list {}", hosts.display()))?
            .filter_map(|entry| Some(entry.ok()?.path().join("bin/rust-objcopy")))
            .find(|path| path.exists())
            .with_context(|| format!("no rust-objcopy in {}", hosts.display()))?;
        let status = Command::new(&tool)
            .arg("--strip-debug")
            .args([from, to])
            .status()
            .with_context(|| format!("cannot run {}", tool.display()))?;
        ensure!(status.success(), "{} failed", tool.display());
        Ok(())
    }
}
