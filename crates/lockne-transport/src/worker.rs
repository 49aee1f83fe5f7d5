//! A thread for packets: none of them waits for what else the process does.

use std::{
    io,
    thread::{self, JoinHandle},
};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// A thread with a runtime of its own. With this value its tasks end, and what they had open is closed.
///
/// It is in the network namespace of the thread that starts it, and has its rights. One, not one for each processor:
/// handing each packet on from one to the next costs more than it gains, as far as two of them can tell.
pub(crate) struct Worker {
    runtime: Handle,
    /// Both until it is dropped.
    thread: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Worker {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// If the system has no more threads or descriptors.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            // An error is what it waits for: the other end is gone.
            let _ = runtime.block_on(stopped);
        };
        let thread = thread::Builder::new()
            .name("wireguard".to_owned())
            .spawn(run)?;
        Ok(Self {
            runtime: handle,
            thread: Some((stop, thread)),
        })
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            // It ended, or panicked and said so.
            let _ = thread.join();
        }
    }
}
