//! `lockne down`: takes everything back.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use hyper::Method;
use lockne_core::api::Removed;
use lockne_daemon::{Error, SocketOf, state_dir};

use crate::{
    cli::{Json, Place},
    client::{Client, Heard},
    failure::{Failure, Result},
    output,
};

/// How long to wait for a daemon that is just ending.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn down(place: &Place, args: Json) -> Result<ExitCode> {
    let removed = remove(&Client::new(place)?)?;
    if args.json {
        output::json(&removed)?;
    } else if removed == Removed::default() {
        output::line("lockne was not active; nothing to take back")?;
    } else {
        print(&removed)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn remove(client: &Client) -> Result<Removed> {
    let started = Instant::now();
    loop {
        let socket_of =
            match client.hear("waiting for the daemon", Method::POST, "/v1/down", &())? {
                Heard::Answer(removed) => return Ok(removed),
                Heard::NoDaemon => SocketOf::Daemon,
                Heard::CannotStart(_) => SocketOf::Service,
            };
        match lockne_daemon::leftover::remove(client.state(), client.socket(), socket_of) {
            Ok(removed) => return Ok(removed),
            Err(Error::StateDir(state_dir::Error::Owned { .. }))
                if started.elapsed() < PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => {
                let failure =
                    Failure::new("cannot take back what a dead daemon left").because(&error);
                return Err(match error.hint() {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                });
            }
        }
    }
}

fn print(removed: &Removed) -> Result<()> {
    let tunnels: Vec<String> = removed.tunnels.iter().map(ToString::to_string).collect();
    if !tunnels.is_empty() {
        output::line(&format!("tunnels down: {}", tunnels.join(", ")))?;
    }
    output::line(&format!(
        "removed {}, {} and {}",
        output::count(removed.rules.into(), "rule"),
        output::count(removed.routes.into(), "route"),
        output::count(removed.programs.into(), "kernel program"),
    ))?;
    if removed.processes > 0 {
        output::line(&format!(
            "{} now free to use the network as if lockne were not there",
            output::count(removed.processes, "process")
        ))?;
    }
    Ok(())
}
