//! `cargo xtask bench`: lockne beside what one would use instead, on one small network of namespaces.

mod load;
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
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use self::{
    load::Load,
    measure::{Length, Measure, measure},
    result::{Figures, Subject},
    scene::{Programs, Scene},
    way::Way,
};
use crate::{
    ebpf::say,
    kernels::{
        debian::{Origin, Suite},
        run_command,
    },
    turn::Turn,
};

/// What to measure
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Few and short rounds, to see that it works; writes to a folder in target, unless `--out` names one
    #[arg(long)]
    quick: bool,
    /// Measure what is not optimized, to see soon that it works
    #[arg(long)]
    dev: bool,
    /// Only the ways whose names contain this, and what they are compared with; `under` for loads, `cost` for the
    /// kernel's statistics
    #[arg(long, value_name = "WAY")]
    only: Vec<String>,
    /// How often each way is measured
    #[arg(long, value_name = "NUMBER")]
    rounds: Option<u32>,
    /// Where the results go, if not to `bench/results`
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Name the ways, and do nothing
    #[arg(long)]
    list: bool,
}

impl Args {
    /// The command that does the same again.
    fn command(&self) -> String {
        let mut words = vec!["cargo xtask bench".to_owned()];
        words.extend(self.quick.then(|| "--quick".to_owned()));
        words.extend(self.dev.then(|| "--dev".to_owned()));
        words.extend(self.rounds.map(|rounds| format!("--rounds {rounds}")));
        words.extend(self.only.iter().map(|part| format!("--only {part}")));
        words.join(" ")
    }
}

/// A short word for what is measured beside the ways.
const COST: &str = "cost";

/// When the last round of each begins: of ten minutes, the kernel's statistics take two.
const LAST_WAYS: Duration = Duration::from_secs(270);
const LAST_LOADS: Duration = Duration::from_secs(400);

/// How long all may take, in short and as a whole.
struct Plan {
    length: Length,
    load_length: Length,
    rounds: u32,
    load_rounds: u32,
    cost_rounds: u32,
}

impl Plan {
    fn new(args: &Args) -> Self {
        if args.quick {
            let length = Length {
                stream: 1,
                other: 0.3,
            };
            let rounds = args.rounds.unwrap_or(1);
            return Self {
                length,
                load_length: length,
                rounds,
                load_rounds: rounds,
                cost_rounds: 2,
            };
        }
        let rounds = args.rounds.unwrap_or(7);
        Self {
            length: Length {
                stream: 1,
                other: 0.5,
            },
            load_length: Length {
                stream: 1,
                other: 0.2,
            },
            rounds,
            load_rounds: rounds.div_ceil(2),
            cost_rounds: 2,
        }
    }
}

/// Measures, and writes the results.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let all = || Way::PATHS.into_iter().chain(Way::TUNNELS);
    if args.list {
        for way in all() {
            say(&format!("{}: {}", way.key(), way.title()));
        }
        for load in Load::ALL {
            say(&format!("{}: {}", load.key(), load.title()));
        }
        say(&format!("{COST}: by the kernel's statistics"));
        return Ok(());
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "measuring takes root: it makes network namespaces"
    );
    let is_wanted = |key: &str| {
        args.only.is_empty() || args.only.iter().any(|part| key.contains(part.as_str()))
    };
    let with_base = |way: Way| {
        is_wanted(&way.key()) || all().any(|it| is_wanted(&it.key()) && it.base() == way)
    };
    let wanted: Vec<_> = all().filter(|&way| with_base(way)).collect();
    let mut loads: Vec<_> = Load::ALL
        .into_iter()
        .filter(|load| is_wanted(&load.key()))
        .collect();
    if !loads.is_empty() && !loads.contains(&Load::Nothing) {
        loads.insert(0, Load::Nothing);
    }
    let is_cost_wanted = is_wanted(COST);
    ensure!(
        !wanted.is_empty() || !loads.is_empty() || is_cost_wanted,
        "nothing is called so; `--list` names all"
    );

    let plan = Plan::new(args);
    let profile = if args.dev { "dev" } else { "release" };
    let target = crate::target(root);
    let out = match &args.out {
        Some(out) => root.join(out),
        // What is measured badly does not go where the good figures are.
        None if args.quick || args.dev || !args.only.is_empty() => target.join("bench/results"),
        None => root.join("bench/results"),
    };
    fs::create_dir_all(&out)?;
    let _turn = Turn::wait(&target)?;
    let programs = build(root, &target, profile)?;
    let cost = programs.cost.clone();
    let start = Instant::now();
    let load_before = fs::read_to_string("/proc/loadavg")?;
    let scene = Scene::build(programs)?;
    let (ways, lacks): (Vec<_>, Vec<_>) = wanted
        .into_iter()
        .map(|way| (way, scene.lack(way)))
        .partition(|(_, lack)| lack.is_none());
    for (way, lack) in &lacks {
        let lack = lack.as_deref().unwrap_or_default();
        say(&format!("{} is left out: {lack}", way.key()));
    }
    let ways = ways.into_iter().map(|(way, _)| way).collect();
    let ways = in_turn("ways", ways, plan.rounds, (start, LAST_WAYS), |way| {
        measure(&scene.open(way)?, way, plan.length)
    })?;
    let loads = in_turn(
        "loads",
        loads,
        plan.load_rounds,
        (start, LAST_LOADS),
        |load| measure(&scene.open_under(load)?, load.way(), plan.load_length),
    )?;
    drop(scene);
    let cost = is_cost_wanted
        .then(|| statistics(&cost, &out.join("cost.json"), plan.cost_rounds, start))
        .transpose()?;
    let seconds = start.elapsed().as_secs();

    let mut figures = ways.json();
    figures.extend(loads.json());
    let result = json!({
        "command": args.command(),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "cpu": cpu()?,
        "cpus": std::thread::available_parallelism()?.get(),
        "load_before": load_before.split(' ').take(3).map(str::parse).collect::<Result<Vec<f64>, _>>()?,
        "seconds": seconds,
        "rounds": ways.rounds(),
        "load_rounds": loads.rounds(),
        "commit": commit(root),
        "left_out": lacks.iter().map(|(way, why)| json!({ "way": way.key(), "why": why })).collect::<Vec<_>>(),
        "figures": figures,
    });
    let file = out.join("bench.json");
    fs::write(&file, format!("{result:#}\n"))
        .with_context(|| format!("cannot write {}", file.display()))?;
    page::write(&out, &result, &ways, &loads, cost.as_ref())?;
    say(&format!(
        "{seconds} s; see {}",
        out.join("bench.md").display()
    ));
    if out == root.join("bench/results") {
        say("the slides show these figures: `cargo xtask talk` renders them anew");
    }
    Ok(())
}

/// Measures each once per round. On a slow machine there are fewer rounds, so that all ends in time.
fn in_turn<S: Subject>(
    what: &str,
    mut subjects: Vec<S>,
    rounds: u32,
    (start, last): (Instant, Duration),
    mut measure: impl FnMut(S) -> Result<Vec<(Measure, f64)>>,
) -> Result<Figures<S>> {
    let mut figures = Figures::default();
    if subjects.is_empty() {
        return Ok(figures);
    }
    for round in 0..rounds {
        if round > 0 && start.elapsed() > last {
            say(&format!("{what}: no time for more"));
            break;
        }
        say(&format!(
            "{what}: round {} of {rounds}, after {} s",
            round + 1,
            start.elapsed().as_secs()
        ));
        // The one who comes first, or after whom, shall not matter.
        subjects.rotate_left(1);
        for &subject in &subjects {
            let measured =
                measure(subject).with_context(|| format!("cannot measure {}", subject.key()))?;
            for (what, value) in measured {
                figures.add(round, subject, what, value);
            }
        }
    }
    Ok(figures)
}

/// What the kernel says that each of lockne's programs takes.
fn statistics(cost: &Path, file: &Path, rounds: u32, start: Instant) -> Result<Value> {
    say(&format!(
        "kernel statistics, after {} s",
        start.elapsed().as_secs()
    ));
    let mut command = Command::new(cost);
    command.args(["--rounds", &rounds.to_string(), "--json"]);
    run_command(command.arg(file))?;
    let text = fs::read_to_string(file)
        .with_context(|| format!("{} wrote no {}", cost.display(), file.display()))?;
    Ok(serde_json::from_str(&text)?)
}

/// Builds what is measured, and fetches what it is compared with.
fn build(root: &Path, target: &Path, profile: &str) -> Result<Programs> {
    // At once, and for the whole workspace: apart, each would want the libraries with other features.
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root).stderr(Stdio::inherit());
    cargo.args(["build", "--workspace", "--profile", profile]);
    cargo.args(["--bin", "lockne", "--bin", "11-socket-cookie"]);
    cargo.args(["--example", "load", "--example", "peer"]);
    cargo.args([
        "--bench",
        COST,
        "--message-format",
        "json-render-diagnostics",
    ]);
    let output = cargo.output()?;
    ensure!(
        output.status.success(),
        "cargo cannot build what is to be measured"
    );
    // Only cargo knows its name.
    let said = String::from_utf8(output.stdout)?;
    let cost = said.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == COST;
        Some(message["executable"].as_str().filter(|_| is_it)?.into())
    });
    let built = target.join(if profile == "dev" { "debug" } else { profile });
    let cache = target.join("bench");
    let or_why = |it: Result<PathBuf>| it.map_err(|error| format!("{error:#}"));
    let wireguard_go = or_why(fetch_wireguard_go(&cache).context("it could not be fetched"));
    let boringtun = or_why(fetch_boringtun(&cache).context("it could not be built"));
    Ok(Programs {
        cost: cost.context("cargo built no benchmark of the cost")?,
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
