//! `lockne daemon`: serves the clients.

use std::{
    env,
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use lockne_core::{api::Lifetime, permission::Permissions};
use lockne_daemon::{Error, MarkField, Options, SocketOf, ready};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::{
    cli::{Daemon, Place},
    failure::{Failure, Result},
};

/// `EX_CONFIG` of sysexits.h: whoever starts it again without a change hears the same.
const WRONG_CONFIGURATION: u8 = 78;

pub(crate) fn daemon(place: &Place, args: &Daemon) -> Result<ExitCode> {
    let wanted = env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let log = fmt::layer()
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(log)
        .with(wanted.unwrap_or(Targets::new().with_default(LevelFilter::INFO)))
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
        without: args.without.clone(),
    };
    let announce = if args.ephemeral {
        ready::Announce::ToParent
    } else {
        ready::Announce::InLog
    };
    match lockne_daemon::serve(options, announce) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error @ Error::Configuration(_)) => {
            Err(Failure::from(error.refusal()).code(WRONG_CONFIGURATION))
        }
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
