//! When a demo ends: after its time, or at Ctrl-C.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};

use crate::Length;

/// The end of a demo, from the moment it is made.
#[derive(Debug)]
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
    deadline: Option<Instant>,
}

impl Stop {
    /// Takes over SIGINT and SIGTERM, so that nothing ends without cleaning up.
    ///
    /// # Errors
    ///
    /// When the signals cannot be taken.
    pub fn new(length: Length) -> Result<Self> {
        let mut stop = Self::on_signal()?;
        stop.deadline = length.duration.map(|duration| Instant::now() + duration);
        Ok(stop)
    }

    /// The same without an end in time.
    ///
    /// # Errors
    ///
    /// When the signals cannot be taken.
    pub fn on_signal() -> Result<Self> {
        let take = |kind| signal(kind).context("cannot take over Ctrl-C");
        Ok(Self {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            deadline: None,
        })
    }

    /// Waits for the end. May be dropped and called again.
    pub async fn wait(&mut self) {
        let far = Duration::from_hours(24 * 365);
        let deadline = self.deadline.unwrap_or_else(|| Instant::now() + far);
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = sleep_until(deadline) => {}
        }
    }
}
