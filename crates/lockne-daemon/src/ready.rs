//! How a daemon says that it serves, to whoever started it.

use std::io::Write as _;

use lockne_core::api::Refusal;
use serde::{Deserialize, Serialize};

/// The one line that a daemon started by `lockne run` writes on its stdout.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ready {
    /// The socket answers.
    Serving,
    /// It will not, for this reason.
    Failed(Refusal),
}

/// Who wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// A parent that reads our stdout.
    ToParent,
    /// Whoever reads the log.
    InLog,
}

impl Announce {
    /// Says `ready`, once.
    pub(crate) fn say(self, ready: &Ready) {
        match (self, ready) {
            (Self::ToParent, _) => {
                let line = serde_json::to_string(ready).expect("text and unit variants are JSON");
                // A parent that no longer listens has ended, and needs no answer.
                let _parent_gone = writeln!(std::io::stdout(), "{line}");
            }
            (Self::InLog, Ready::Serving) => tracing::info!("ready"),
            (Self::InLog, Ready::Failed(_)) => {}
        }
    }
}
