//! The configuration as the daemon has it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    config::{Config, Place},
    policy::{PolicyId, Terms},
    rule::{Existing, Match, Rule, RuleName},
};

/// The configuration that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The main file.
    pub file: PathBuf,
    /// Why what the files say now is not in force; what they said before is.
    pub problem: Option<String>,
    /// Rules in their order.
    pub rules: Vec<RuleStatus>,
    /// The policy of programs that no rule means.
    pub default: Option<PolicyId>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// Its name.
    pub name: RuleName,
    /// The file that has it.
    pub file: PathBuf,
    /// The line there.
    pub line: usize,
    /// Which programs it means.
    #[serde(rename = "match")]
    pub matches: Match,
    /// What they may do.
    #[serde(flatten)]
    pub terms: Terms,
    /// What becomes of connections that a program has when the rule reaches it.
    pub existing: Existing,
    /// The policy with these terms, if the rule is in force.
    pub policy: Option<PolicyId>,
    /// Something that it names and that is not there, so that it decides nothing for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

impl RuleStatus {
    /// A rule of `config`.
    #[must_use]
    pub fn new(config: &Config, rule: &Rule, policy: Option<PolicyId>) -> Self {
        let place = config.places.get(&rule.name).cloned();
        let Place { file, line } = place.unwrap_or_else(|| Place {
            file: PathBuf::new(),
            line: 0,
        });
        Self {
            name: rule.name.clone(),
            file,
            line,
            matches: rule.matches.clone(),
            terms: rule.terms.clone(),
            existing: rule.existing,
            policy,
            missing: None,
        }
    }
}
