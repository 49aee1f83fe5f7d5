//! lockne's own build tasks: `cargo xtask WORD`.

mod bench;
mod demos;
mod ebpf;
mod fuzz;
#[path = "../../../demos/build/kept.rs"]
mod kept;
mod kernels;
#[path = "../../lockne-daemon/build/object.rs"]
mod object;
mod setup;
mod talk;
mod turn;

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Parser;

/// Tasks around building lockne
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Install what it takes to build the kernel object from source
    Setup,
    /// Build the kernel objects from source and keep them in the repository
    Ebpf(ebpf::Args),
    /// Render the slides of the talk
    Talk(talk::Args),
    /// Give random input to whatever lockne reads
    Fuzz(fuzz::Args),
    /// Run the tests on other kernels, in virtual machines
    Kernels(kernels::Args),
    /// Measure lockne beside what one would use instead
    Bench(bench::Args),
    /// What is left to run in a virtual machine, once systemd is its first process
    #[command(hide = true)]
    Rest,
}

fn main() -> Result<()> {
    if rustix::process::getpid().is_init() {
        kernels::guest();
    }
    forget_cargo();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = root
        .ancestors()
        .nth(2)
        .context("xtask is not in its workspace")?;
    match Task::parse() {
        Task::Setup => setup::run(),
        Task::Ebpf(args) => ebpf::run(root, &args),
        Task::Talk(args) => talk::run(root, &args),
        Task::Fuzz(args) => fuzz::run(root, &args),
        Task::Kernels(args) => kernels::run(root, &args),
        Task::Bench(args) => bench::run(root, &args),
        Task::Rest => kernels::rest(),
    }
}

/// Where cargo puts what it builds.
fn target(root: &Path) -> PathBuf {
    // From the root, as cargo is started there.
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |it| root.join(it))
}

/// Forgets what cargo says of this package. Build scripts look at these variables (that of `ring` does), so that a
/// cargo started from here would build again, for minutes, what a cargo started elsewhere has built already.
fn forget_cargo() {
    let names: Vec<_> = env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        .collect();
    for name in names {
        // SAFETY: no other thread runs yet.
        unsafe { env::remove_var(name) };
    }
}
