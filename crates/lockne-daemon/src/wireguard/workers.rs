//! The threads that do the work of one embedded WireGuard.

use std::{
    io,
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    thread::available_parallelism,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::spawn_blocking,
};
use tokio_util::context::TokioContext;

/// WireGuard's tasks in gotatun wait for each other; more threads than this find nothing to do.
const MOST: usize = 4;
/// How long a thread may take to come to its end. None of them does anything that takes long.
const LAST_STEP: Duration = Duration::from_secs(1);

/// Threads in the network namespace of the thread that made them. They end with the value.
pub(super) struct Workers(Mutex<Option<Runtime>>);

impl Workers {
    pub(super) fn start(name: &str) -> io::Result<Self> {
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        let runtime = Builder::new_multi_thread()
            .worker_threads(cores.min(MOST))
            .thread_name(name)
            .enable_all()
            .build()?;
        Ok(Self(Mutex::new(Some(runtime))))
    }

    /// Runs `work` in the calling task. What it spawns, and every file it waits for, is the workers'.
    pub(super) async fn run<F: Future>(&self, work: F) -> F::Output {
        match self.handle() {
            Some(handle) => TokioContext::new(work, handle).await,
            None => work.await,
        }
    }

    /// Ends the threads, and with them every task. What the tasks had open is closed when this returns.
    pub(super) async fn stop(&self) {
        if let Some(runtime) = self.take() {
            // Not here: a runtime must not wait for its threads inside of another one.
            let _ended = spawn_blocking(move || runtime.shutdown_timeout(LAST_STEP)).await;
        }
    }

    fn handle(&self) -> Option<Handle> {
        let runtime = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        runtime.as_ref().map(|runtime| runtime.handle().clone())
    }

    fn take(&self) -> Option<Runtime> {
        let mut runtime = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        runtime.take()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(runtime) = self.take() {
            runtime.shutdown_background();
        }
    }
}
