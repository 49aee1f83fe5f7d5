//! `cargo xtask bench`: lockne beside what one would use instead, on one small network of namespaces.

mod measure;
mod network;
mod page;
mod plot;
mod result;
mod scene;
mod way;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use self::{
    measure::{Length, measure},
    result::Figures,
    scene::{Programs, Scene},
    way::Way,
};
use crate::{
    ebpf::say,
    kernels::{
        debian::{Origin, Suite},
        run_command,
    },
};

/// What to measure
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Few and short rounds, to see that it works
    #[arg(long)]
    quick: bool,
    /// Measure what is not optimized, to see soon that it works
    #[arg(long)]
    dev: bool,
    /// Only the ways whose names contain this, and what they are compared with
    #[arg(long, value_name = "WAY")]
    only: Vec<String>,
    /// How often each way is measured
    #[arg(long, value_name = "NUMBER")]
    rounds: Option<u32>,
    /// Where the results go
    #[arg(long, value_name = "FOLDER", default_value = "bench/results")]
    out: PathBuf,
    /// Name the ways, and do nothing
    #[arg(long)]
    list: bool,
}

/// Measures, and writes the results.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let all = || Way::PATHS.into_iter().chain(Way::TUNNELS);
    if args.list {
        for way in all() {
            say(&format!("{}: {}", way.key(), way.title()));
        }
        return Ok(());
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "measuring takes root: it makes network namespaces"
    );
    let is_wanted = |way: Way| {
        args.only.is_empty()
            || args
                .only
                .iter()
                .any(|part| way.key().contains(part.as_str()))
    };
    let with_base = |way: Way| is_wanted(way) || all().any(|it| is_wanted(it) && it.base() == way);
    let wanted: Vec<_> = all().filter(|&way| with_base(way)).collect();
    ensure!(
        !wanted.is_empty(),
        "no way is called so; `--list` names them"
    );

    let profile = if args.dev { "dev" } else { "release" };
    let programs = build(root, profile)?;
    let start = Instant::now();
    let load = fs::read_to_string("/proc/loadavg")?;
    let scene = Scene::build(programs)?;
    let mut lacks = Vec::new();
    let mut ways = Vec::new();
    for way in wanted {
        match scene.lack(way) {
            Some(lack) => {
                say(&format!("{} is left out: {lack}", way.key()));
                lacks.push((way, lack));
            }
            None => ways.push(way),
        }
    }

    let length = if args.quick {
        Length {
            stream: 1,
            other: 0.3,
        }
    } else {
        Length {
            stream: 1,
            other: 0.6,
        }
    };
    let rounds = args.rounds.unwrap_or(if args.quick { 2 } else { 7 });
    let mut figures = Figures::default();
    for round in 0..rounds {
        say(&format!(
            "round {} of {rounds}, after {} s",
            round + 1,
            start.elapsed().as_secs()
        ));
        // The one who comes first, or after whom, shall not matter.
        ways.rotate_left(1);
        for &way in &ways {
            let failed = || format!("cannot measure {}", way.key());
            let open = scene.open(way).with_context(failed)?;
            for (what, value) in measure(&open, way, length).with_context(failed)? {
                figures.add(round, way, what, value);
            }
        }
    }
    let seconds = start.elapsed().as_secs();
    drop(scene);

    let mut words: Vec<String> = vec!["cargo xtask bench".to_owned()];
    words.extend(args.quick.then(|| "--quick".to_owned()));
    words.extend(args.dev.then(|| "--dev".to_owned()));
    words.extend(args.rounds.map(|rounds| format!("--rounds {rounds}")));
    words.extend(args.only.iter().map(|part| format!("--only {part}")));
    let result = json!({
        "command": words.join(" "),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "cpu": cpu()?,
        "cpus": std::thread::available_parallelism()?.get(),
        "load_before": load.split(' ').take(3).map(str::parse).collect::<Result<Vec<f64>, _>>()?,
        "seconds": seconds,
        "rounds": rounds,
        "commit": commit(root),
        "left_out": lacks.iter().map(|(way, why)| json!({ "way": way.key(), "why": why })).collect::<Vec<_>>(),
        "figures": figures.json(),
    });
    let out = root.join(&args.out);
    fs::create_dir_all(&out)?;
    let file = out.join("bench.json");
    fs::write(&file, format!("{result:#}\n"))
        .with_context(|| format!("cannot write {}", file.display()))?;
    page::write(&out, &result, &figures)?;
    say(&format!(
        "{seconds} s; see {}",
        out.join("bench.md").display()
    ));
    Ok(())
}

/// Builds what is measured, as users build it, and fetches what it is compared with.
fn build(root: &Path, profile: &str) -> Result<Programs> {
    let packages = [
        &["lockne", "--bins"][..],
        &["lockne-lab", "--examples"],
        &["demos", "--bin", "11-socket-cookie"],
    ];
    for words in packages {
        let mut cargo = Command::new("cargo");
        cargo
            .current_dir(root)
            .args(["build", "--profile", profile]);
        let status = cargo.arg("--package").args(words).status()?;
        ensure!(
            status.success(),
            "cargo cannot build what is to be measured"
        );
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root.join("target"), |target| root.join(target));
    let built = target.join(if profile == "dev" { "debug" } else { profile });
    let cache = target.join("bench");
    let or_why = |it: Result<PathBuf>| it.map_err(|error| format!("{error:#}"));
    let wireguard_go = or_why(fetch_wireguard_go(&cache).context("it could not be fetched"));
    let boringtun = or_why(fetch_boringtun(&cache).context("it could not be built"));
    Ok(Programs {
        lockne: built.join("lockne"),
        load: built.join("examples/load"),
        peer: built.join("examples/peer"),
        cookie: built.join("11-socket-cookie"),
        wireguard_go,
        boringtun,
    })
}

/// The current wireguard-go: Debian's newest, unpacked and not installed.
fn fetch_wireguard_go(cache: &Path) -> Result<PathBuf> {
    let place = cache.join("wireguard-go");
    let program = place.join("usr/bin/wireguard-go");
    if !program.exists() {
        fs::create_dir_all(cache)?;
        let suite = Suite::update(cache, Origin::Debian, "sid")?;
        suite.unpack(&["wireguard-go".to_owned()], &place)?;
    }
    run_command(Command::new(&program).arg("--version"))?;
    Ok(program)
}

/// The last boringtun that was released, built and not installed.
fn fetch_boringtun(cache: &Path) -> Result<PathBuf> {
    let place = cache.join("boringtun");
    let program = place.join("bin/boringtun-cli");
    if !program.exists() {
        let mut cargo = Command::new("cargo");
        cargo.args(["install", "boringtun-cli@0.7.1", "--locked", "--root"]);
        run_command(cargo.arg(&place))?;
    }
    run_command(Command::new(&program).arg("--version"))?;
    Ok(program)
}

fn cpu() -> Result<String> {
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(name.map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned()))
}

fn commit(root: &Path) -> Value {
    let mut git = Command::new("git");
    let said = run_command(
        git.current_dir(root)
            .args(["describe", "--always", "--dirty"]),
    );
    said.map_or(Value::Null, |said| said.trim().into())
}
