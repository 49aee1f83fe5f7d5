//! What is measured on each way.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{scene::Open, way::Way};
use crate::kernels::run_command as run;

/// How often iperf3 is asked, until there is a figure.
const TRIES: u32 = 10;

/// A figure of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Measure {
    Tcp,
    TcpBack,
    Cpu,
    CpuBack,
    Udp,
    Packets,
    Connections,
    Median,
    Slowest,
    Start,
    Memory,
}

impl Measure {
    pub(crate) const ALL: [Self; 11] = [
        Self::Tcp,
        Self::TcpBack,
        Self::Cpu,
        Self::CpuBack,
        Self::Udp,
        Self::Packets,
        Self::Connections,
        Self::Median,
        Self::Slowest,
        Self::Start,
        Self::Memory,
    ];

    /// Its name in the results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::TcpBack => "TCP, download",
            Self::Cpu => "CPU for TCP",
            Self::CpuBack => "CPU for TCP, download",
            Self::Udp => "UDP, 1372 bytes",
            Self::Packets => "UDP, 64 bytes",
            Self::Connections => "connections",
            Self::Median => "round trip, median",
            Self::Slowest => "round trip, 99 of 100",
            Self::Start => "start of a program",
            Self::Memory => "memory of the process behind it",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Tcp | Self::TcpBack | Self::Udp => "Mbit/s",
            Self::Cpu | Self::CpuBack => "CPU ms per Gbit",
            Self::Packets => "packets/s",
            Self::Connections => "per s",
            Self::Median | Self::Slowest => "us",
            Self::Start => "ms",
            Self::Memory => "MiB",
        }
    }

    /// Whether more is better.
    pub(crate) fn is_more_better(self) -> bool {
        !matches!(
            self,
            Self::Cpu | Self::CpuBack | Self::Median | Self::Slowest | Self::Start | Self::Memory
        )
    }

    /// Whether a ratio reaches a goal.
    pub(crate) fn meets(self, ratio: f64, goal: f64) -> bool {
        if self.is_more_better() {
            ratio >= goal
        } else {
            ratio <= goal
        }
    }
}

/// For how long each load runs, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Length {
    pub(crate) stream: u32,
    pub(crate) other: f64,
}

/// Measures a way that is open, once.
pub(crate) fn measure(open: &Open<'_>, way: Way, length: Length) -> Result<Vec<(Measure, f64)>> {
    let mut figures = Vec::new();
    let seconds = length.other.to_string();

    for (is_back, speed, cpu) in [
        (false, Measure::Tcp, Measure::Cpu),
        (true, Measure::TcpBack, Measure::CpuBack),
    ] {
        let mut iperf3 = open.iperf3(is_back);
        let (rate, used) = received(iperf3.args(["-t", &length.stream.to_string()]))?;
        let gigabits = rate * f64::from(length.stream) / 1e3;
        figures.push((speed, rate));
        figures.push((cpu, used * 1e3 / gigabits));
    }

    let of = |answer: &Value, field: &str| {
        answer[field]
            .as_f64()
            .with_context(|| format!("no `{field}` in {answer}"))
    };
    if way.has_datagrams() {
        let answer = json(&mut open.load("udp", &[&seconds, "1372"]))?;
        figures.push((Measure::Udp, of(&answer, "mbit_per_second")?));
        let answer = json(&mut open.load("udp", &[&seconds, "64"]))?;
        figures.push((Measure::Packets, of(&answer, "per_second")?));
    }
    let answer = json(&mut open.load("connect", &[&seconds]))?;
    figures.push((Measure::Connections, of(&answer, "per_second")?));
    let answer = json(&mut open.load("rtt", &[&seconds]))?;
    figures.push((Measure::Median, of(&answer, "p50_us")?));
    figures.push((Measure::Slowest, of(&answer, "p99_us")?));

    figures.extend(open.memory()?.map(|memory| (Measure::Memory, memory)));
    if !way.has_start() {
        return Ok(figures);
    }
    let mut starts = Vec::new();
    for _ in 0..5 {
        let mut command = open.command("true".as_ref());
        let start = Instant::now();
        run(&mut command)?;
        starts.push(start.elapsed().as_secs_f64() * 1e3);
    }
    figures.push((Measure::Start, super::result::median(&starts)));
    Ok(figures)
}

fn json(command: &mut Command) -> Result<Value> {
    Ok(serde_json::from_str(&run(command)?)?)
}

/// What arrived, in Mbit/s, and the seconds for which CPUs were busy with it. The server can still be busy with whoever came before.
fn received(iperf3: &mut Command) -> Result<(f64, f64)> {
    let mut tries = 0;
    loop {
        // It fails with its reason where the figures would be.
        let before = busy()?;
        let output = iperf3.output()?;
        let used = busy()? - before;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        if let Some(rate) = answer["end"]["sum_received"]["bits_per_second"].as_f64() {
            return Ok((rate / 1e6, used));
        }
        tries += 1;
        ensure!(tries < TRIES, "iperf3 says: {}", answer["error"]);
        thread::sleep(Duration::from_millis(300));
    }
}

/// For how many seconds all CPUs together were busy, whoever with.
fn busy() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let times: Vec<u32> = line
        .split_whitespace()
        .skip(1)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    // user, nice, system, idle, iowait, irq, softirq, steal
    let busy = [0, 1, 2, 5, 6].map(|field| times.get(field).copied().unwrap_or(0));
    Ok(f64::from(busy.iter().sum::<u32>()) / 100.0)
}
