//! `lockne daemon`: serves the clients.

use std::{io::IsTerminal as _, process::ExitCode};

use lockne_core::{api::Lifetime, permission::Permissions};
use lockne_daemon::{MarkField, Options, SocketOf, ready};
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
        socket_of: SocketOf::Daemon,
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
        permissions: permissions(args)?,
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

/// What users may ask for.
fn permissions(args: &Daemon) -> Result<Permissions> {
    let Some(path) = &args.grants else {
        return Ok(Permissions::default());
    };
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(format!("cannot read grants from `{}`", path.display())).because(error)
    };
    let bytes = std::fs::read(path).map_err(|error| failed(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| failed(&error))
}
