//! `lockne attach` and `detach`: moves a program that runs already, and says what became of its connections.

use std::{collections::BTreeMap, process::ExitCode};

use clap::{Args, ValueEnum};
use hyper::Method;
use ipnet::IpNet;
use lockne_core::{
    api::{self, Counts, Fate, Moved, MovedSocket, Target},
    rule,
};

use crate::{
    cli::{ActionArgs, Json, Place, prefix},
    client::Client,
    cmd::run,
    failure::{Failure, Result},
    output::{self, FAINT, GOOD, STRONG, WARN},
};

#[derive(Args, Debug)]
#[command(override_usage = "lockne attach <--pid|--name> <--via|--direct|--block> [OPTIONS]")]
#[command(after_help = "\
All threads and descendants go along; one with another policy keeps it. Rules
change nothing about it. Sockets without a connection take the new way at once.
Connections cannot change their way, as the far end knows their address: `reset`
cuts them, so that the program connects anew; `keep` leaves them on the old way,
where the far end still sees the old address. Connections to this machine and to
a --lan PREFIX go on.")]
pub(crate) struct Attach {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    action: ActionArgs,
    /// Reach this prefix directly, past the tunnel (again for more)
    #[arg(long, value_name = "PREFIX", conflicts_with = "direct", value_parser = prefix)]
    lan: Vec<IpNet>,
    /// What becomes of connections [default: reset; keep with --direct]
    #[arg(long, value_enum, value_name = "WHAT")]
    existing: Option<Existing>,
    /// Leave its children where they are
    #[arg(long)]
    no_children: bool,
    /// Let commands in the file (`PostUp` and the like) run as root
    #[arg(long)]
    allow_hooks: bool,
    #[command(flatten)]
    json: Json,
}

#[derive(Args, Debug)]
#[command(override_usage = "lockne detach <--pid|--name> [OPTIONS]")]
#[command(after_help = "\
Descendants under the same policy go along. From then on rules leave all of them
alone, their children to come too; started anew, the program is under its rule
again. A connection through a tunnel that is kept goes on through it, and ends
when the tunnel is taken down.")]
pub(crate) struct Detach {
    #[command(flatten)]
    target: TargetArgs,
    /// What becomes of connections [default: keep]
    #[arg(long, value_enum, value_name = "WHAT")]
    existing: Option<Existing>,
    /// Leave its children where they are
    #[arg(long)]
    no_children: bool,
    #[command(flatten)]
    json: Json,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct TargetArgs {
    /// The process with this number
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// Every process whose executable has this name
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Existing {
    Keep,
    Reset,
}

impl From<Existing> for rule::Existing {
    fn from(existing: Existing) -> Self {
        match existing {
            Existing::Keep => Self::Keep,
            Existing::Reset => Self::Reset,
        }
    }
}

impl TargetArgs {
    fn target(&self) -> Result<Target> {
        match (self.pid, &self.name) {
            (Some(pid), _) => Ok(Target::Pid(pid)),
            (None, Some(name)) => Ok(Target::Name(name.clone())),
            // clap sees to it that this does not happen.
            (None, None) => Err(Failure::new("neither a number nor a name was given")),
        }
    }
}

pub(crate) fn attach(place: &Place, args: &Attach) -> Result<ExitCode> {
    let client = Client::new(place)?;
    let (terms, tunnel) = run::terms(&args.action, &args.lan, &[], args.allow_hooks)?;
    let request = api::Attach {
        tunnel,
        target: args.target.target()?,
        terms,
        existing: args.existing.map(Into::into),
        children: !args.no_children,
    };
    let moved: Moved = client
        .ask_or_start(
            "waiting for the daemon",
            Method::POST,
            "/v1/attach",
            &request,
        )
        .map_err(|failure| run::point_to_file(failure, &request.terms.action))?;
    let goes = match &request.terms.action {
        lockne_core::policy::Action::Via(tunnel) => format!("goes by `{tunnel}`"),
        lockne_core::policy::Action::Direct => "goes past every tunnel".to_owned(),
        lockne_core::policy::Action::Block => "reaches this machine only".to_owned(),
    };
    tell(&moved, &goes, args.json)
}

pub(crate) fn detach(place: &Place, args: &Detach) -> Result<ExitCode> {
    let client = Client::new(place)?;
    let request = api::Detach {
        target: args.target.target()?,
        existing: args.existing.map(Into::into),
        children: !args.no_children,
    };
    let moved: Option<Moved> = client.ask(Method::POST, "/v1/detach", &request)?;
    let moved = moved.ok_or_else(|| {
        Failure::new("no lockne daemon runs")
            .hint("`sudo lockne daemon` takes over what one left; `sudo lockne down` frees all")
    })?;
    tell(&moved, "is free", args.json)
}

fn tell(moved: &Moved, goes: &str, json: Json) -> Result<ExitCode> {
    for notice in &moved.notices {
        output::notice(notice);
    }
    if json.json {
        output::json(moved)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(&format!("{} {GOOD}{goes}{GOOD:#} now", who(moved)))?;
    if !moved.sockets.is_empty() {
        output::line("")?;
        print_sockets(&moved.sockets)?;
        output::line("")?;
        output::line(&summary(&moved.counts))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The processes, by name: `firefox 4711 4712 (2 processes, 80 threads)`.
fn who(moved: &Moved) -> String {
    /// So many numbers are shown.
    const SHOWN: usize = 6;
    let mut names: BTreeMap<&str, u32> = BTreeMap::new();
    for process in &moved.processes {
        *names.entry(&process.name).or_default() += 1;
    }
    let names: Vec<_> = names
        .into_iter()
        .map(|(name, times)| match times {
            1 => format!("{STRONG}{name}{STRONG:#}"),
            _ => format!("{STRONG}{name}{STRONG:#} x{times}"),
        })
        .collect();
    let pids = moved.processes.iter().take(SHOWN);
    let mut pids: Vec<_> = pids.map(|process| process.pid.to_string()).collect();
    if moved.processes.len() > SHOWN {
        pids.push("...".to_owned());
    }
    let threads: u64 = moved.processes.iter().map(|it| u64::from(it.threads)).sum();
    format!(
        "{} {FAINT}{} ({}, {}){FAINT:#}",
        names.join(", "),
        pids.join(" "),
        output::count(moved.processes.len() as u64, "process"),
        output::count(threads, "thread"),
    )
}

fn print_sockets(sockets: &[MovedSocket]) -> Result<()> {
    /// More than that nobody reads; `--json` has all.
    const SHOWN: usize = 40;
    let mut table = output::table(&["PID", "PROTO", "LOCAL", "REMOTE", "STATE", "NOW"]);
    let mut sorted: Vec<_> = sockets.iter().collect();
    // What needs attention comes first.
    sorted.sort_by_key(|it| (std::cmp::Reverse(it.fate == Fate::Stuck), it.pid, it.fate));
    let address = |it: Option<std::net::SocketAddr>| it.map_or("-".to_owned(), |it| it.to_string());
    for socket in sorted.iter().take(SHOWN) {
        let now = fate(socket.fate).to_owned();
        table.add_row([
            socket.pid.to_string(),
            socket.socket.protocol.clone(),
            address(socket.socket.local),
            address(socket.socket.remote),
            socket.socket.state.clone(),
            match &socket.reason {
                Some(reason) => format!("{now}: {reason}"),
                None => now,
            },
        ]);
    }
    output::print_table(&table)?;
    match sockets.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => output::line(&format!(
            "{FAINT}and {more} more; --json lists all{FAINT:#}"
        )),
    }
}

const fn fate(fate: Fate) -> &'static str {
    match fate {
        Fate::Moved => "moved",
        Fate::Cut => "cut",
        Fate::Kept => "kept on the old way",
        Fate::Near => "goes on, needs no tunnel",
        Fate::Same => "was on this way",
        Fate::Stuck => "cannot be moved",
    }
}

fn summary(counts: &Counts) -> String {
    let all = [
        (counts.moved, "moved", None),
        (counts.cut, "cut", None),
        (counts.kept, "kept on the old way", Some(WARN)),
        (counts.near, "not concerned", None),
        (counts.same, "on this way already", None),
        (counts.stuck, "that cannot be moved", Some(WARN)),
    ];
    let total: u32 = all.iter().map(|(count, ..)| count).sum();
    let parts = all.into_iter().filter(|(count, ..)| *count > 0);
    let parts: Vec<_> = parts
        .map(|(count, what, style)| match style {
            Some(style) => format!("{style}{count} {what}{style:#}"),
            None => format!("{count} {what}"),
        })
        .collect();
    format!(
        "{}: {}",
        output::count(total.into(), "socket"),
        parts.join(", ")
    )
}
