//! `lockne daemon`: serves the clients.

use std::{io::IsTerminal as _, process::ExitCode};

use lockne_core::api::Lifetime;
use lockne_daemon::{MarkField, Options, ready};
use tracing_subscriber::EnvFilter;

use crate::{
    cli::{Daemon, Place},
    failure::{Failure, Result},
};

pub(crate) fn daemon(place: &Place, args: &Daemon) -> Result<ExitCode> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let options = Options {
        socket: place.socket()?,
        state: place.state(),
        field: MarkField::new(args.mark_bit)
            .ok_or_else(|| Failure::new("the mark has no room for eight bits from there on"))?,
        lifetime: if args.ephemeral {
            Lifetime::UntilLastJob
        } else {
            Lifetime::UntilDown
        },
        // One that a program starts for itself has no rules.
        config: (!args.ephemeral).then(|| args.file.files()),
    };
    let announce = if args.ephemeral {
        ready::Announce::ToParent
    } else {
        ready::Announce::InLog
    };
    match lockne_daemon::serve(options, announce) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error.refusal().into()),
    }
}
