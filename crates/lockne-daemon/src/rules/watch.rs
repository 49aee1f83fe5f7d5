//! Whether something that a rule names is another file now.
//!
//! The kernel finds the next version of a program by its place. What it cannot see is a directory or a
//! symbolic link that is replaced; that is what we watch for.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::PathBuf,
};

use rustix::fs::inotify;
use tokio::io::{Interest, unix::AsyncFd};

/// The names that matter, in their directories.
pub(super) struct Watch {
    inotify: OwnedFd,
    watched: BTreeMap<i32, BTreeSet<OsString>>,
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        Ok(Self {
            inotify: inotify::init(flags)?,
            watched: BTreeMap::new(),
        })
    }

    /// Watches these names, and no others any more.
    ///
    /// A directory that is gone in the meantime was reported by the one above it.
    pub(super) fn set(
        &mut self,
        names: impl Iterator<Item = (PathBuf, OsString)>,
    ) -> io::Result<()> {
        use inotify::WatchFlags as Flags;
        let flags = Flags::CREATE
            | Flags::MOVED_TO
            | Flags::MOVED_FROM
            | Flags::DELETE
            | Flags::CLOSE_WRITE
            | Flags::DELETE_SELF
            | Flags::MOVE_SELF
            | Flags::ONLYDIR;
        let mut directories = BTreeMap::<_, BTreeSet<_>>::new();
        for (directory, name) in names {
            directories.entry(directory).or_default().insert(name);
        }
        let mut watched = BTreeMap::<_, BTreeSet<_>>::new();
        for (directory, names) in directories {
            match inotify::add_watch(&self.inotify, &directory, flags) {
                Ok(watch) => watched.entry(watch).or_default().extend(names),
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        for watch in self.watched.keys().filter(|it| !watched.contains_key(it)) {
            // Gone with its directory.
            let _ = inotify::remove_watch(&self.inotify, *watch);
        }
        self.watched = watched;
        Ok(())
    }

    /// Waits until one of the names is another file.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        // SAFETY: the descriptor is ours, and stays open for longer than this.
        let ready =
            unsafe { AsyncFd::register_with_interest(self.inotify.as_fd(), Interest::READABLE) }?;
        loop {
            let mut guard = ready.readable().await?;
            if self.drain()? {
                return Ok(());
            }
            guard.clear_ready();
        }
    }

    /// Reads what there is; says whether it matters.
    fn drain(&self) -> io::Result<bool> {
        let mut room = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(&self.inotify, &mut room);
        let mut matters = false;
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::AGAIN) => return Ok(matters),
                Err(errno) => return Err(errno.into()),
            };
            let name = event
                .file_name()
                .map(|name| OsString::from_vec(name.to_bytes().to_vec()));
            let names = self.watched.get(&event.wd());
            matters |= match name {
                Some(name) => names.is_some_and(|names| names.contains(&name)),
                // The directory itself, or more than could be kept.
                None => !event.events().contains(inotify::ReadFlags::IGNORED),
            };
        }
    }
}
