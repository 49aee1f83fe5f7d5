//! The configuration in force: loaded, watched, and applied as a difference.

use std::{collections::BTreeSet, path::PathBuf, time::SystemTime};

use lockne_core::{
    api::{ConfigStatus, RuleStatus},
    config::{
        Config, Text, Tunnel as Named,
        assign::{self, Assigned},
    },
    policy::{Action, PolicyId, Terms},
    rule::RuleName,
    tunnel::TunnelName,
};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    config::Files,
    metrics::Metrics,
    rules::{Installed, Missing},
    watch::Watch,
};

mod apply;
mod prepared;

const UNWATCHED: &str = "cannot watch the configuration; SIGHUP makes the daemon read it again";

/// What the daemon knows of its configuration.
pub(crate) struct Configured {
    files: Option<Files>,
    config: Config,
    texts: Vec<Text>,
    /// Why what the files say now is not in force.
    problem: Option<String>,
    pub(crate) assigned: Assigned,
    /// The tunnels that it brought up.
    tunnels: BTreeSet<TunnelName>,
    pub(crate) installed: Installed,
    missing: Vec<Missing>,
    pub(crate) watch: Option<Watch>,
    /// When what is in force was applied.
    pub(crate) applied: Option<SystemTime>,
    pub(crate) metrics: Metrics,
}

/// What the next daemon must know of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Kept {
    file: PathBuf,
    /// The texts that are in force, for the case that the files are broken by then.
    texts: Vec<Text>,
    assigned: Assigned,
    tunnels: BTreeSet<TunnelName>,
}

impl Configured {
    pub(crate) fn new(installed: Installed) -> Self {
        Self {
            files: None,
            config: Config::default(),
            texts: Vec::new(),
            problem: None,
            assigned: Assigned::default(),
            tunnels: BTreeSet::new(),
            installed,
            missing: Vec::new(),
            watch: None,
            applied: None,
            metrics: Metrics::default(),
        }
    }

    /// What is to be recorded; `None` if there never was anything.
    pub(crate) fn kept(&self) -> Option<Kept> {
        let file = self.files.as_ref()?.main().to_owned();
        let is_empty = self.texts.is_empty() && self.assigned.made.is_empty();
        (!is_empty).then(|| Kept {
            file,
            texts: self.texts.clone(),
            assigned: self.assigned.clone(),
            tunnels: self.tunnels.clone(),
        })
    }

    /// Whether programs get policies without being asked.
    pub(crate) fn has_rules(&self) -> bool {
        !self.assigned.rules.is_empty()
    }

    /// Waits until the files may have changed.
    pub(crate) async fn changed(watch: Option<&mut Watch>) {
        if let Some(watch) = watch {
            match watch.changed().await {
                Ok(()) => return,
                Err(error) => warn!(%error, "{UNWATCHED}"),
            }
        }
        std::future::pending::<()>().await;
    }

    /// The tunnel of the configuration with this interface.
    pub(crate) fn tunnel(&self, interface: &TunnelName) -> Option<&Named> {
        self.config.tunnel_of(interface).map(|(_, tunnel)| tunnel)
    }

    /// Terms that speak of tunnels as the configuration calls them, with their interfaces instead.
    pub(crate) fn resolve(&self, terms: Terms) -> Terms {
        let interface = |name: &TunnelName| self.config.interface(name);
        Terms {
            action: match terms.action {
                Action::Via(name) => Action::Via(interface(&name)),
                other => other,
            },
            or: terms.or.iter().map(interface).collect(),
            ..terms
        }
    }

    /// The first rule whose programs have this policy.
    pub(crate) fn first_rule(&self, id: PolicyId) -> Option<&str> {
        let mut rules = self.assigned.rules.iter();
        let (key, _) = rules.find(|(_, it)| *it == id)?;
        Some(key.as_ref().map_or("default", RuleName::as_str))
    }

    /// What it shows of itself; `None` if there is nothing to show.
    pub(crate) fn status(&self) -> Option<ConfigStatus> {
        let files = self.files.as_ref()?;
        if self.texts.is_empty() && self.problem.is_none() {
            return None;
        }
        let policy = |key: &assign::Key| {
            let mut rules = self.assigned.rules.iter();
            rules.find(|(it, _)| it == key).map(|(_, id)| *id)
        };
        let rules = self.config.rules.iter().map(|rule| {
            let key = Some(rule.name.clone());
            let missing = self.missing.iter().find(|it| it.rule == rule.name);
            RuleStatus {
                missing: missing.map(|it| it.what.clone()),
                ..RuleStatus::new(&self.config, rule, policy(&key))
            }
        });
        Some(ConfigStatus {
            file: files.main().to_owned(),
            problem: self.problem.clone(),
            rules: rules.collect(),
            default: policy(&None),
            metrics: self.metrics.status(),
        })
    }
}
