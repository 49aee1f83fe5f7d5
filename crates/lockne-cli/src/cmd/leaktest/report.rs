//! What was tried, where it went, and what that means.

use std::collections::BTreeSet;

use anstyle::Style;
use lockne_lab::escape::{Case, Family, Outcome, Way, Who};
use serde::Serialize;

use crate::{
    failure::Result,
    output::{self, BAD, FAINT, GOOD, WARN},
};

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The tunnel that was asked for.
    via: Option<String>,
    /// The physical device.
    device: String,
    /// How many packets went past the tunnel that must not.
    pub(super) leaks: usize,
    ways: Vec<Row>,
}

/// One way by one family.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    way: String,
    tries: &'static str,
    family: Family,
    /// By which devices its packet left without a policy.
    without: BTreeSet<String>,
    /// By which devices it left under the policy.
    under: BTreeSet<String>,
    /// What the program was told under the policy.
    said: Outcome,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// It did not leave.
    Closed,
    /// It left by the tunnel.
    Tunnelled,
    /// It left past the tunnel, and the contract says that it can.
    Known,
    /// It left past the tunnel.
    Leak,
    /// It is no way out here, even without a policy.
    NoWay,
}

impl Row {
    pub(super) fn new(
        (case, said): &(Case, Outcome),
        without: BTreeSet<String>,
        under: BTreeSet<String>,
        tunnel: Option<&str>,
    ) -> Self {
        let way = Way::named(&case.way).expect("each case is of a way");
        let is_past = under.iter().any(|device| Some(device.as_str()) != tunnel);
        let verdict = if is_past && way.open.contains(&Who::User) {
            Verdict::Known
        } else if is_past {
            Verdict::Leak
        } else if !under.is_empty() {
            Verdict::Tunnelled
        } else if without.is_empty() {
            Verdict::NoWay
        } else {
            Verdict::Closed
        };
        Self {
            way: case.way.clone(),
            tries: way.tries,
            family: case.family,
            without,
            under,
            said: said.clone(),
            verdict,
        }
    }

    fn went(&self) -> String {
        let devices: Vec<_> = self.under.iter().map(String::as_str).collect();
        match (&self.said, devices.is_empty()) {
            (_, false) => devices.join(", "),
            (Outcome::Refused { call, errno }, true) => format!("{call}: {errno}"),
            (Outcome::Sent, true) => "dropped".to_owned(),
            (Outcome::Hung, true) => "nowhere".to_owned(),
        }
    }
}

impl Verdict {
    const fn text(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Tunnelled => "tunnelled",
            Self::Known => "open, known",
            Self::Leak => "LEAK",
            Self::NoWay => "no way here",
        }
    }

    const fn style(self) -> Style {
        match self {
            Self::Closed | Self::Tunnelled => GOOD,
            Self::Known => WARN,
            Self::Leak => BAD,
            Self::NoWay => FAINT,
        }
    }
}

impl Report {
    pub(super) fn new(via: Option<String>, device: String, ways: Vec<Row>) -> Self {
        let leaks = ways.iter().filter(|row| row.verdict == Verdict::Leak);
        Self {
            via,
            device,
            leaks: leaks.count(),
            ways,
        }
    }

    /// Whether nothing was seen even where nothing was forbidden.
    pub(super) fn is_blind(&self) -> bool {
        self.ways.iter().all(|row| row.without.is_empty())
    }

    pub(super) fn print(&self) -> Result<()> {
        let mut table = output::table(&["WAY OUT", "FAMILY", "RESULT", "WENT TO", "WHAT IT TRIES"]);
        for row in &self.ways {
            let style = row.verdict.style();
            table.add_row([
                row.way.clone(),
                match row.family {
                    Family::V4 => "IPv4".to_owned(),
                    Family::V6 => "IPv6".to_owned(),
                },
                format!("{style}{}{style:#}", row.verdict.text()),
                row.went(),
                row.tries.to_owned(),
            ]);
        }
        output::print_table(&table)?;
        output::line("")?;
        let count = |verdict| {
            self.ways
                .iter()
                .filter(|row| row.verdict == verdict)
                .count() as u64
        };
        let kept = count(Verdict::Closed) + count(Verdict::Tunnelled);
        let kept = output::count(kept, "way");
        if count(Verdict::Known) > 0 {
            output::line(&format!(
                "{WARN}{} open as the contract says{WARN:#}: for sockets that a free program hands over (docs/leaks.md)",
                output::count(count(Verdict::Known), "way")
            ))?;
        }
        if self.via.is_some() && count(Verdict::Tunnelled) == 0 {
            output::line(&format!(
                "{WARN}nothing went through the tunnel either{WARN:#}: is it up? `lockne status` tells"
            ))?;
        }
        let past = format!("past {}", self.via.as_deref().unwrap_or("the block"));
        if self.leaks == 0 {
            return output::line(&format!(
                "{GOOD}no leak{GOOD:#}: {kept} out of {} led nowhere {past}",
                self.device
            ));
        }
        output::line(&format!(
            "{BAD}{} {past}{BAD:#}: do not trust it, and please report this table",
            output::count(self.leaks as u64, "leak")
        ))
    }
}
