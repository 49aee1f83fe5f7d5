//! The time of day, from the clock that the kernel programs read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// What to add to the kernel's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// The time of day when the monotonic clock was zero.
    start: Duration,
    /// How far the local time is ahead, in seconds.
    east: i64,
}

impl Clock {
    /// Compares the clocks.
    pub(crate) fn now() -> Self {
        let monotonic = clock_gettime(ClockId::Monotonic);
        let real = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let monotonic = Duration::try_from(monotonic).unwrap_or_default();
        Self {
            start: real.saturating_sub(monotonic),
            east: seconds_east(real.as_secs()),
        }
    }

    /// A clock for tests: it starts with the epoch, in the zone of Greenwich.
    #[cfg(test)]
    pub(crate) const EPOCH: Self = Self {
        start: Duration::ZERO,
        east: 0,
    };

    /// The time since 1970.
    pub(crate) fn since_epoch(self, monotonic: u64) -> Duration {
        self.start + Duration::from_nanos(monotonic)
    }

    /// The local time of day, as `12:34:56.789012`.
    pub(crate) fn time_of_day(self, monotonic: u64) -> String {
        let time = self.since_epoch(monotonic);
        let seconds = time.as_secs().cast_signed() + self.east;
        let seconds = seconds.rem_euclid(86_400);
        format!(
            "{:02}:{:02}:{:02}.{:06}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            time.subsec_micros()
        )
    }

    /// The time as RFC 3339 has it, in UTC and to the nanosecond.
    pub(crate) fn rfc3339(self, monotonic: u64) -> String {
        let time = UNIX_EPOCH + self.since_epoch(monotonic);
        humantime::format_rfc3339_nanos(time).to_string()
    }
}

fn seconds_east(time: u64) -> i64 {
    let time = time.cast_signed();
    // SAFETY: plain data, for which zeros are valid.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to what we own.
    unsafe { libc::localtime_r(&raw const time, &raw mut local) };
    local.tm_gmtoff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_are_kept() {
        let time = 86_399_000_000_000 + 123_456_789;

        assert_eq!(Clock::EPOCH.time_of_day(time), "23:59:59.123456");
        assert_eq!(Clock::EPOCH.rfc3339(time), "1970-01-01T23:59:59.123456789Z");
    }

    #[test]
    fn local_time_may_be_another_day() {
        let clock = Clock {
            east: -3600,
            ..Clock::EPOCH
        };

        assert_eq!(clock.time_of_day(0), "23:00:00.000000");
    }
}
