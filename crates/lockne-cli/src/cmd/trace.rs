//! `lockne trace`: programs that start, and pings that come in.

mod exec;

pub(crate) use exec::users;
mod ping;

use std::process::ExitCode;

use clap::Subcommand;

use crate::failure::Result;

#[derive(Debug, Subcommand)]
pub(crate) enum Trace {
    /// Show each program that starts, and how it ends
    Exec(exec::Exec),
    /// Show who pings this machine, and refuse some
    Ping(ping::Ping),
}

pub(crate) fn trace(command: &Trace) -> Result<ExitCode> {
    match command {
        Trace::Exec(args) => exec::exec(args),
        Trace::Ping(args) => ping::ping(args),
    }
}
