//! The commands, one file each.

mod daemon;
mod demo;
mod down;
mod leaktest;
mod man;
pub(crate) mod rule;
mod run;
mod status;
mod tunnel;

pub(crate) use leaktest::Leaktest;

use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::{
    cli::{Cli, Command},
    failure::Result,
    output,
};

/// Does what was asked.
pub(crate) fn execute(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Run(args) => Err(run::run(&cli.place, &args)),
        Command::Tunnel(command) => tunnel::tunnel(&cli.place, &command),
        Command::Rule(command) => rule::rule(&cli.place, &command),
        Command::Status(json) => status::status(&cli.place, json),
        Command::Down(json) => down::down(&cli.place, json),
        Command::Leaktest(args) => leaktest::leaktest(&cli.place, &args),
        Command::Demo(json) => demo::demo(json),
        Command::Daemon(args) => daemon::daemon(&cli.place, &args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lockne", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end()).map(|()| ExitCode::SUCCESS)
        }
        Command::Man => man::man(),
    }
}
