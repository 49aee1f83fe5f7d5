//! Tells when files of the configuration, or wg-quick files that it names, may have changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::{Interest, unix::AsyncFd};

use crate::config::Files;

/// Watches directories, for files are mostly replaced and not written to.
pub(crate) struct Watch {
    events: AsyncFd<OwnedFd>,
    /// What counts in each of them.
    directories: Mutex<BTreeMap<i32, Names>>,
}

/// What counts in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Names {
    All,
    /// In a directory of others nobody should be woken for nothing.
    These(BTreeSet<OsString>),
}

impl Watch {
    pub(crate) fn new(files: &Files) -> io::Result<Self> {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let watch = Self {
            // SAFETY: an `OwnedFd` is a valid descriptor, and nobody replaces or closes it while it is in there.
            events: unsafe { AsyncFd::register_with_interest(events, Interest::READABLE)? },
            directories: Mutex::default(),
        };
        watch.look(files, &[])?;
        Ok(watch)
    }

    /// Watches what may have come since; what is watched already stays so.
    pub(crate) fn look(&self, files: &Files, tunnels: &[&Path]) -> io::Result<()> {
        for (directory, names) in wanted(files, tunnels) {
            let flags = WatchFlags::CLOSE_WRITE
                | WatchFlags::CREATE
                | WatchFlags::DELETE
                | WatchFlags::MOVED_FROM
                | WatchFlags::MOVED_TO;
            match inotify::add_watch(&self.events, &directory, flags) {
                Ok(number) => {
                    let mut known = self.lock();
                    // Two paths can lead to one directory.
                    let before = known.remove(&number);
                    known.insert(number, names.and(before));
                }
                Err(rustix::io::Errno::NOENT) => {}
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
            // Until nothing is left, for the kernel does not tell again of what is not read.
            while let Ok(event) = events.next() {
                let name = event.file_name().map(|it| it.to_bytes().to_vec());
                any |= self.counts(event.wd(), name.map(OsString::from_vec));
            }
            ready.clear_ready();
            if any {
                return;
            }
        }
    }

    /// What has no name is about the directory, or says that some changes were lost.
    fn counts(&self, directory: i32, name: Option<OsString>) -> bool {
        match (self.lock().get(&directory), name) {
            (Some(Names::These(names)), Some(name)) => names.contains(&name),
            _ => true,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<i32, Names>> {
        self.directories
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
}

/// Each directory with what counts in it.
fn wanted(files: &Files, tunnels: &[&Path]) -> BTreeMap<PathBuf, Names> {
    let parent = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_owned();
    let name = |path: &Path| path.file_name().map(ToOwned::to_owned);
    let mut wanted = BTreeMap::from([(files.directory(), Names::All)]);
    let directory = files.directory();
    for path in [files.main(), &directory]
        .into_iter()
        .chain(tunnels.iter().copied())
    {
        let names = Names::These(name(path).into_iter().collect());
        let before = wanted.remove(&parent(path));
        wanted.insert(parent(path), names.and(before));
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn change_is_seen_behind_many_of_other_files() {
        let place = tempfile::tempdir().unwrap();
        let files = Files::new(&place.path().join("lockne.toml"));
        let watch = Watch::new(&files).unwrap();

        for i in 0..1000 {
            std::fs::write(place.path().join(format!("other-{i}")), "").unwrap();
        }
        std::fs::write(files.main(), "").unwrap();

        let patience = std::time::Duration::from_secs(30);
        let changed = tokio::time::timeout(patience, watch.changed()).await;
        assert!(changed.is_ok(), "nobody was told");
    }

    #[test]
    fn neighbours_of_a_file_do_not_count() {
        let files = Files::new(Path::new("/etc/lockne/lockne.toml"));
        let tunnels = ["/tmp/a.conf", "/tmp/b.conf", "/etc/lockne/c.conf"].map(Path::new);

        let wanted = wanted(&files, &tunnels);

        let these = |names: &[&str]| Names::These(names.iter().map(Into::into).collect());
        assert_eq!(
            wanted.into_iter().collect::<Vec<_>>(),
            [
                (
                    "/etc/lockne".into(),
                    these(&["lockne.toml", "lockne.d", "c.conf"])
                ),
                ("/etc/lockne/lockne.d".into(), Names::All),
                ("/tmp".into(), these(&["a.conf", "b.conf"])),
            ]
        );
    }
}
