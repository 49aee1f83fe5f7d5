//! `lockne doctor`: what this machine offers, and what stands in the way.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Args;
use lockne_core::doctor::{self, Finding, Level};
use lockne_daemon::MarkField;

use crate::{
    cli::Place,
    failure::{Failure, Result},
    output::{self, FAINT, GOOD, WARN},
};

/// lockne cannot work.
const BAD: Style = AnsiColor::Red.on_default().bold();

#[derive(Args, Debug)]
#[command(after_help = "\
Nothing is changed. The exit code is 1 if something keeps lockne from working.")]
pub(crate) struct Doctor {
    /// Lowest of the 8 bits of the socket mark that carry the policy
    #[arg(long, value_name = "BIT", default_value_t = 24)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=24))]
    mark_bit: u32,
    /// Print one JSON document instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn doctor(place: &Place, args: &Doctor) -> Result<ExitCode> {
    let field = MarkField::new(args.mark_bit)
        .ok_or_else(|| Failure::new("the mark has no room for eight bits from there on"))?;
    let facts =
        lockne_daemon::doctor::look(field, &place.state()).map_err(|error| error.refusal())?;
    let diagnosis = doctor::examine(&facts);
    if args.json {
        output::json(&diagnosis)?;
    } else {
        diagnosis.findings.iter().try_for_each(print)?;
        let last = if diagnosis.works {
            format!("{GOOD}lockne works here{GOOD:#}")
        } else {
            format!("{BAD}lockne cannot work here{BAD:#}")
        };
        output::line(&format!("\n{last}"))?;
    }
    Ok(if diagnosis.works {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print(finding: &Finding) -> Result<()> {
    let (word, style) = match finding.level {
        Level::Good => ("good", GOOD),
        Level::Note => ("note", FAINT),
        Level::Warning => ("warn", WARN),
        Level::Failure => ("fail", BAD),
    };
    output::line(&format!("{style}{word}{style:#}  {}", finding.found))?;
    for more in [&finding.means, &finding.remedy].into_iter().flatten() {
        output::line(&format!("      {FAINT}{more}{FAINT:#}"))?;
    }
    Ok(())
}
