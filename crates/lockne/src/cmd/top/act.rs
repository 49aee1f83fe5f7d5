//! What the user of `top` wants to happen to a program.

use hyper::Method;
use lockne_core::{
    api::{Attach, Moved, Target},
    policy::{Action, Terms},
    rule::Existing,
};

use super::state::Wish;
use crate::{cli::Place, client::Client};

/// Asks the daemon, and says in a line what came of it.
pub(super) fn act(place: &Place, wish: Wish) -> String {
    let (pids, terms, existing) = match wish {
        Wish::Move(pids, tunnel) => match tunnel.parse() {
            Ok(name) => (pids, Terms::new(Action::Via(name)), None),
            Err(error) => return format!("not moved: {error}"),
        },
        Wish::Block(pids) => (pids, Terms::new(Action::Block), None),
        Wish::Reset(pids, terms) => (pids, *terms, Some(Existing::Reset)),
        Wish::Nothing | Wish::Quit => return String::new(),
    };
    let says = terms.to_string();
    let mut processes = 0;
    for pid in pids {
        let attach = Attach {
            tunnel: None,
            target: Target::Pid(pid),
            terms: terms.clone(),
            existing,
            children: true,
        };
        let answer = Client::new(place)
            .and_then(|client| client.ask::<Moved>(Method::POST, "/v1/attach", &attach));
        match answer {
            Ok(Some(moved)) => processes += moved.processes.len(),
            Ok(None) => return "no lockne daemon runs; `sudo lockne daemon` starts one".to_owned(),
            Err(failure) => return failure.to_line(),
        }
    }
    match existing {
        Some(_) => format!("connections cut, {processes} processes"),
        None => format!("{says}: {processes} processes"),
    }
}
