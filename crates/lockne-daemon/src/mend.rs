//! What others undo is done again: soon, with a line in the log, and never all the time.
//!
//! Who undoes it a hundred times a second gets neither the daemon nor its log to spin. Programs are silent meanwhile.

use std::time::{Duration, Instant};

/// Events that come together, as when a device goes away with all its routes, are answered together.
const SETTLE: Duration = Duration::from_millis(20);
/// The longest that news wait.
const SLOWEST: Duration = Duration::from_secs(1);
/// So many looks in a row are free.
const FREE: u32 = 8;
/// In this time without a look, one is forgotten.
const PEACE: Duration = Duration::from_millis(500);

/// Lines that are written at once.
const LINES: u32 = 30;
/// In this time there is room for another one.
const LINE: Duration = Duration::from_secs(2);

/// When to look at the network again.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Those that are not forgotten.
    looks: u32,
    /// Up to when they were.
    forgotten: Option<Instant>,
}

impl Pace {
    /// How long news may wait that come now.
    pub(crate) fn wait(&mut self, now: Instant) -> Duration {
        self.forget(now);
        let slower = self.looks.saturating_sub(FREE).min(16);
        (SETTLE * (1 << slower)).min(SLOWEST)
    }

    /// Takes note of a look.
    pub(crate) fn looked(&mut self, now: Instant) {
        self.forget(now);
        // As slow as it gets, and some more looks that have to be forgotten first.
        self.looks = (self.looks + 1).min(FREE + 8);
    }

    fn forget(&mut self, now: Instant) {
        let since = *self.forgotten.get_or_insert(now);
        let peace = now.saturating_duration_since(since).as_millis() / PEACE.as_millis();
        let peace = u32::try_from(peace).unwrap_or(u32::MAX);
        self.looks = self.looks.saturating_sub(peace);
        self.forgotten = if self.looks == 0 {
            Some(now)
        } else {
            since.checked_add(PEACE.saturating_mul(peace))
        };
    }
}

/// How many more lines may be written.
#[derive(Debug)]
pub(crate) struct Lines {
    left: u32,
    filled: Instant,
    dropped: u64,
}

impl Lines {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            left: LINES,
            filled: now,
            dropped: 0,
        }
    }

    /// Whether there is room for one; if so, how many there was no room for before it.
    pub(crate) fn take(&mut self, now: Instant) -> Option<u64> {
        let more = now.saturating_duration_since(self.filled).as_secs() / LINE.as_secs();
        if more > 0 {
            self.left = self
                .left
                .saturating_add(u32::try_from(more).unwrap_or(LINES))
                .min(LINES);
            self.filled = now;
        }
        if self.left == 0 {
            self.dropped += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

/// Writes a line while there is room for it, and says how many were left out before.
macro_rules! spare {
    ($lines:expr, $level:ident, $($line:tt)*) => {
        if let Some(dropped) = $lines.take(std::time::Instant::now()) {
            if dropped > 0 {
                tracing::warn!(dropped, "lines like the next were left out: too many at once");
            }
            tracing::$level!($($line)*);
        }
    };
}
pub(crate) use spare;

#[cfg(test)]
mod tests {
    use super::*;

    /// News every ten milliseconds for so long; when was looked.
    fn storm(pace: &mut Pace, start: Instant, length: Duration) -> Vec<Instant> {
        let mut looks = Vec::new();
        let mut now = start;
        while now < start + length {
            now += pace.wait(now).max(Duration::from_millis(10));
            pace.looked(now);
            looks.push(now);
        }
        looks
    }

    #[test]
    fn change_now_and_then_is_answered_at_once() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        for _ in 0..100 {
            assert_eq!(pace.wait(now), SETTLE);
            pace.looked(now);
            // Our own answer is news, too.
            assert_eq!(pace.wait(now + SETTLE), SETTLE);
            pace.looked(now + SETTLE);
            now += Duration::from_secs(1);
        }
    }

    #[test]
    fn storm_is_looked_at_ever_more_rarely_and_peace_is_noticed() {
        let mut pace = Pace::default();
        let start = Instant::now();

        let looks = storm(&mut pace, start, Duration::from_mins(1));

        assert!(looks.len() < 150, "{}", looks.len());
        let last = looks[looks.len() - 1];
        assert_eq!(pace.wait(last + Duration::from_secs(5)), SETTLE);
    }

    #[test]
    fn nothing_waits_longer_than_a_second() {
        let mut pace = Pace::default();
        let now = Instant::now();
        for _ in 0..10_000 {
            pace.looked(now);
            assert!(pace.wait(now) <= SLOWEST);
        }
    }

    #[test]
    fn lines_that_are_left_out_are_counted() {
        let now = Instant::now();
        let mut lines = Lines::new(now);
        let written = (0..1000).filter(|_| lines.take(now).is_some()).count();

        assert_eq!(written, LINES as usize);
        assert_eq!(lines.take(now + LINE), Some(1000 - u64::from(LINES)));
        assert_eq!(lines.take(now + LINE), None);
        assert_eq!(lines.take(now + Duration::from_mins(5)), Some(1));
    }
}
