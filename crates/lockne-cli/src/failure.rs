//! What went wrong, why, and what to do about it.

use std::{error::Error, process::ExitCode};

use anstyle::{AnsiColor, Style};
use lockne_core::api::Refusal;

/// The result of a command.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// The exit code of `lockne run` when lockne itself failed before the program started, as in env(1).
pub(crate) const RUN_FAILED: u8 = 125;
/// The exit code of `lockne run` when the program cannot be executed.
pub(crate) const CANNOT_EXECUTE: u8 = 126;
/// The exit code of `lockne run` when there is no such program.
pub(crate) const NOT_FOUND: u8 = 127;

/// A failure as the user sees it.
#[derive(Debug)]
pub(crate) struct Failure {
    refusal: Refusal,
    code: u8,
    kind: Kind,
}

/// What a command may want to know of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    UnknownName,
    Other,
}

impl Failure {
    /// A failure with exit code 1.
    pub(crate) fn new(error: impl Into<String>) -> Self {
        Self::from(Refusal {
            error: error.into(),
            causes: Vec::new(),
            hint: None,
        })
    }

    /// All of it in one line, where there is room for no more.
    pub(crate) fn to_line(&self) -> String {
        let causes = self.refusal.causes.iter().map(|cause| format!(": {cause}"));
        self.refusal.error.clone() + &causes.collect::<String>()
    }

    /// Adds why: `error` and everything behind it.
    pub(crate) fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.refusal.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// Adds why.
    pub(crate) fn why(mut self, cause: impl Into<String>) -> Self {
        self.refusal.causes.push(cause.into());
        self
    }

    /// Adds why, in lines of its own.
    pub(crate) fn lines(mut self, lines: String) -> Self {
        self.refusal.error = format!("{}\n{lines}", self.refusal.error);
        self
    }

    /// Adds what to do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.refusal.hint = Some(hint.into());
        self
    }

    /// Sets the exit code.
    pub(crate) fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Marks it as the lack of what was asked for by name.
    pub(crate) fn unknown_name(mut self) -> Self {
        self.kind = Kind::UnknownName;
        self
    }

    /// Whether something asked for by name is not there.
    pub(crate) fn is_unknown_name(&self) -> bool {
        self.kind == Kind::UnknownName
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }

    /// Prints the failure on stderr, in colour where the terminal wants it.
    pub(crate) fn print(&self) {
        const ERROR: Style = AnsiColor::Red.on_default().bold();
        const HINT: Style = AnsiColor::Cyan.on_default().bold();
        anstream::eprintln!("{ERROR}error:{ERROR:#} {}", self.refusal.error);
        for cause in &self.refusal.causes {
            anstream::eprintln!("  cause: {}", plain(cause));
        }
        if let Some(hint) = &self.refusal.hint {
            anstream::eprintln!("{HINT}hint:{HINT:#} {hint}");
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            code: 1,
            kind: Kind::Other,
        }
    }
}

/// What the system says, without its number and in our lower case.
fn plain(cause: &str) -> String {
    let Some((text, number)) = cause.rsplit_once(" (os error ") else {
        return cause.to_owned();
    };
    if !number
        .trim_end_matches(')')
        .bytes()
        .all(|byte| byte.is_ascii_digit())
    {
        return cause.to_owned();
    }
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(letters).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_are_told_without_their_number() {
        let error = std::io::Error::from_raw_os_error(2).to_string();

        assert_eq!(plain(&error), "no such file or directory");
        assert_eq!(plain("line 3: IPv4"), "line 3: IPv4");
        assert_eq!(plain("IPv4 (os error x)"), "IPv4 (os error x)");
    }
}
