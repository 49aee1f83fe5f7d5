//! Finds the process behind each packet of a command, in two ways, and shows what each costs.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Write as _, stdout},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{HashMap, MapData, PerCpuArray},
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, ProgramInfo},
    sys::{Stats, enable_stats},
};
use clap::Parser;
use demos::{
    Length, Stop,
    cgroup::Cgroup,
    program,
    results::{self, Figure, Statistic},
    text,
};
use demos_ebpf::socket_cookie::{BYTES, Owner, PACKETS};

/// Find the process behind each packet of a command, in two ways, and show what each costs
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    length: Length,
    /// Keep the costs in this file, as `bench/README.md` describes it
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave out the mark, the statistics and their costs, so that a benchmark can measure the cookie from outside
    #[arg(long, conflicts_with = "json")]
    cookie_only: bool,
    /// The command
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// The programs at new sockets.
const SOCKET: [&str; 2] = ["note_owner", "mark_socket"];
/// The two that find the process by the cookie.
const COOKIE: [&str; 2] = ["note_owner", "find_owner"];
/// The programs at packets that leave.
const PACKET: [&str; 3] = ["nothing", "find_owner", "read_mark"];

fn main() -> ExitCode {
    demos::run(demo)
}

async fn demo(options: Options) -> Result<()> {
    let cgroup = Cgroup::create("socket-cookie")?;
    let directory = File::open(cgroup.path())?;
    let mut ebpf = Ebpf::load(demos::object!("11-socket-cookie"))?;
    // Switches the measurement on, for the whole machine, as long as this is held.
    let _stats = if options.cookie_only {
        None
    } else {
        Some(enable_stats(Stats::RunTime).context("cannot switch on the run-time statistics")?)
    };
    let is_wanted = |name: &&str| !options.cookie_only || COOKIE.contains(name);
    for name in SOCKET.into_iter().filter(is_wanted) {
        let program: &mut CgroupSock = program::find(&mut ebpf, name)?;
        program
            .load()
            .with_context(|| format!("the kernel refuses the program `{name}`"))?;
        program::log(name, &program.info()?);
        program.attach(&directory, CgroupAttachMode::Single)?;
    }
    for name in PACKET.into_iter().filter(is_wanted) {
        let program: &mut CgroupSkb = program::find(&mut ebpf, name)?;
        program
            .load()
            .with_context(|| format!("the kernel refuses the program `{name}`"))?;
        program::log(name, &program.info()?);
        program.attach(
            &directory,
            CgroupSkbAttachType::Egress,
            CgroupAttachMode::Single,
        )?;
    }
    let mut stop = Stop::new(options.length)?;
    demos::ready(
        &format!("watching `{}`", options.command.join(" ")),
        options.length,
    );

    let mut command = cgroup.start(&options.command)?;
    tokio::select! {
        status = command.wait() => tracing::info!("the command ended: {}", status?),
        () = stop.wait() => {}
    }
    if options.cookie_only {
        return Ok(());
    }
    show_owners(&ebpf)?;
    show_marked(&ebpf)?;
    let figures = show_costs(&mut ebpf)?;
    match options.json {
        Some(path) => results::keep(
            &path,
            &format!(
                "11-socket-cookie -- {}",
                options
                    .command
                    .iter()
                    .map(quoted)
                    .collect::<Vec<_>>()
                    .join(" ")
            ),
            &figures,
        ),
        None => Ok(()),
    }
}

/// A word of the command, as a shell takes it.
fn quoted(word: &String) -> String {
    if word.contains(char::is_whitespace) {
        format!("'{word}'")
    } else {
        word.clone()
    }
}

fn show_owners(ebpf: &Ebpf) -> Result<()> {
    let owners: HashMap<&MapData, u64, Owner> = ebpf
        .map("OWNERS")
        .context("the object has no `OWNERS`")?
        .try_into()?;
    let mut processes: BTreeMap<(u32, String), (u64, u64, u64)> = BTreeMap::new();
    for entry in &owners {
        let (_, owner) = entry?;
        let (sockets, packets, bytes) =
            processes.entry((owner.pid, text(&owner.name))).or_default();
        *sockets += 1;
        *packets += owner.packets;
        *bytes += owner.bytes;
    }
    for ((pid, name), (sockets, packets, bytes)) in processes {
        writeln!(
            stdout(),
            "by cookie: {name} ({pid}): {sockets} sockets, {packets} packets, {bytes} bytes"
        )?;
    }
    Ok(())
}

fn show_marked(ebpf: &Ebpf) -> Result<()> {
    let marked: PerCpuArray<&MapData, u64> = ebpf
        .map("MARKED")
        .context("the object has no `MARKED`")?
        .try_into()?;
    let sum = |index| -> Result<u64> { Ok(marked.get(&index, 0)?.iter().sum()) };
    writeln!(
        stdout(),
        "by mark: {} packets, {} bytes",
        sum(PACKETS)?,
        sum(BYTES)?
    )?;
    Ok(())
}

fn show_costs(ebpf: &mut Ebpf) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for name in SOCKET {
        let program: &mut CgroupSock = program::find(ebpf, name)?;
        figures.extend(show_cost(name, "socket", &program.info()?)?);
    }
    for name in PACKET {
        let program: &mut CgroupSkb = program::find(ebpf, name)?;
        figures.extend(show_cost(name, "packet", &program.info()?)?);
    }
    Ok(figures)
}

fn show_cost(name: &str, what: &str, info: &ProgramInfo) -> Result<Option<Figure>> {
    let runs = info.run_count();
    if runs == 0 {
        writeln!(stdout(), "{name:>12}: never ran")?;
        return Ok(None);
    }
    let cost = info.run_time().as_nanos() / u128::from(runs);
    writeln!(
        stdout(),
        "{name:>12}: {cost} ns for each {what}, {runs} times"
    )?;
    let unit = if what == "packet" {
        "ns per packet, with the clock"
    } else {
        "ns per socket, with the clock"
    };
    Ok(Some(Figure {
        name: name.to_owned(),
        unit,
        statistic: Statistic::Mean,
        value: u32::try_from(cost)?.into(),
    }))
}
