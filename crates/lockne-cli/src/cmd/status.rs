//! `lockne status`: what holds, for whom, and what went through.

use std::process::ExitCode;

use hyper::Method;
use lockne_core::{
    api::{DaemonStatus, PolicyStatus, Status},
    policy::Action,
};

use crate::{
    cli::{Json, Place},
    client::Client,
    cmd::{rule, tunnel},
    failure::{Failure, Result},
    output::{self, FAINT, GOOD, WARN},
};

pub(crate) fn status(place: &Place, args: Json) -> Result<ExitCode> {
    let client = Client::new(place)?;
    let status = match client.ask::<Status>(Method::GET, "/v1/status", &())? {
        Some(status) => Some(status),
        None => left(&client)?,
    };
    if args.json {
        output::json(&status)?;
    } else {
        match &status {
            None => output::line("lockne is not active: no daemon, no rules")?,
            Some(status) => print(status)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a dead daemon left in the kernel, if anything.
pub(crate) fn left(client: &Client) -> Result<Option<Status>> {
    lockne_daemon::leftover::status(client.state()).map_err(|error| {
        Failure::new("no lockne daemon runs, and what one left cannot be read")
            .because(&error)
            .hint(
                error
                    .hint()
                    .unwrap_or_else(|| "`lockne down` takes it back".to_owned()),
            )
    })
}

fn print(status: &Status) -> Result<()> {
    match &status.daemon {
        DaemonStatus::Running {
            pid,
            version,
            uptime_seconds,
            ephemeral,
        } => {
            let until = if *ephemeral {
                ", ends with its last job"
            } else {
                ""
            };
            output::line(&format!(
                "{GOOD}running{GOOD:#} {FAINT}lockne {version}, pid {pid}, for {}{until}{FAINT:#}",
                output::duration(*uptime_seconds),
            ))?;
        }
        DaemonStatus::Gone => {
            output::line(&format!(
                "{WARN}the daemon is gone, but its rules hold in the kernel{WARN:#}"
            ))?;
            output::line(
                "its own tunnels are silent; `sudo lockne daemon` takes over, `sudo lockne down` frees all",
            )?;
        }
    }
    if let Some((warning, remedy)) = status.room.and_then(|room| room.warning()) {
        output::line(&format!("{WARN}{warning}{WARN:#}"))?;
        output::line(remedy)?;
    }
    if !status.policies.is_empty() {
        output::line("")?;
        output::print_table(&policies(&status.policies))?;
    }
    if !status.tunnels.is_empty() {
        output::line("")?;
        output::print_table(&tunnel::table(&status.tunnels))?;
    }
    if let Some(config) = &status.config {
        if !config.rules.is_empty() {
            output::line("")?;
            output::print_table(&rule::table(&config.rules))?;
        }
        if let Some(problem) = &config.problem {
            output::line("")?;
            output::line(&format!(
                "{WARN}the configuration is not in force; the one before is:{WARN:#} {problem}"
            ))?;
        }
        if let Some(metrics) = &config.metrics {
            output::line("")?;
            output::line(&match &metrics.problem {
                None => format!("metrics at http://{}/metrics", metrics.listen),
                Some(problem) => format!("{WARN}{problem}{WARN:#}"),
            })?;
        }
    }
    Ok(())
}

fn policies(policies: &[PolicyStatus]) -> comfy_table::Table {
    let mut table = output::table(&[
        "POLICY",
        "DEVICE",
        "DNS",
        "PROCESSES",
        "SENT",
        "RECEIVED",
        "REFUSED",
    ]);
    for policy in policies {
        let device = match (&policy.terms.action, &policy.device) {
            _ if policy.direct_now => "any, no tunnel works".to_owned(),
            (Action::Via(_), None) => "none, silent".to_owned(),
            (Action::Via(_), Some(device)) => device.clone(),
            (Action::Direct, _) => "any".to_owned(),
            (Action::Block, _) => "none".to_owned(),
        };
        let dns = match &policy.terms.action {
            Action::Via(_) if !policy.resolvers.is_empty() => tunnel::join(&policy.resolvers),
            Action::Via(_) | Action::Direct => "as asked".to_owned(),
            Action::Block => "none".to_owned(),
        };
        let names: Vec<String> = policy
            .processes
            .iter()
            .take(4)
            .map(|process| format!("{} {}", process.name, process.pid))
            .collect();
        let rest = match policy.processes.len().saturating_sub(4) {
            0 => String::new(),
            more => format!(", {more} more"),
        };
        let processes = if names.is_empty() {
            "-".to_owned()
        } else {
            names.join(", ") + &rest
        };
        let received = if policy.terms.action == Action::Direct {
            "-".to_owned()
        } else {
            output::bytes(policy.traffic.rx_bytes)
        };
        table.add_row([
            policy.terms.to_string(),
            device,
            dns,
            processes,
            output::bytes(policy.traffic.tx_bytes),
            received,
            policy.traffic.refused.to_string(),
        ]);
    }
    table
}
