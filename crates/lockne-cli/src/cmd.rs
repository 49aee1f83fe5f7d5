//! The commands, one file each.

pub(crate) mod attach;
mod daemon;
mod demo;
pub(crate) mod doctor;
mod down;
pub(crate) mod explain;
mod flows;
mod leaktest;
mod man;
pub(crate) mod monitor;
pub(crate) mod rule;
mod run;
pub(crate) mod status;
mod top;
pub(crate) mod trace;
mod tunnel;

use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::{
    cli::{Cli, Command},
    failure::Result,
    output,
};

pub(crate) use self::{
    flows::FlowsArgs, leaktest::Leaktest, monitor::Monitor, top::Top, trace::Trace,
};

/// Does what was asked.
pub(crate) fn execute(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Run(args) => Err(run::run(&cli.place, &args)),
        Command::Attach(args) => attach::attach(&cli.place, &args),
        Command::Detach(args) => attach::detach(&cli.place, &args),
        Command::Explain(args) => explain::explain(&cli.place, &args),
        Command::Tunnel(command) => tunnel::tunnel(&cli.place, &command),
        Command::Rule(command) => rule::rule(&cli.place, &command),
        Command::Status(json) => status::status(&cli.place, json),
        Command::Down(json) => down::down(&cli.place, json),
        Command::Leaktest(args) => leaktest::leaktest(&cli.place, &args),
        Command::Doctor(args) => doctor::doctor(&cli.place, &args),
        Command::Demo(json) => demo::demo(json),
        Command::Monitor(args) => monitor::monitor(&cli.place, &args),
        Command::Trace(args) => trace::trace(&args),
        Command::Top(args) => top::top(&cli.place, &args),
        Command::Flows(args) => flows::flows(&cli.place, &args),
        Command::Daemon(args) => daemon::daemon(&cli.place, &args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lockne", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end()).map(|()| ExitCode::SUCCESS)
        }
        Command::Man => man::man(),
    }
}
