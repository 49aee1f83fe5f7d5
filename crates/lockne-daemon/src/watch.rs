//! Tells when files of the configuration may have changed.

use std::{io, mem::MaybeUninit, os::fd::OwnedFd, path::Path};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::{Interest, unix::AsyncFd};

use crate::config::Files;

/// Watches the directories of a configuration, for files are mostly replaced and not written to.
pub(crate) struct Watch {
    events: AsyncFd<OwnedFd>,
}

impl Watch {
    pub(crate) fn new(files: &Files) -> io::Result<Self> {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let watch = Self {
            // SAFETY: an `OwnedFd` is a valid descriptor, and nobody replaces or closes it while it is in there.
            events: unsafe { AsyncFd::register_with_interest(events, Interest::READABLE)? },
        };
        watch.look(files)?;
        Ok(watch)
    }

    /// Watches what may have come since; what is watched already stays so.
    pub(crate) fn look(&self, files: &Files) -> io::Result<()> {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO;
        let parent = files.main().parent().unwrap_or(Path::new("/"));
        for directory in [parent, &files.directory()] {
            match inotify::add_watch(&self.events, directory, flags) {
                Ok(_) | Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Waits for a change.
    pub(crate) async fn changed(&self) {
        loop {
            let Ok(mut ready) = self.events.readable().await else {
                return std::future::pending().await;
            };
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(self.events.get_ref(), &mut buffer);
            let mut any = false;
            while events.next().is_ok() {
                any = true;
                if events.is_buffer_empty() {
                    break;
                }
            }
            ready.clear_ready();
            if any {
                return;
            }
        }
    }
}
