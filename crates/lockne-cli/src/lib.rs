//! The commands of `lockne`, and what they show.

mod cli;
mod client;
mod cmd;
#[cfg(test)]
mod documented;
mod failure;
mod flow;
mod hidden;
mod output;
mod resolv_conf;
mod sigpipe;
mod stream;

use std::process::ExitCode;

use clap::Parser as _;

/// All of `lockne`: parses, runs, prints the error, picks the exit code.
#[must_use]
pub fn main() -> ExitCode {
    // The programs of the demo and of the leak test are this very one, in the role of a guest.
    let asked = lockne_lab::probe::run_if_asked().or_else(lockne_lab::escape::run_if_asked);
    if let Some(code) = asked {
        return code;
    }
    let cli = cli::Cli::parse();
    match cmd::execute(cli) {
        Ok(code) => code,
        Err(failure) => {
            failure.print();
            failure.exit_code()
        }
    }
}
