//! Commands that print as things happen, until they are told to stop.

mod clock;
mod text;

use std::{
    fmt::Write as _,
    io::{self, BufWriter, IsTerminal as _, Stdout, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use anstream::AutoStream;
use anstyle::Style;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use unicode_width::UnicodeWidthChar as _;

pub(crate) use self::{
    clock::Clock,
    text::{shown, until_zero},
};
use crate::{
    failure::{Failure, Result},
    output::{self, WARN},
};

/// How often it is looked whether anything was lost.
const ROUND: Duration = Duration::from_millis(500);

/// When to look, and when to stop.
pub(crate) struct Watch {
    signals: UnixStream,
    deadline: Option<Instant>,
}

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Something may be there.
    Look,
    /// The time is over, somebody said so, or nobody reads any more.
    Stop,
}

impl Watch {
    /// Until a signal comes, or the time is over.
    pub(crate) fn new(duration: Option<Duration>) -> Result<Self> {
        let failed = |error: io::Error| Failure::new("cannot wait for signals").because(&error);
        let (signals, sender) = UnixStream::pair().map_err(failed)?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let sender = sender.try_clone().map_err(failed)?;
            signal_hook::low_level::pipe::register(signal, sender).map_err(failed)?;
        }
        Ok(Self {
            signals,
            deadline: duration.and_then(|duration| Instant::now().checked_add(duration)),
        })
    }

    /// Waits until one of `sources` is readable, or for half a second.
    pub(crate) fn wait(&self, sources: &[BorrowedFd<'_>]) -> Result<Next> {
        self.wait_for(sources, ROUND)
    }

    /// The same, for `round` at most.
    pub(crate) fn wait_for(&self, sources: &[BorrowedFd<'_>], round: Duration) -> Result<Next> {
        let left = self.deadline.map_or(round, |deadline| {
            deadline
                .saturating_duration_since(Instant::now())
                .min(round)
        });
        if left.is_zero() {
            return Ok(Next::Stop);
        }
        let stdout = io::stdout();
        // Of stdout, only that the reader is gone, which is always told.
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty()),
        ];
        fds.extend(
            sources
                .iter()
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)),
        );
        let timeout = Timespec::try_from(left).expect("less than a second");
        match poll(&mut fds, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) | Ok(_) => {}
            Err(error) => {
                return Err(Failure::new("cannot wait for news").because(&io::Error::from(error)));
            }
        }
        let is_gone = fds[1].revents().contains(PollFlags::ERR);
        if !fds[0].revents().is_empty() || is_gone {
            return Ok(Next::Stop);
        }
        Ok(Next::Look)
    }
}

/// Part of a line, and how it looks.
pub(crate) type Part = (Style, String);

/// Stdout, for many lines.
pub(crate) struct Lines {
    stream: BufWriter<AutoStream<Stdout>>,
    width: Option<usize>,
    failed: Option<io::Error>,
}

impl Lines {
    pub(crate) fn new() -> Self {
        Self {
            stream: BufWriter::with_capacity(1 << 16, AutoStream::auto(io::stdout())),
            width: width(),
            failed: None,
        }
    }

    /// Prints a line, cut where the terminal ends. Says whether somebody still reads.
    pub(crate) fn parts(&mut self, parts: &[Part]) -> bool {
        let text = fit(parts, self.width);
        self.write(text.as_bytes())
    }

    /// Prints one JSON object as a line.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> bool {
        match serde_json::to_string(value) {
            Ok(text) => self.write(text.as_bytes()),
            Err(error) => {
                self.failed = Some(error.into());
                false
            }
        }
    }

    fn write(&mut self, line: &[u8]) -> bool {
        let result = self
            .stream
            .write_all(line)
            .and_then(|()| self.stream.write_all(b"\n"));
        self.note(result)
    }

    /// Hands on what was printed so far.
    pub(crate) fn flush(&mut self) -> bool {
        let result = self.stream.flush();
        // Terminals change their size.
        self.width = width();
        self.note(result)
    }

    fn note(&mut self, result: io::Result<()>) -> bool {
        if let Err(error) = result {
            self.failed.get_or_insert(error);
        }
        self.failed.is_none()
    }

    /// A reader that has gone away is no failure.
    pub(crate) fn end(mut self) -> Result<()> {
        self.flush();
        let failed = self.failed.take();
        // What is left would be tried again, and fail again.
        let (_, _rest) = self.stream.into_parts();
        match failed {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new("cannot write to stdout").because(&error))
            }
            _ => Ok(()),
        }
    }
}

/// How many columns the terminal has, if stdout is one.
fn width() -> Option<usize> {
    let stdout = io::stdout();
    let size = stdout
        .is_terminal()
        .then(|| rustix::termios::tcgetwinsize(&stdout).ok())
        .flatten();
    size.map(|size| usize::from(size.ws_col))
        .filter(|width| *width > 0)
}

/// The line with its styles, no wider than `width`.
fn fit(parts: &[Part], width: Option<usize>) -> String {
    let mut left = width.unwrap_or(usize::MAX);
    let mut line = String::new();
    for (style, text) in parts {
        let mut end = 0;
        for (at, letter) in text.char_indices() {
            let columns = letter.width().unwrap_or(0);
            if columns > left {
                // Nothing that comes later may take the place of what did not fit.
                left = 0;
                break;
            }
            left -= columns;
            end = at + letter.len_utf8();
        }
        let part = &text[..end];
        if !part.is_empty() {
            let _ = write!(line, "{style}{part}{style:#}");
        }
    }
    line.truncate(line.trim_end_matches(' ').len());
    line
}

/// What got lost, told when it grows.
#[derive(Default)]
pub(crate) struct Loss(u64);

impl Loss {
    /// Says how much more was lost.
    pub(crate) fn tell(&mut self, lost: u64, what: &str) {
        if lost > self.0 {
            let more = output::count(lost - self.0, what);
            output::notice(&format!(
                "{more} lost: they came faster than they were read"
            ));
            self.0 = lost;
        }
    }
}

/// The last line, on stderr.
pub(crate) fn summary(text: &str, lost: u64) {
    let style = if lost > 0 { WARN } else { Style::new() };
    anstream::eprintln!("{text}, {style}{lost} lost{style:#}");
}

/// A time as `10`, `10s` or `2m`.
pub(crate) fn duration(text: &str) -> std::result::Result<Duration, &'static str> {
    let seconds = || text.parse().ok().map(Duration::from_secs);
    seconds()
        .or_else(|| humantime::parse_duration(text).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or("not a time such as `10`, `10s` or `2m`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_cut_where_the_terminal_ends() {
        let bold = Style::new().bold();
        let parts = [
            (Style::new(), "12345".to_owned()),
            (bold, "67890".to_owned()),
        ];

        assert_eq!(fit(&parts, Some(7)), format!("12345{bold}67{bold:#}"));
        assert_eq!(fit(&parts, Some(5)), "12345");
        assert_eq!(fit(&parts[..1], None), "12345");
    }

    #[test]
    fn wide_letters_take_two_columns_and_accents_none() {
        let fits = |text: &str, width| fit(&[(Style::new(), text.to_owned())], Some(width));

        assert_eq!(fits("日本語", 5), "日本");
        assert_eq!(fits("日本語", 6), "日本語");
        assert_eq!(fits("e\u{301}e\u{301}x", 2), "e\u{301}e\u{301}");
        assert_eq!(fits("🦀🦀", 1), "");
        // A narrow one behind it does not slip in.
        let parts = [
            (Style::new(), "日".to_owned()),
            (Style::new(), "x".to_owned()),
        ];
        assert_eq!(fit(&parts, Some(1)), "");
    }

    #[test]
    fn plain_number_is_a_time_in_seconds() {
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert!(duration("0").is_err() && duration("soon").is_err());
    }
}
