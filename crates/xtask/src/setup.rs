//! `cargo xtask setup`: the eBPF toolchain, from nothing but rustup's stable Rust.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

/// The last version that Rust 1.95 compiles.
const LINKER: &str = "0.13.0";

/// Installs what is missing; does nothing when all is there.
pub(crate) fn run() -> Result<()> {
    install_sources()?;
    install_linker()
}

/// The sources of `core`, which has to be built for the target.
fn install_sources() -> Result<()> {
    let core = sysroot()?.join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if core.exists() {
        return say("rust-src: installed already");
    }
    run_command(Command::new("rustup").args(["component", "add", "rust-src"]))?;
    ensure!(
        core.exists(),
        "rustup installed rust-src, but not into the toolchain in use: {} is missing",
        core.display()
    );
    say("rust-src: installed")
}

fn install_linker() -> Result<()> {
    let version = Command::new("bpf-linker").arg("--version").output();
    if let Ok(output) = version
        && String::from_utf8_lossy(&output.stdout)
            .trim()
            .ends_with(LINKER)
    {
        return say("bpf-linker: installed already");
    }
    let llvm = Llvm::of_rustc()?;
    run_command(
        Command::new("cargo")
            .args([
                "install",
                "bpf-linker",
                "--locked",
                "--force",
                "--version",
                LINKER,
            ])
            .args(["--no-default-features", "--features", &llvm.feature])
            .env("LLVM_PREFIX", &llvm.prefix)
            // Set by the `cargo` that runs this.
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    say("bpf-linker: installed")
}

/// The LLVM inside rustc. The linker must not be older than the compiler, and no system has it.
struct Llvm {
    feature: String,
    prefix: PathBuf,
}

impl Llvm {
    /// Makes a folder that looks like an installed LLVM to the build script of bpf-linker.
    fn of_rustc() -> Result<Self> {
        let lib = sysroot()?.join("lib");
        let library = fs::read_dir(&lib)
            .with_context(|| format!("cannot list {}", lib.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find(|name| name.starts_with("libLLVM.so."))
            .with_context(|| format!("no libLLVM.so in {}", lib.display()))?;
        let major = library
            .trim_start_matches("libLLVM.so.")
            .split('.')
            .next()
            .unwrap_or_default()
            .to_owned();
        let prefix = env::temp_dir().join(format!("lockne-llvm-{}", std::process::id()));
        let links = prefix.join("lib");
        fs::create_dir_all(&links).with_context(|| format!("cannot make {}", links.display()))?;
        for name in ["libLLVM.so", &library] {
            link(&lib.join(&library), &links.join(name))?;
        }
        Ok(Self {
            feature: format!("llvm-{major}"),
            prefix,
        })
    }
}

impl Drop for Llvm {
    fn drop(&mut self) {
        // A few links below the temporary folder; whoever cleans that up takes them along.
        drop(fs::remove_dir_all(&self.prefix));
    }
}

fn link(to: &Path, at: &Path) -> Result<()> {
    symlink(to, at).with_context(|| format!("cannot link {} to {}", at.display(), to.display()))
}

fn sysroot() -> Result<PathBuf> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .context("cannot run rustc")?;
    ensure!(output.status.success(), "rustc does not say where it is");
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

fn run_command(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !status.success() {
        bail!("`{command:?}` failed");
    }
    Ok(())
}

#[expect(
    clippy::print_stdout,
    clippy::unnecessary_wraps,
    reason = "the last word of each step"
)]
fn say(text: &str) -> Result<()> {
    println!("{text}");
    Ok(())
}
