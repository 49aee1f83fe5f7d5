//! The threads that do the work of one embedded WireGuard.

use std::{io, num::NonZeroUsize, thread::available_parallelism};

use tokio::runtime::{Builder, Runtime};
use tokio_util::context::TokioContext;

/// WireGuard's tasks in gotatun wait for each other; more threads than this find nothing to do.
const MOST: usize = 4;

/// Threads in the network namespace of the thread that made them. They end with the value.
pub(super) struct Workers(Option<Runtime>);

impl Workers {
    pub(super) fn start(name: &str) -> io::Result<Self> {
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        let runtime = Builder::new_multi_thread()
            .worker_threads(cores.min(MOST))
            .thread_name(name)
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Runs `work` in the calling task. What it spawns, and every file it waits for, is the workers'.
    pub(super) async fn run<F: Future>(&self, work: F) -> F::Output {
        match &self.0 {
            Some(runtime) => TokioContext::new(work, runtime.handle().clone()).await,
            None => work.await,
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // A runtime must not wait for its threads inside of another one.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
