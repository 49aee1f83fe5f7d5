//! What lockne costs, against what it may cost: `cargo bench --package lockne --bench cost`.
//!
//! Needs root. `-- --json FILE` keeps the figures, `--rounds N` takes more or less time, `--lockne FILE` measures
//! another build, `--watching` only what it costs to watch, `--hook NAME` only lines with that in them of what
//! each program costs; see `docs/benchmarks.md`.

#![allow(clippy::print_stdout, reason = "the table")]

mod bpf;
mod figure;
mod hook;
mod place;
mod scale;
mod watch;

use std::{env, fs, process::Stdio, time::Instant};

use anyhow::{Context as _, Result};
use figure::Figure;
use lockne_lab::Namespace;
use place::{Place, Rules};
use serde_json::json;

const PAIRS: usize = 200;
const MIB: f64 = 1024.0 * 1024.0;

/// The most that a process id can ever be, `PID_MAX_LIMIT` of a 64-bit Linux.
const HIGHEST_PID: u64 = 1 << 22;

fn main() -> Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let after = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1)
    };
    if let Some(work) = after(hook::CHILD) {
        return hook::child(work);
    }
    if let Err(error) = Namespace::create("trial") {
        println!("ignored: {error}");
        return Ok(());
    }

    let place = Place::new(after("--lockne"))?;
    let rounds = after("--rounds").map_or(Ok(hook::ROUNDS), |text| text.parse())?;
    let only = after("--hook");
    let mut figures = Vec::new();
    if only.is_none() {
        figures.extend(watch::measure(&place, rounds)?);
    }
    if !arguments.iter().any(|argument| argument == "--watching") {
        figures.extend(hook::measure(
            &place,
            rounds,
            only.map_or("", String::as_str),
        )?);
    }
    if arguments
        .iter()
        .all(|argument| argument != "--watching" && argument != "--hook")
    {
        figures.extend(scale::measure(&place, rounds)?);
        let daemon = place.daemon()?;
        figures.push(apply(&daemon, rounds)?);
        figures.push(start(&place)?);
        figures.extend(memory(&place, &daemon)?);
    }

    println!("{}", figure::heading());
    for figure in &figures {
        println!("{}", figure.line()?);
    }
    if let Some(path) = after("--json") {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus.lines().find(|line| line.starts_with("model name"));
        let figures: Vec<_> = figures.iter().map(Figure::json).collect::<Result<_>>()?;
        let json = json!({
            "kernel": release.trim(),
            "cpu": model.and_then(|line| line.split(": ").nth(1)),
            "cpus": std::thread::available_parallelism()?,
            "pid_max": pid_max()?,
            "figures": figures,
        });
        fs::write(path, format!("{json:#}\n")).with_context(|| path.clone())?;
    }
    Ok(())
}

/// How long a changed configuration takes until it is in force.
fn apply(daemon: &place::Daemon<'_>, rounds: usize) -> Result<Figure> {
    let mut figure = Figure::new("1000 rules applied", "ms", Some(50.0));
    for _ in 0..rounds {
        figure.values.push(daemon.rules(Rules::Files(1000))?);
        daemon.rules(Rules::Files(0))?;
    }
    Ok(figure)
}

/// What `lockne run` adds to the time that a program takes.
fn start(place: &Place) -> Result<Figure> {
    let plain = || place.lab.home.command("true");
    let under_lockne = || place.lockne(&["run", "--block", "--", "true"]);
    let time = |mut command: std::process::Command| -> Result<f64> {
        let start = Instant::now();
        let status = command.stderr(Stdio::null()).status()?;
        anyhow::ensure!(status.success(), "{command:?}: {status}");
        Ok(start.elapsed().as_secs_f64() * 1000.0)
    };
    let values = (0..PAIRS).map(|pair| {
        // Who is first changes: the second one finds warmer caches.
        let before = if pair % 2 == 0 {
            Some(time(plain())?)
        } else {
            None
        };
        let lockne = time(under_lockne())?;
        Ok(lockne - before.map_or_else(|| time(plain()), Ok)?)
    });
    Ok(Figure {
        name: "lockne run --block -- true, minus true",
        unit: "ms",
        goal: Some(5.0),
        values: values.collect::<Result<_>>()?,
    })
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn memory(place: &Place, daemon: &place::Daemon) -> Result<[Figure; 4]> {
    let figure = |name, goal, bytes: u64| Figure {
        name,
        unit: "MiB",
        goal,
        values: vec![bytes as f64 / MIB],
    };
    let maps = bpf::map_memory(&place.pins())?;
    let at_most = maps + (HIGHEST_PID - pid_max()?);
    let idle = daemon.resident()?;
    place.lab.provider_a.start()?;
    place.tunnel_up()?;
    Ok([
        figure("resident memory, idle daemon", Some(12.0), idle),
        figure(
            "resident memory, one tunnel",
            Some(12.0),
            daemon.resident()?,
        ),
        figure("kernel maps", Some(1.0), maps),
        figure("kernel maps if pid_max were 4194304", None, at_most),
    ])
}

fn pid_max() -> Result<u64> {
    Ok(fs::read_to_string("/proc/sys/kernel/pid_max")?
        .trim()
        .parse()?)
}
