//! How many instructions the verifier walked before it let lockne's programs in, as `bench/README.md`
//! has results. Needs root; loads the programs in a network namespace of its own.

use std::{collections::BTreeMap, fs};

use aya::programs::loaded_programs;
use lockne_daemon::{MarkField, kernel::Kernel};
use rustix::thread::UnshareFlags;
use serde_json::json;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    // SAFETY: the only thread; it owns no memory or files that depend on the namespace.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
    let folder = tempfile::tempdir()?;
    let pins = folder.path().join("bpf");
    let kernel = Kernel::open(&pins, MarkField::DEFAULT)?;
    let counts = counts();
    drop(kernel);
    Kernel::remove(&pins)?;

    let figures: Vec<_> = counts?
        .into_iter()
        .map(|(name, count)| json!({ "name": name, "unit": "instructions", "median": count }))
        .collect();
    let read = |path: &str| fs::read_to_string(path);
    let release = read("/proc/sys/kernel/osrelease")?;
    let cpus = read("/proc/cpuinfo")?;
    let model = cpus.lines().find(|line| line.starts_with("model name"));
    let result = json!({
        "command": "cargo run -p lockne-daemon --example verified",
        "kernel": release.split(['-', '\n']).next(),
        "cpu": model.and_then(|line| line.split(": ").nth(1)),
        "cpus": std::thread::available_parallelism()?,
        "figures": figures,
    });
    print(&serde_json::to_string_pretty(&result)?);
    Ok(())
}

/// The count of each program that this process holds: others may run a lockne beside.
fn counts() -> Result<BTreeMap<String, u32>, Failure> {
    let mut ours = Vec::new();
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        // The descriptor of the listing itself is gone by now.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
        if let Some(id) = id {
            ours.push(id.trim().parse::<u32>()?);
        }
    }
    let mut counts = BTreeMap::new();
    for program in loaded_programs() {
        let program = program?;
        if ours.contains(&program.id())
            && let Some(name) = program.name_as_str()
            && let Some(count) = program.verified_instruction_count()
        {
            counts.insert(name.to_owned(), count);
        }
    }
    Ok(counts)
}

#[expect(clippy::print_stdout, reason = "the result")]
fn print(text: &str) {
    println!("{text}");
}
