//! Time that goes on while the machine sleeps, as [`Instant`](std::time::Instant) does not, and ticks.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How long ago the machine was booted, sleep included.
pub(crate) fn since_boot() -> Duration {
    duration(clock_gettime(ClockId::Boottime))
}

fn duration(time: Timespec) -> Duration {
    let seconds = Duration::from_secs(time.tv_sec.unsigned_abs());
    seconds + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}

/// Ticks now and once in each period, and never to make up for what was missed.
pub(crate) fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Notices that the machine has slept.
pub(crate) struct Sleep {
    /// How far the clock that goes on is ahead of the one that stands still.
    slept: Duration,
}

impl Sleep {
    /// What is less is the time between the two looks at clocks.
    const LEAST: Duration = Duration::from_secs(1);

    /// Notices what is slept from now on.
    pub(crate) fn new() -> Self {
        let mut sleep = Self {
            slept: Duration::ZERO,
        };
        sleep.noticed();
        sleep
    }

    /// How long the machine has slept since it was asked last, if it has.
    pub(crate) fn noticed(&mut self) -> Option<Duration> {
        let awake = duration(clock_gettime(ClockId::Monotonic));
        self.look(since_boot(), awake)
    }

    fn look(&mut self, since_boot: Duration, awake: Duration) -> Option<Duration> {
        let slept = since_boot.saturating_sub(awake);
        let more = slept.saturating_sub(self.slept);
        if more < Self::LEAST {
            return None;
        }
        self.slept = slept;
        Some(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_noticed_once_and_the_time_between_two_looks_is_none() {
        let seconds = Duration::from_secs;
        let mut sleep = Sleep { slept: seconds(7) };

        assert_eq!(sleep.look(seconds(107), seconds(100)), None);
        assert_eq!(
            sleep.look(seconds(108) + seconds(1) / 2, seconds(101)),
            None
        );
        assert_eq!(sleep.look(seconds(3709), seconds(102)), Some(seconds(3600)));
        assert_eq!(sleep.look(seconds(3710), seconds(103)), None);
        // The clock of a time namespace can be behind.
        assert_eq!(sleep.look(seconds(1), seconds(104)), None);
    }
}
