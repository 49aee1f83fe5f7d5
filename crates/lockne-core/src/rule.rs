//! Which programs get which terms without being asked.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::policy::Terms;

/// What a rule is called: how `rule remove`, `explain` and messages name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuleName(String);

/// Why a text cannot name a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleNameError {
    /// Nothing was given.
    #[error("the name of a rule is empty")]
    Empty,
    /// Longer than 64 bytes.
    #[error("`{0}` is longer than the 64 bytes a rule's name can have")]
    TooLong(String),
    /// Something that would be hard to type or to print.
    #[error(
        "`{0}` has a character that a rule's name cannot have; letters, digits, `-`, `_` and `.` are fine"
    )]
    BadCharacter(String),
}

impl RuleName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RuleName {
    type Err = RuleNameError;

    fn from_str(text: &str) -> Result<Self, RuleNameError> {
        if text.is_empty() {
            return Err(RuleNameError::Empty);
        }
        if text.len() > 64 {
            return Err(RuleNameError::TooLong(text.to_owned()));
        }
        let good = |c: char| c.is_alphanumeric() || "-_.".contains(c);
        if text.starts_with('-') || !text.chars().all(good) {
            return Err(RuleNameError::BadCharacter(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for RuleName {
    type Error = RuleNameError;

    fn try_from(text: String) -> Result<Self, RuleNameError> {
        text.parse()
    }
}

impl From<RuleName> for String {
    fn from(name: RuleName) -> Self {
        name.0
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A rule: programs that match get these terms at exec. Of several rules the first that matches decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it is called; no two rules share a name.
    pub name: RuleName,
    /// Which programs.
    pub matches: Match,
    /// What they may do.
    pub terms: Terms,
    /// What becomes of connections that a program has when the rule reaches it.
    pub existing: Existing,
}

/// Which programs a rule means. Every condition that is given must hold; a rule without any is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Match {
    /// The executable, by an absolute path that may be a symbolic link. Decided by device and inode, never by a
    /// name that the program gives itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<PathBuf>,
    /// `exe` is a script: its interpreter is what is executed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub script: bool,
    /// The real user of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// The systemd unit that the process is in, such as `transmission-daemon.service`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// A cgroup, by its path below the mount of cgroup2; what is below it is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// The id of a Flatpak application, such as `org.mozilla.firefox`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flatpak: Option<String>,
    /// The name of a Snap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snap: Option<String>,
}

/// Prints the conditions as the configuration has them, such as `user ada, unit x.service`.
impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = |path: &PathBuf| path.display().to_string();
        let conditions = [
            (
                if self.script { "script" } else { "exe" },
                self.exe.as_ref().map(path),
            ),
            ("user", self.user.as_ref().map(ToString::to_string)),
            ("unit", self.unit.clone()),
            ("cgroup", self.cgroup.as_ref().map(path)),
            ("flatpak", self.flatpak.clone()),
            ("snap", self.snap.clone()),
        ];
        let given = conditions
            .into_iter()
            .filter_map(|(key, value)| value.map(|value| format!("{key} {value}")));
        f.write_str(&given.collect::<Vec<_>>().join(", "))
    }
}

/// A user, as a configuration names one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum User {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// What becomes of connections that a program has already when its policy changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Existing {
    /// They stay on the way they are on, and are listed.
    Keep,
    /// They are cut, so that the program connects anew by its new way.
    #[default]
    Reset,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_that_could_be_an_option_or_a_path_is_refused() {
        for name in ["", "-x", "a b", "a/b", &"x".repeat(65)] {
            assert!(name.parse::<RuleName>().is_err(), "{name}");
        }
        assert_eq!(
            "fire-fox_1.2".parse::<RuleName>().unwrap().as_str(),
            "fire-fox_1.2"
        );
    }
}
