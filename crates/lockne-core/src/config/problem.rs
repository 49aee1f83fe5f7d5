//! What is wrong with a configuration, and where.

use std::{fmt, ops::Range, path::PathBuf};

use super::Text;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1 on.
    pub line: usize,
    /// The column in characters, from 1 on.
    pub column: usize,
    /// The line as it stands there.
    pub quote: String,
    /// How many characters of it are meant.
    pub width: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Everything that is wrong with a configuration; nothing of it is used then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// In the order of files and lines; never empty.
    pub problems: Vec<Problem>,
}

impl Problem {
    pub(super) fn new(
        text: &Text,
        span: Range<usize>,
        message: String,
        hint: Option<String>,
    ) -> Self {
        let all = &text.text;
        let mut start = span.start.min(all.len());
        // What is missing at the end is told at the end of the last line that there is.
        if start == all.len() {
            start = all.trim_end_matches(['\n', '\r']).len();
        }
        while !all.is_char_boundary(start) {
            start -= 1;
        }
        let before = &all[..start];
        let begin = before.rfind('\n').map_or(0, |at| at + 1);
        let quote = all[begin..].lines().next().unwrap_or_default();
        let column = all[begin..start].chars().count() + 1;
        let rest = quote.chars().count().saturating_sub(column - 1);
        let end = (start..=span.end.clamp(start, all.len()))
            .rev()
            .find(|at| all.is_char_boundary(*at));
        let width = all[start..end.unwrap_or(start)].chars().count();
        Self {
            file: text.path.clone(),
            line: before.matches('\n').count() + 1,
            column,
            quote: quote.replace(|c: char| c.is_control(), " "),
            width: width.clamp(1, rest.max(1)),
            message,
            hint,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let indent = " ".repeat(self.column - 1);
        let caret = "^".repeat(self.width);
        writeln!(
            f,
            "{}:{}:{}: {}",
            self.file.display(),
            self.line,
            self.column,
            self.message
        )?;
        writeln!(f, "  {number} | {}", self.quote.trim_end())?;
        write!(f, "  {margin} | {indent}{caret}")?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  {margin} = {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.problems.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// The word that was probably meant.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Where clap too begins to suggest.
    const LIKELY: f64 = 0.7;
    known
        .into_iter()
        .map(|known| (strsim::jaro(word, known), known))
        .filter(|(likeness, _)| *likeness > LIKELY)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// Words for a sentence: `a`, `b` and `c`.
pub(super) fn list<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        None => "none".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}
