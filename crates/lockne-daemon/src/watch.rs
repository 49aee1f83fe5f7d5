//! Tells when one of some files may have changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Watches directories, for files are mostly replaced and not written to.
pub(crate) struct Watch {
    inotify: OwnedFd,
    /// What counts in each of them.
    directories: BTreeMap<i32, Names>,
}

/// What counts in a directory.
#[derive(Debug, PartialEq, Eq)]
enum Names {
    All,
    /// In a directory of others nobody should be woken for nothing.
    These(BTreeSet<OsString>),
}

/// Directories, each with what counts in it.
#[derive(Debug, Default)]
pub(crate) struct Wanted(BTreeMap<PathBuf, Names>);

impl Watch {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            inotify: inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?,
            directories: BTreeMap::new(),
        })
    }

    /// Watches these, and no others any more.
    ///
    /// A directory that is not there is for whoever watches the one above it.
    pub(crate) fn set(&mut self, wanted: Wanted) -> io::Result<()> {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let mut directories = BTreeMap::new();
        for (directory, names) in wanted.0 {
            match inotify::add_watch(&self.inotify, &directory, flags) {
                Ok(number) => {
                    // Two paths can lead to one directory.
                    let before = directories.remove(&number);
                    directories.insert(number, names.and(before));
                }
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        for gone in self.directories.keys() {
            if !directories.contains_key(gone) {
                // It is no longer there if the directory is not.
                let _ = inotify::remove_watch(&self.inotify, *gone);
            }
        }
        self.directories = directories;
        Ok(())
    }

    /// Waits for a change.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
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

    /// Reads what there is; says whether any of it counts.
    fn drain(&self) -> io::Result<bool> {
        let mut room = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(&self.inotify, &mut room);
        let mut any = false;
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(any),
                Err(errno) => return Err(errno.into()),
            };
            any |= match event.file_name() {
                Some(name) => self
                    .directories
                    .get(&event.wd())
                    .is_some_and(|names| names.contain(OsStr::from_bytes(name.to_bytes()))),
                // About the directory itself, or that more happened than could be kept.
                None => !event.events().contains(ReadFlags::IGNORED),
            };
        }
    }
}

impl Wanted {
    pub(crate) fn all(&mut self, directory: PathBuf) {
        self.0.insert(directory, Names::All);
    }

    pub(crate) fn one(&mut self, directory: PathBuf, name: OsString) {
        let before = self.0.remove(&directory);
        let names = Names::These(BTreeSet::from([name]));
        self.0.insert(directory, names.and(before));
    }
}

impl Names {
    fn and(self, other: Option<Self>) -> Self {
        match (self, other) {
            (Self::These(one), Some(Self::These(other))) => Self::These(&one | &other),
            (names, None) => names,
            _ => Self::All,
        }
    }

    fn contain(&self, name: &OsStr) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.contains(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_a_file_do_not_count() {
        let mut wanted = Wanted::default();
        wanted.one("/etc".into(), "a".into());
        wanted.one("/etc".into(), "b".into());
        wanted.all("/etc/d".into());
        wanted.one("/etc/d".into(), "c".into());

        let counts = |directory: &str, name: &str| {
            wanted.0[std::path::Path::new(directory)].contain(OsStr::new(name))
        };
        assert!(counts("/etc", "a") && counts("/etc", "b"));
        assert!(!counts("/etc", "c"));
        assert!(counts("/etc/d", "whatever"));
    }
}
