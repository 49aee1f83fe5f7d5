//! Says what is claimed and whether it holds.

use std::{process::ExitCode, time::Duration};

use lockne_lab::packet::Flow;
use serde::Serialize;

use crate::{
    cli::Json,
    failure::Result,
    output::{self, FAINT, GOOD, STRONG},
};

/// Something that is said, and was looked at.
#[derive(Debug, Serialize)]
struct Claim {
    chapter: String,
    text: String,
    holds: bool,
    /// What was seen.
    seen: String,
}

/// The demo as data.
#[derive(Debug, Serialize)]
struct Account {
    claims: Vec<Claim>,
    failed: usize,
    /// Packets that left or reached the home, all in all.
    packets: u64,
    /// Packets of policed programs that left or reached the home another way.
    leaked: u64,
    seconds: f64,
}

/// Tells the demo as it happens, or all at the end as JSON.
pub(crate) struct Teller {
    args: Json,
    account: Account,
    chapter: String,
}

impl Teller {
    pub(crate) fn new(args: Json) -> Self {
        Self {
            args,
            account: Account {
                claims: Vec::new(),
                failed: 0,
                packets: 0,
                leaked: 0,
                seconds: 0.0,
            },
            chapter: String::new(),
        }
    }

    /// Explains, for those who read.
    pub(crate) fn say(&self, text: &str) -> Result<()> {
        if self.args.json {
            return Ok(());
        }
        output::line(&format!("{FAINT}{text}{FAINT:#}"))
    }

    /// Begins a chapter.
    pub(crate) fn chapter(&mut self, title: &str) -> Result<()> {
        title.clone_into(&mut self.chapter);
        if self.args.json {
            return Ok(());
        }
        output::line(&format!("\n{STRONG}{title}{STRONG:#}"))
    }

    /// Says whether a claim holds, and what was seen.
    pub(crate) fn claim(&mut self, claim: &str, holds: bool, seen: &str) -> Result<()> {
        if !holds {
            self.account.failed += 1;
        }
        if !self.args.json {
            let verdict = if holds {
                format!("{GOOD}  ok    {GOOD:#}")
            } else {
                let bad = anstyle::AnsiColor::Red.on_default().bold();
                format!("{bad}  FAILED{bad:#}")
            };
            output::line(&format!("{verdict} {claim:<48} {seen}"))?;
        }
        self.account.claims.push(Claim {
            chapter: self.chapter.clone(),
            text: claim.to_owned(),
            holds,
            seen: seen.to_owned(),
        });
        Ok(())
    }

    /// Adds what the wire has shown since the last time, and claims that nothing leaked.
    pub(crate) fn wire(&mut self, packets: u64, leaks: &[Flow]) -> Result<()> {
        let leaked: u64 = leaks.iter().map(|flow| flow.packets).sum();
        self.account.packets += packets;
        self.account.leaked += leaked;
        let mut seen = format!("{leaked} of the {packets} packets on the home link");
        for flow in leaks {
            seen.push_str("; ");
            seen.push_str(&flow.to_string());
        }
        self.claim("nothing left the home another way", leaked == 0, &seen)
    }

    /// Sums up; the exit code is 1 if a claim failed.
    pub(crate) fn finish(mut self, took: Duration) -> Result<ExitCode> {
        self.account.seconds = took.as_secs_f64();
        let account = &self.account;
        if self.args.json {
            output::json(account)?;
        } else {
            let claims = account.claims.len();
            let verdict = match account.failed {
                0 => format!("{GOOD}all {claims} claims hold{GOOD:#}"),
                failed => format!("{failed} of {claims} claims failed"),
            };
            output::line(&format!(
                "\n{verdict}; {} of {} packets on the home link leaked; {:.1} s",
                account.leaked, account.packets, account.seconds
            ))?;
        }
        Ok(ExitCode::from(u8::from(account.failed > 0)))
    }
}
