//! `lockne flows`: every connection, short ones too.

use std::{process::ExitCode, time::Duration};

use anstyle::Style;
use clap::Args;
use lockne_daemon::observe::{Flow, Flows, Turn};
use serde::Serialize;

use crate::{
    cli::Place,
    cmd::monitor::failed,
    failure::Result,
    flow::{Book, Connection, Way},
    output::{self, BAD, FAINT, GOOD, STRONG},
    stream::{self, Clock, Lines, Loss, Next, Part, Watch},
};

/// How often it is looked at least.
const ROUND: Duration = Duration::from_millis(100);
/// What comes so soon after a look waits for the next: in a storm, one look sees many.
const REST: Duration = Duration::from_millis(2);

#[derive(Args, Debug)]
#[command(after_help = "\
Bytes and packets are those since it was started. Examples:
  sudo lockne flows                         all connections, with a second of their traffic
  sudo lockne flows --follow --json | jq    each one as it begins and ends")]
pub(crate) struct FlowsArgs {
    /// Print connections as they begin and end
    #[arg(long, short)]
    follow: bool,
    /// Stop after this time: `10`, `10s`, `2m` [default: 1s, with `--follow` never]
    #[arg(long, value_name = "TIME", value_parser = stream::duration)]
    duration: Option<Duration>,
    /// Print one JSON document; with `--follow` one object for each event, one a line
    #[arg(long)]
    json: bool,
}

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    Begin,
    End,
    /// Still there when the watching ended.
    Live,
}

#[derive(Serialize)]
struct Event<'a> {
    event: What,
    #[serde(flatten)]
    connection: &'a Connection,
}

pub(crate) fn flows(place: &Place, args: &FlowsArgs) -> Result<ExitCode> {
    let shortest = (!args.follow).then_some(Duration::from_secs(1));
    let mut book = Book::read(place);
    let mut flows = Flows::start().map_err(failed)?;
    let watch = Watch::new(args.duration.or(shortest))?;
    let mut lines = Lines::new();
    anstream::eprintln!("watching connections; Ctrl-C ends it");
    let mut loss = Loss::default();
    let mut ended = Vec::new();
    let mut over = 0_u64;
    let mut goes_on = true;
    loop {
        let next = watch.wait_for(&[flows.fd()], ROUND)?;
        let clock = Clock::now();
        book.refresh(place);
        flows
            .drain(|turn| {
                let (what, flow, end) = match turn {
                    Turn::Begins(flow) => (What::Begin, flow, None),
                    Turn::Ends { flow, time } => (What::End, flow, Some(time)),
                    Turn::Answers { answer, packet } => return book.hear(answer, packet),
                };
                over += u64::from(end.is_some());
                book.learn(flow.mark, place);
                // Also for what it has to remember of a process that will end.
                let connection = Connection::new(flow, end, &mut book, clock);
                if args.follow {
                    goes_on = goes_on && print(&mut lines, args.json, what, &connection);
                } else if end.is_some() {
                    ended.push(connection);
                }
            })
            .map_err(failed)?;
        goes_on &= lines.flush();
        if !goes_on || next == Next::Stop {
            break;
        }
        loss.tell(flows.counts().map_err(failed)?.lost, "event");
        std::thread::sleep(REST);
    }
    let counts = flows.counts().map_err(failed)?;
    let mut live: Vec<Flow> = flows.live().collect();
    drop(flows);
    live.sort_by_key(|flow| flow.started);
    let clock = Clock::now();
    let live: Vec<_> = live
        .iter()
        .map(|flow| Connection::new(flow, None, &mut book, clock))
        .collect();
    let total = over + live.len() as u64;
    if args.follow {
        for connection in &live {
            goes_on = goes_on && print(&mut lines, args.json, What::Live, connection);
        }
    } else {
        ended.extend(live);
        if args.json {
            lines.json(&ended);
        } else {
            output::print_table(&table(&ended))?;
        }
    }
    lines.end()?;
    if counts.unmetered > 0 {
        output::notice(&format!(
            "{} of connections that were too many to meter",
            output::count(counts.unmetered, "packet")
        ));
    }
    stream::summary(&output::count(total, "connection"), counts.lost);
    Ok(ExitCode::SUCCESS)
}

fn print(lines: &mut Lines, json: bool, event: What, connection: &Connection) -> bool {
    if json {
        lines.json(&Event { event, connection })
    } else {
        lines.parts(&parts(event, connection))
    }
}

/// How a way looks.
pub(crate) const fn style(way: Way) -> Style {
    match way {
        Way::Tunnelled => GOOD,
        Way::Refused => BAD,
        Way::Direct => Style::new(),
        Way::Local => FAINT,
    }
}

/// The way, with the tunnel where there is one.
fn way(connection: &Connection) -> String {
    match &connection.tunnel {
        Some(tunnel) => format!("via {tunnel}"),
        None => connection.way.word().to_owned(),
    }
}

fn who(connection: &Connection) -> String {
    let pid = connection
        .pid
        .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    format!("{} {pid}", connection.short())
}

fn parts(event: What, connection: &Connection) -> Vec<Part> {
    let plain = Style::new();
    let (sign, time) = match event {
        What::Begin => ("+", &connection.start),
        What::End => ("-", connection.end.as_ref().unwrap_or(&connection.start)),
        What::Live => ("=", &connection.start),
    };
    // The time of day, to the microsecond.
    let time = time.get(11..26).unwrap_or(time);
    let mut parts = vec![
        (FAINT, format!("{time} ")),
        (STRONG, format!("{sign} {:<22} ", who(connection))),
        (style(connection.way), format!("{:<12} ", way(connection))),
        (
            plain,
            format!(
                "{:<5} {} > {}",
                connection.protocol,
                connection.local,
                connection.far()
            ),
        ),
    ];
    if event != What::Begin {
        parts.push((
            FAINT,
            format!(
                "  sent {} received {}",
                output::bytes(connection.tx_bytes),
                output::bytes(connection.rx_bytes)
            ),
        ));
    }
    parts
}

fn table(connections: &[Connection]) -> comfy_table::Table {
    let mut table = output::table(&[
        "PROGRAM", "USER", "WAY", "RULE", "PROTO", "LOCAL", "REMOTE", "STATE", "SENT", "RECEIVED",
    ]);
    for connection in connections {
        table.add_row([
            who(connection),
            connection
                .user
                .clone()
                .unwrap_or_else(|| connection.uid.to_string()),
            way(connection),
            connection.rule.clone().unwrap_or_else(|| "-".to_owned()),
            connection.protocol.clone(),
            connection.local.clone(),
            connection.far(),
            connection.state.to_owned(),
            output::bytes(connection.tx_bytes),
            output::bytes(connection.rx_bytes),
        ]);
    }
    table
}
