//! Counts system calls and how long they take, and draws it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{IsTerminal as _, Write as _, stdout},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuHashMap},
};
use clap::Parser;
use demos::{Length, Stop, histogram, program, text, tracefs};
use demos_ebpf::syscall_tracer::{Call, Latency};
use syscalls::Sysno;
use tokio::time::interval;

/// Count system calls and how long they take
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    length: Length,
    /// Watch this process only
    #[arg(long)]
    pid: Option<u32>,
    /// How many processes to show, the busiest first
    #[arg(long, default_value_t = 3)]
    top: usize,
}

/// How many system calls of a process are named.
const NAMED: usize = 5;

fn main() -> ExitCode {
    demos::run(demo)
}

async fn demo(options: Options) -> Result<()> {
    tracefs::ensure()?;
    let mut ebpf = EbpfLoader::new()
        .override_global("ONLY", &options.pid.unwrap_or(0), true)
        .override_global("EXCEPT", &std::process::id(), true)
        .load(demos::object!("06-syscall-tracer"))?;
    let counts = Counts::take(&mut ebpf)?;
    let links = [
        program::attach_tracepoint(&mut ebpf, "exit", "raw_syscalls", "sys_exit")?,
        program::attach_tracepoint(&mut ebpf, "enter", "raw_syscalls", "sys_enter")?,
    ];
    let mut stop = Stop::new(options.length)?;
    demos::ready("counting system calls", options.length);

    let mut seconds = interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = seconds.tick() => if stdout().is_terminal() {
                // Home, and clear to the end: the picture is drawn anew.
                write!(stdout(), "\x1b[H\x1b[J{}", counts.draw(options.top)?)?;
                stdout().flush()?;
            },
            () = stop.wait() => break,
        }
    }
    drop(links);
    write!(stdout(), "{}", counts.draw(options.top)?)?;
    Ok(())
}

struct Counts {
    calls: PerCpuHashMap<MapData, Call, u64>,
    latencies: PerCpuHashMap<MapData, u32, Latency>,
}

impl Counts {
    fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut take = |name| ebpf.take_map(name).context("a map is not in the object");
        Ok(Self {
            calls: take("CALLS")?.try_into()?,
            latencies: take("LATENCIES")?.try_into()?,
        })
    }

    fn draw(&self, top: usize) -> Result<String> {
        let mut processes: BTreeMap<u32, Vec<(u64, u32)>> = BTreeMap::new();
        for entry in &self.calls {
            let (call, counts) = entry?;
            let count = counts.iter().sum::<u64>();
            processes
                .entry(call.pid)
                .or_default()
                .push((count, call.number));
        }
        let mut processes: Vec<_> = processes
            .into_iter()
            .map(|(pid, calls)| {
                (
                    calls.iter().map(|(count, _)| count).sum::<u64>(),
                    pid,
                    calls,
                )
            })
            .collect();
        processes.sort_by(|a, b| b.cmp(a));

        let mut picture = String::new();
        for (sum, pid, mut calls) in processes.into_iter().take(top) {
            // Counted a moment ago, so maybe not there yet.
            let Ok(latencies) = self.latencies.get(&pid, 0) else {
                continue;
            };
            let latency = sum_up(&latencies);
            writeln!(
                picture,
                "{} ({pid}): {sum} system calls",
                text(&latency.name)
            )?;
            calls.sort_by(|a, b| b.cmp(a));
            for (count, number) in calls.into_iter().take(NAMED) {
                writeln!(picture, "{count:>10} {}", name(number))?;
            }
            picture += &histogram::draw(&latency.slots);
        }
        Ok(picture)
    }
}

/// Adds what the CPUs have counted each for itself.
fn sum_up(latencies: &[Latency]) -> Latency {
    let mut sum = Latency::default();
    for latency in latencies {
        if latency.name[0] != 0 {
            sum.name = latency.name;
        }
        for (sum, count) in sum.slots.iter_mut().zip(latency.slots) {
            *sum += count;
        }
    }
    sum
}

fn name(number: u32) -> String {
    let known = Sysno::new(number as usize);
    known.map_or_else(
        || format!("system call {number}"),
        |known| known.name().to_owned(),
    )
}
