//! lockne's own build tasks: `cargo xtask WORD`.

mod demos;
mod ebpf;
#[path = "../../../demos/build/kept.rs"]
mod kept;
mod kernels;
#[path = "../../lockne-daemon/build/object.rs"]
mod object;
mod setup;
mod talk;

use std::path::PathBuf;

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
    /// Run the tests on other kernels, in virtual machines
    Kernels(kernels::Args),
}

fn main() -> Result<()> {
    if rustix::process::getpid().is_init() {
        kernels::guest();
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = root
        .ancestors()
        .nth(2)
        .context("xtask is not in its workspace")?;
    match Task::parse() {
        Task::Setup => setup::run(),
        Task::Ebpf(args) => ebpf::run(root, &args),
        Task::Talk(args) => talk::run(root, &args),
        Task::Kernels(args) => kernels::run(root, &args),
    }
}
