//! What the user of `top` wants to happen to a program.

use std::collections::BTreeSet;

use hyper::Method;
use lockne_core::{
    api::{Attach, Moved, Target},
    policy::{Action, Terms},
};
use lockne_daemon::socket;

use super::state::Wish;
use crate::{cli::Place, client::Client, output};

/// What is typed instead of a tunnel.
pub(super) const DIRECT: &str = "direct";

/// Asks the daemon, and says in a line what came of it.
pub(super) fn act(place: &Place, wish: Wish) -> String {
    let (pids, terms) = match wish {
        Wish::Move(pids, word) if word == DIRECT => (pids, Terms::new(Action::Direct)),
        Wish::Move(pids, tunnel) => match tunnel.parse() {
            Ok(name) => (pids, Terms::new(Action::Via(name))),
            Err(error) => return format!("not moved: {error}"),
        },
        Wish::Block(pids) => (pids, Terms::new(Action::Block)),
        Wish::Reset(cookies) => return reset(&cookies),
        Wish::Nothing | Wish::Quit => return String::new(),
    };
    let says = terms.to_string();
    let mut processes = 0_u64;
    for pid in pids {
        let attach = Attach {
            tunnel: None,
            target: Target::Pid(pid),
            terms: terms.clone(),
            existing: None,
            children: true,
        };
        let answer = Client::new(place)
            .and_then(|client| client.ask::<Moved>(Method::POST, "/v1/attach", &attach));
        match answer {
            Ok(Some(moved)) => processes += moved.processes.len() as u64,
            Ok(None) => return "no lockne daemon runs; `sudo lockne daemon` starts one".to_owned(),
            Err(failure) => return failure.to_line(),
        }
    }
    format!("{says}: {}", output::count(processes, "process"))
}

/// Cuts these connections, whatever their policy; that takes no daemon.
fn reset(cookies: &BTreeSet<u64>) -> String {
    match socket::cut(cookies) {
        Ok(0) => "nothing to cut: they have ended, or are of another network namespace".to_owned(),
        Ok(cut) => format!("cut: {}", output::count(cut.into(), "connection")),
        Err(error) => format!("not cut: {error}"),
    }
}
