//! Shows each command that starts, as it starts.

use std::{
    io::{Write as _, stdout},
    process::ExitCode,
};

use anyhow::Result;
use aya::Ebpf;
use clap::Parser;
use demos::{Events, Length, Stop, program, text, tracefs};
use demos_ebpf::process_tracker::Exec;

/// Show each command that starts, as it starts
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    length: Length,
}

fn main() -> ExitCode {
    demos::run(demo)
}

async fn demo(options: Options) -> Result<()> {
    tracefs::ensure()?;
    let mut ebpf = Ebpf::load(demos::object!("02-process-tracker"))?;
    let mut execs: Events<Exec> = Events::take(&mut ebpf, "EXECS")?;
    let link = program::attach_tracepoint(&mut ebpf, "exec", "sched", "sched_process_exec")?;
    let mut stop = Stop::new(options.length)?;
    demos::ready("watching which commands start", options.length);
    writeln!(stdout(), "{:>8} {:>6} {:<16} FILE", "PID", "USER", "NAME")?;

    let mut commands = 0;
    loop {
        tokio::select! {
            exec = execs.next() => show(&exec?, &mut commands)?,
            () = stop.wait() => break,
        }
    }
    drop(link);
    while let Some(exec) = execs.ready()? {
        show(&exec, &mut commands)?;
    }
    writeln!(stdout(), "{commands} commands, {} not shown", execs.lost()?)?;
    Ok(())
}

fn show(exec: &Exec, commands: &mut u64) -> Result<()> {
    *commands += 1;
    let Exec { pid, uid, .. } = exec;
    let (name, filename) = (text(&exec.name), text(&exec.filename));
    writeln!(stdout(), "{pid:>8} {uid:>6} {name:<16} {filename}")?;
    Ok(())
}
