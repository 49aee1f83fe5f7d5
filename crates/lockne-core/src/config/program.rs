//! Whether a rule means a program, decided by what was found out about it.

use std::{fmt, path::PathBuf};

use super::Config;
use crate::rule::{Match, Rule, User};

/// A program as it would run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// What is executed in the end, after symbolic links.
    pub exe: PathBuf,
    /// The script, after symbolic links, if `exe` is only its interpreter.
    pub script: Option<PathBuf>,
    /// The number of its user.
    pub uid: u32,
    /// The name of its user.
    pub user: Option<String>,
    /// Its systemd unit.
    pub unit: Option<String>,
    /// Its cgroup, below the mount of cgroup2.
    pub cgroup: Option<PathBuf>,
    /// Its Flatpak.
    pub flatpak: Option<String>,
    /// Its Snap.
    pub snap: Option<String>,
}

/// Why a rule does not mean a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The key of the condition.
    pub key: &'static str,
    /// What the rule says.
    pub wanted: String,
    /// What the program is.
    pub found: Option<String>,
    /// Something to add.
    pub note: Option<&'static str>,
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, wanted, .. } = self;
        match &self.found {
            Some(found) => write!(f, "`{key}` is `{found}`, not `{wanted}`")?,
            None => write!(f, "it has no `{key}`, and the rule wants `{wanted}`")?,
        }
        self.note.map_or(Ok(()), |note| write!(f, "; {note}"))
    }
}

impl Match {
    /// Why it does not mean `program`, by the first condition that fails; `resolve` follows the links of a path.
    #[must_use]
    pub fn misses(
        &self,
        program: &Program,
        resolve: impl Fn(&std::path::Path) -> Option<PathBuf>,
    ) -> Option<Miss> {
        self.misses_exe(program, resolve).or_else(|| {
            let user = self.user.as_ref().and_then(|user| {
                let (is_same, wanted) = match user {
                    User::Id(id) => (*id == program.uid, id.to_string()),
                    User::Name(name) => (program.user.as_ref() == Some(name), name.clone()),
                };
                let name = program.user.clone();
                (!is_same).then(|| Miss {
                    key: "user",
                    wanted,
                    found: Some(name.unwrap_or_else(|| program.uid.to_string())),
                    note: None,
                })
            });
            user.or_else(|| same("unit", self.unit.as_ref(), program.unit.as_ref()))
                .or_else(|| self.misses_cgroup(program))
                .or_else(|| same("flatpak", self.flatpak.as_ref(), program.flatpak.as_ref()))
                .or_else(|| same("snap", self.snap.as_ref(), program.snap.as_ref()))
        })
    }

    fn misses_exe(
        &self,
        program: &Program,
        resolve: impl Fn(&std::path::Path) -> Option<PathBuf>,
    ) -> Option<Miss> {
        let wanted = self.exe.as_ref()?;
        let miss = |found: &PathBuf, note| Miss {
            key: "exe",
            wanted: wanted.display().to_string(),
            found: Some(found.display().to_string()),
            note,
        };
        let Some(resolved) = resolve(wanted) else {
            return Some(miss(&program.exe, Some("the rule's file is not there")));
        };
        match &program.script {
            Some(script) if *script == resolved => (!self.script).then(|| {
                let note = "what is executed is the interpreter of the script; the rule wants `script = true`";
                miss(&program.exe, Some(note))
            }),
            _ => (program.exe != resolved).then(|| miss(&program.exe, None)),
        }
    }

    fn misses_cgroup(&self, program: &Program) -> Option<Miss> {
        let wanted = self.cgroup.as_ref()?;
        let is_in = |cgroup: &PathBuf| cgroup.starts_with(wanted);
        (!program.cgroup.as_ref().is_some_and(is_in)).then(|| Miss {
            key: "cgroup",
            wanted: wanted.display().to_string(),
            found: program.cgroup.as_ref().map(|it| it.display().to_string()),
            note: None,
        })
    }
}

fn same(key: &'static str, wanted: Option<&String>, found: Option<&String>) -> Option<Miss> {
    let wanted = wanted?;
    (found != Some(wanted)).then(|| Miss {
        key,
        wanted: wanted.clone(),
        found: found.cloned(),
        note: None,
    })
}

impl Config {
    /// The rule that decides for `program`, and why each one before it does not.
    #[must_use]
    pub fn decide(
        &self,
        program: &Program,
        resolve: impl Fn(&std::path::Path) -> Option<PathBuf>,
    ) -> (Option<&Rule>, Vec<(&Rule, Miss)>) {
        let mut missed = Vec::new();
        for rule in &self.rules {
            match rule.matches.misses(program, &resolve) {
                None => return (Some(rule), missed),
                Some(miss) => missed.push((rule, miss)),
            }
        }
        (None, missed)
    }
}
