//! Shows calls of a function, with what it returned and how long it took.

use std::{
    io::{Write as _, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{KProbe, UProbe, uprobe::UProbeScope},
};
use clap::{Parser, Subcommand};
use demos::{Events, Length, Stop, failure::Hint, program, text};
use demos_ebpf::kprobe_uprobe::Call;

/// Show calls of a function, with what it returned and how long it took
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    place: Place,
}

#[derive(Subcommand)]
enum Place {
    /// Watch a function of the kernel
    Kernel {
        #[command(flatten)]
        length: Length,
        /// Which one; /proc/kallsyms lists them
        #[arg(long, default_value = "tcp_v4_connect")]
        function: String,
    },
    /// Watch `getaddrinfo` of libc: which names are looked up
    Libc {
        #[command(flatten)]
        length: Length,
        /// The file, if it is not the libc that this program uses
        #[arg(long, value_name = "FILE")]
        library: Option<PathBuf>,
    },
}

/// What every kernel with kprobes has.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe";

fn main() -> ExitCode {
    demos::run(demo)
}

async fn demo(options: Options) -> Result<()> {
    let mut ebpf = Ebpf::load(demos::object!("08-kprobe-uprobe"))?;
    let mut calls: Events<Call> = Events::take(&mut ebpf, "CALLS")?;
    let (what, length) = match options.place {
        Place::Kernel { length, function } => {
            attach_to_kernel(&mut ebpf, &function)?;
            (function, length)
        }
        Place::Libc { length, library } => {
            attach_to_libc(&mut ebpf, &library.map_or_else(libc, Ok)?)?;
            ("getaddrinfo".to_owned(), length)
        }
    };
    let mut stop = Stop::new(length)?;
    demos::ready(&format!("watching calls of {what}"), length);

    let mut count = 0;
    loop {
        tokio::select! {
            call = calls.next() => show(&call?, &mut count)?,
            () = stop.wait() => break,
        }
    }
    // Takes the probes away.
    drop(ebpf);
    while let Some(call) = calls.ready()? {
        show(&call, &mut count)?;
    }
    writeln!(stdout(), "{count} calls, {} not shown", calls.lost()?)?;
    Ok(())
}

fn attach_to_kernel(ebpf: &mut Ebpf, function: &str) -> Result<()> {
    if !Path::new(KPROBES).exists() {
        return Err(anyhow::anyhow!("{KPROBES} does not exist")
            .context(Hint(
                "`08-kprobe-uprobe libc` works here, and the demos with tracepoints do; distributions' kernels have kprobes".to_owned(),
            ))
            .context("this kernel was built without kprobes (CONFIG_KPROBES)"));
    }
    // The return first: who comes back without having been seen entering is ignored.
    for name in ["leave_kernel", "enter_kernel"] {
        let program: &mut KProbe = program::find(ebpf, name)?;
        program
            .load()
            .with_context(|| format!("the kernel refuses the program `{name}`"))?;
        program::log(name, &program.info()?);
        program.attach(function, 0).with_context(|| {
            format!("cannot attach `{name}` to the kernel's function `{function}`")
        })?;
    }
    Ok(())
}

fn attach_to_libc(ebpf: &mut Ebpf, library: &Path) -> Result<()> {
    for name in ["leave_libc", "enter_libc"] {
        let program: &mut UProbe = program::find(ebpf, name)?;
        program
            .load()
            .with_context(|| format!("the kernel refuses the program `{name}`"))?;
        program::log(name, &program.info()?);
        program
            .attach("getaddrinfo", library, UProbeScope::AllProcesses)
            .with_context(|| {
                format!(
                    "cannot attach `{name}` to `getaddrinfo` in {}",
                    library.display()
                )
            })?;
    }
    Ok(())
}

/// The libc that is mapped into this process.
fn libc() -> Result<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").context("cannot read /proc/self/maps")?;
    maps.lines()
        .filter_map(|line| Some(Path::new(&line[line.find('/')?..])))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libc.") || name.starts_with("libc-") || name.starts_with("ld-musl-")
        })
        .map(Path::to_owned)
        .context("this program uses no shared libc; name one with --library")
}

fn show(call: &Call, count: &mut u64) -> Result<()> {
    *count += 1;
    let Call { pid, result, .. } = call;
    let took = Duration::from_nanos(call.took);
    let name = text(&call.name);
    let host = match text(&call.host) {
        host if host.is_empty() => host,
        host => format!("({host})"),
    };
    writeln!(stdout(), "{name} ({pid}){host} = {result}, took {took:.1?}")?;
    Ok(())
}
