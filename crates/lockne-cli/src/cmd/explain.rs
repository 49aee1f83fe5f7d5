//! `lockne explain`: why a program is on the way that it is on.

use std::process::ExitCode;

use clap::Args;
use hyper::Method;
use lockne_core::api::{
    Explanation, PolicyNow, Route, SocketWay, TunnelState, TunnelStatus, Verdict,
};

use crate::{
    cli::{Json, Place},
    client::Client,
    cmd::status,
    failure::{Failure, Result},
    output::{self, FAINT, GOOD, STRONG, WARN},
};

#[derive(Args, Debug)]
pub(crate) struct Explain {
    /// The process with this number
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pid: u32,
    #[command(flatten)]
    json: Json,
}

pub(crate) fn explain(place: &Place, args: &Explain) -> Result<ExitCode> {
    let client = Client::new(place)?;
    let path = format!("/v1/processes/{}", args.pid);
    let it: Option<Explanation> = client.ask(Method::GET, &path, &())?;
    let it = it.ok_or_else(|| match status::left(&client) {
        Ok(Some(left)) => {
            let policy = left
                .policies
                .iter()
                .find(|policy| policy.processes.iter().any(|it| it.pid == args.pid));
            let failure = Failure::new("no lockne daemon runs, so there is nobody to ask");
            match policy {
                Some(policy) => failure
                    .why(format!(
                        "what it left in the kernel still holds process {} to: {}",
                        args.pid, policy.terms
                    ))
                    .hint("`sudo lockne daemon` takes over"),
                None => failure.why(format!(
                    "what it left in the kernel does not concern process {}",
                    args.pid
                )),
            }
        }
        // An ordinary user may not look. What is there may hold the process, so nothing is said of that.
        Err(failure) => Failure::new("no lockne daemon runs, so there is nobody to ask")
            .why(format!(
                "one has left something here, which this user cannot read: it may hold process {} still",
                args.pid
            ))
            .why(failure.to_line())
            .hint(format!("`sudo lockne explain {}` tells", args.pid)),
        Ok(None) => Failure::new("lockne is not active: no daemon, no rules")
            .why("no program has a policy, each uses this machine's own routes")
            .hint("start one with `lockne run`, or `lockne attach` one that runs"),
    })?;
    if args.json.json {
        output::json(&it)?;
    } else {
        print(&it)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(it: &Explanation) -> Result<()> {
    output::line(&format!(
        "{STRONG}{}{STRONG:#} {FAINT}pid {}, parent {}, user {}, {}{FAINT:#}",
        it.name,
        it.pid,
        it.parent,
        it.uid,
        output::count(it.threads.into(), "thread"),
    ))?;
    output::line("")?;
    output::line(&it.why)?;
    output::line("")?;
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    if let Some(rule) = &it.rule {
        row("rule", rule.to_string());
    }
    if let Some(policy) = &it.policy {
        policy_rows(policy, &mut row);
    }
    if let Some(tunnel) = &it.tunnel {
        row("tunnel", tunnel_line(tunnel));
    }
    if !it.dns.is_empty() {
        let all: Vec<_> = it.dns.iter().map(ToString::to_string).collect();
        row("resolvers", all.join(", "));
    }
    for route in &it.routes {
        row(&format!("to {}", route.to), route_line(route));
    }
    if !it.descendants.is_empty() {
        let same = it.policy.as_ref().map(|policy| policy.id);
        let alike = it.descendants.iter().filter(|child| child.policy == same);
        row(
            "descendants",
            format!("{}, {} of them alike", it.descendants.len(), alike.count()),
        );
    }
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in &rows {
        output::line(&format!("{name:width$}  {value}"))?;
    }
    if !it.sockets.is_empty() {
        output::line("")?;
        sockets(it)?;
    }
    for advice in &it.advice {
        output::notice(advice);
    }
    Ok(())
}

fn policy_rows(policy: &PolicyNow, row: &mut impl FnMut(&str, String)) {
    row("policy", format!("{} (number {})", policy.terms, policy.id));
    if policy.direct_now {
        row(
            "device",
            format!("{WARN}any: direct, as no tunnel of it is healthy{WARN:#}"),
        );
    }
    row("mark", format!("{:#x}", policy.mark));
    if let Some(table) = policy.table {
        row("table", table.to_string());
        let device = policy.device.clone();
        row(
            "device",
            device.unwrap_or_else(|| "none, silent".to_owned()),
        );
    }
    row(
        "sent",
        format!(
            "{}, and {} refused {FAINT}(all programs of this policy){FAINT:#}",
            output::bytes(policy.traffic.tx_bytes),
            output::count(policy.traffic.refused, "packet"),
        ),
    );
}

fn tunnel_line(tunnel: &TunnelStatus) -> String {
    let state = match tunnel.state {
        TunnelState::Up => "up",
        TunnelState::Down => "down",
        TunnelState::Gone => "gone",
    };
    let newest = tunnel
        .peers
        .iter()
        .filter_map(|peer| peer.handshake_age_seconds);
    match newest.min() {
        Some(age) => format!(
            "{} {state}, handshake {} ago",
            tunnel.name,
            output::duration(age)
        ),
        None if tunnel.peers.is_empty() => format!("{} {state}", tunnel.name),
        None => format!("{} {state}, no handshake yet", tunnel.name),
    }
}

fn route_line(route: &Route) -> String {
    let device = route.device.as_deref().unwrap_or("?");
    match route.verdict {
        Verdict::Unreachable => format!("{WARN}refused by routing{WARN:#}"),
        Verdict::Dropped => format!("{WARN}routed to {device}, dropped by the guard{WARN:#}"),
        Verdict::Leaves => {
            let source = route
                .source
                .map(|it| format!(" from {it}"))
                .unwrap_or_default();
            let by = route
                .gateway
                .map(|it| format!(" by {it}"))
                .unwrap_or_default();
            format!("{GOOD}leaves by {device}{GOOD:#}{source}{by}")
        }
    }
}

fn sockets(it: &Explanation) -> Result<()> {
    let mut table = output::table(&["PROTO", "LOCAL", "REMOTE", "STATE", "MARK", "WAY"]);
    let address = |it: Option<std::net::SocketAddr>| it.map_or("-".to_owned(), |it| it.to_string());
    for socket in &it.sockets {
        table.add_row([
            socket.socket.protocol.clone(),
            address(socket.socket.local),
            address(socket.socket.remote),
            socket.socket.state.clone(),
            format!("{:#x}", socket.socket.mark),
            match socket.way {
                SocketWay::Policy => "the policy's".to_owned(),
                SocketWay::Other(id) => format!("that of policy {id}"),
                SocketWay::Free if it.policy.is_some() => "past the policy".to_owned(),
                SocketWay::Free => "free".to_owned(),
                SocketWay::Here => "this machine".to_owned(),
                SocketWay::Frames => "frames, past all routes".to_owned(),
            },
        ]);
    }
    output::print_table(&table)
}
