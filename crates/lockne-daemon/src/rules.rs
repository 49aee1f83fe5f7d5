//! Rules in force: what the kernel decides by at exec, and the programs that ran before.
//!
//! [`Installed`] is handed whole sets. The kernel sees the old set or the new one, never a half.

mod path;
mod running;
mod sheet;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
};

use lockne_abi::MarkField;
use lockne_core::{
    policy::{PolicyId, Terms},
    rule::{Existing, Rule, RuleName},
};

use self::{path::Way, running::InForce, sheet::Held};
use crate::{
    kernel::{self, Kernel},
    watch::{Wanted, Watch},
};

/// How many rules there can be.
pub const MAX_RULES: usize = lockne_abi::MAX_RULES as usize;

/// A rule and the policy that stands for its terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledRule {
    /// As the configuration has it.
    pub rule: Rule,
    /// The policy with its terms; in force before the rule is applied.
    pub policy: PolicyId,
}

/// What a program gets that no rule names, at its exec, if it has no policy yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// What it may do.
    pub terms: Terms,
    /// The policy with these terms.
    pub policy: PolicyId,
    /// What becomes of the connections of programs that run already.
    pub existing: Existing,
}

/// The rules that are in force now.
pub struct Installed {
    field: MarkField,
    rules: Vec<CompiledRule>,
    fallback: Option<Fallback>,
    watch: Watch,
    /// So that what the kernel was told is no other file by now.
    held: Held,
}

/// What a change of the rules did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The programs that ran already and have another policy now.
    pub moved: Vec<Moved>,
    /// What could not be found. Those rules decide nothing until it is there; it is looked for.
    pub missing: Vec<Missing>,
}

/// A program that ran already when a rule reached it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The process.
    pub pid: u32,
    /// The rule that names it, or the one that it or its ancestor stood under; `None` for the fallback.
    pub rule: Option<RuleName>,
    /// Its policy now.
    pub policy: PolicyId,
    /// How many of its connections were cut.
    pub cut: u32,
}

/// Something that a rule names and that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The rule.
    pub rule: RuleName,
    /// In words, such as "no file `/opt/x`".
    pub what: String,
}

/// Why rules cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More than there is room for.
    #[error("{0} rules are more than the {MAX_RULES} there is room for")]
    TooMany(usize),
    /// A rule asks for two cgroups.
    #[error("rule `{rule}` names more than one of unit, cgroup, Flatpak and Snap")]
    TwoGroups {
        /// The rule.
        rule: RuleName,
    },
    /// The kernel refuses.
    #[error("cannot hand the rules to the kernel")]
    Kernel(#[from] kernel::Error),
    /// Something on the system cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Files cannot be watched.
    #[error("cannot watch the files that rules name")]
    Watch(#[source] io::Error),
}

impl Installed {
    /// No rules.
    ///
    /// # Errors
    ///
    /// If the system lets us watch no files.
    pub fn new(field: MarkField) -> Result<Self, Error> {
        Ok(Self {
            field,
            rules: Vec::new(),
            fallback: None,
            watch: Watch::new().map_err(Error::Watch)?,
            held: Held::new(),
        })
    }

    /// Puts a whole set of rules in the place of the one before, at once. Then programs that run already
    /// are given what the rules say, unless somebody chose their policy by hand.
    ///
    /// # Errors
    ///
    /// If there are too many, or the kernel refuses; the rules before stay in force then.
    pub fn apply(
        &mut self,
        kernel: &mut Kernel,
        rules: &[CompiledRule],
        fallback: Option<&Fallback>,
    ) -> Result<Outcome, Error> {
        if rules.len() > MAX_RULES {
            return Err(Error::TooMany(rules.len()));
        }
        // Before anything is looked up: what changes from here on is seen.
        self.watch.set(names(rules)).map_err(Error::Watch)?;
        let written = sheet::write(rules, fallback)?;
        kernel.set_rules(&written.sheet)?;
        self.held = written.held;
        let moved = moved(&self.rules, rules);
        self.rules = rules.to_vec();
        self.fallback = fallback.cloned();
        let in_force = InForce {
            field: self.field,
            sheet: &written.sheet,
            rules,
            fallback,
            moved: &moved,
        };
        Ok(Outcome {
            moved: in_force.police(kernel)?,
            missing: written.missing,
        })
    }

    /// Waits until something that a rule names was replaced or made: time for [`refresh`](Self::refresh).
    pub async fn changed(&mut self) {
        if let Err(error) = self.watch.changed().await {
            tracing::warn!(%error, "cannot watch the files that rules name; a directory that is replaced goes unseen");
            std::future::pending::<()>().await;
        }
    }

    /// Looks anew for what the rules name.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply).
    pub fn refresh(&mut self, kernel: &mut Kernel) -> Result<Outcome, Error> {
        let (rules, fallback) = (self.rules.clone(), self.fallback.clone());
        self.apply(kernel, &rules, fallback.as_ref())
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> &[CompiledRule] {
        &self.rules
    }
}

impl std::fmt::Debug for Installed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Installed")
            .field("rules", &self.rules)
            .field("fallback", &self.fallback)
            .finish_non_exhaustive()
    }
}

/// Every name whose change can make a rule mean another file.
fn names(rules: &[CompiledRule]) -> Wanted {
    let files: BTreeSet<_> = rules
        .iter()
        .filter_map(|it| it.rule.matches.exe.as_ref())
        .collect();
    let mut wanted = Wanted::default();
    for (directory, name) in files.into_iter().flat_map(|path| Way::of(path).steps) {
        wanted.one(directory, name);
    }
    wanted
}

/// The policies that now are others, and the rule that says so: a child that no rule names follows the one
/// that its parent was started by. Where two rules shared a policy and part, it keeps what it has.
fn moved(old: &[CompiledRule], new: &[CompiledRule]) -> BTreeMap<PolicyId, usize> {
    let places: BTreeMap<_, _> = new.iter().map(|it| &it.rule.name).zip(0..).collect();
    let mut moved = BTreeMap::<_, BTreeSet<usize>>::new();
    for before in old {
        if let Some(at) = places.get(&before.rule.name) {
            moved.entry(before.policy).or_default().insert(*at);
        }
    }
    moved
        .into_iter()
        .filter_map(|(policy, rules)| {
            let to: BTreeSet<_> = rules.iter().map(|at| new[*at].policy).collect();
            let changed = to.len() == 1 && !to.contains(&policy);
            changed.then(|| Some((policy, *rules.first()?))).flatten()
        })
        .collect()
}
