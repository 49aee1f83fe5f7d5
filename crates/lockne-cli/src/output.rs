//! How commands print: text with colours the terminal wants, or `--json`.

use std::{io::Write as _, time::Duration};

use anstyle::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::{Failure, Result};

/// Good: packets go where they should.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// Something leaks.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// Needs attention, but nothing leaks.
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default();
/// Headings and names.
pub(crate) const STRONG: Style = Style::new().bold();
/// Less important.
pub(crate) const FAINT: Style = Style::new().dimmed();

/// Prints `value` as one JSON document.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new("cannot write the answer as JSON").because(&error))?;
    line(&text)
}

/// Prints a line on stdout. A reader that has gone away is no failure.
pub(crate) fn line(text: &str) -> Result<()> {
    match writeln!(anstream::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new("cannot write to stdout").because(&error))
        }
        _ => Ok(()),
    }
}

/// Prints a sentence on stderr that the user should know.
pub(crate) fn notice(text: &str) {
    anstream::eprintln!("{WARN}note:{WARN:#} {text}");
}

/// A borderless table with these column heads.
pub(crate) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(head.iter().copied());
    if let Some(column) = table.column_mut(0) {
        column.set_padding((0, 1));
    }
    table
}

/// Bytes in the unit a person reads, as `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let power = (count.ilog2() / 10).min(5);
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let value = count as f64 / f64::from(1_u32 << 10).powi(power.cast_signed());
    format!("{value:.1} {}", UNITS[power as usize - 1])
}

/// A time in seconds as a person says it: `3s`, `4m 5s`, `2h 3m`, `5days 6h`.
pub(crate) fn duration(seconds: u64) -> String {
    let step = match seconds {
        0..3600 => 1,
        3600..86_400 => 60,
        _ => 3600,
    };
    let rounded = Duration::from_secs(seconds / step * step);
    humantime::format_duration(rounded).to_string()
}

/// Prints a table, without the blanks that would end its lines.
pub(crate) fn print_table(table: &Table) -> Result<()> {
    line(&table.trim_fmt())
}

/// `count` with its noun, as `1 rule` and `2 rules`.
pub(crate) fn count(count: u64, noun: &str) -> String {
    match (count, noun) {
        (1, _) => format!("1 {noun}"),
        (_, "process") => format!("{count} processes"),
        _ => format!("{count} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        assert_eq!(duration(0), "0s");
        assert_eq!(duration(245), "4m 5s");
        assert_eq!(duration(7384), "2h 3m");
        assert_eq!(duration(5 * 86_400 + 6 * 3600 + 59), "5days 6h");
    }

    #[test]
    fn bytes_have_one_digit_behind_the_point() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 20), "5.0 MiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
    }
}
