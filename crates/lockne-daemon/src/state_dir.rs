//! The directory in which a daemon keeps its socket, its pins and its record.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// The state directory. One daemon owns it at a time.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It, or a file in it, cannot be made, read or written.
    #[error("cannot use `{}`", path.display())]
    Path {
        /// What was tried.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another daemon owns it.
    #[error("lockne already runs here, with process id {pid}")]
    Owned {
        /// Its process id, or `?`.
        pid: String,
    },
}

/// Ownership of a state directory, until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl StateDir {
    /// Names the directory; nothing is made yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where clients find the daemon, if not told otherwise.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.0.join("lockne.sock")
    }

    /// Where maps and links are pinned.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.0.join("bpf")
    }

    /// What the next daemon must know.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }

    /// Where a daemon that `run` started writes its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.0.join("daemon.log")
    }

    fn lock_file(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Makes the directory.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be made.
    pub fn create(&self) -> Result<(), Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.0)
            .map_err(|source| failed(&self.0, source))
    }

    /// Takes ownership.
    ///
    /// # Errors
    ///
    /// Fails if another daemon has it, or if the lock file cannot be made.
    pub fn lock(&self) -> Result<Lock, Error> {
        let path = self.lock_file();
        let failed = |source| failed(&path, source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        // Whoever can open it, can lock it and so keep every daemon out.
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(failed)?;
                let pid = pid.trim();
                return Err(Error::Owned {
                    pid: if pid.is_empty() { "?" } else { pid }.to_owned(),
                });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Lock { _file: file })
    }

    /// Removes the files of this directory, and the directory if nothing else is in it.
    ///
    /// # Errors
    ///
    /// Fails if a file of ours cannot be removed.
    pub fn clear(&self, socket: &Path) -> Result<(), Error> {
        remove_socket(socket).map_err(|source| failed(socket, source))?;
        self.clear_beside_socket()
    }

    /// The same, where the socket is somebody else's.
    pub(crate) fn clear_beside_socket(&self) -> Result<(), Error> {
        // The log of a daemon that ends well has nothing to tell.
        for path in [&self.record(), &self.log(), &self.lock_file()] {
            remove_file(path).map_err(|source| failed(path, source))?;
        }
        // Somebody else's file keeps the directory.
        for directory in [self.pins(), self.0.clone()] {
            let _still_in_use = fs::remove_dir(directory);
        }
        Ok(())
    }
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::Path {
        path: path.to_owned(),
        source,
    }
}

/// Removes a socket that may not be there; leaves anything else.
pub(crate) fn remove_socket(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => remove_file(path),
        _ => Ok(()),
    }
}

/// Removes a file that may not be there.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_owner_is_told_who_the_first_is() {
        let place = tempfile::tempdir().unwrap();
        let dir = StateDir::new(&place.path().join("lockne"));
        dir.create().unwrap();
        let lock = dir.lock().unwrap();

        let error = dir.lock().unwrap_err();

        assert_eq!(
            error.to_string(),
            format!(
                "lockne already runs here, with process id {}",
                std::process::id()
            )
        );
        drop(lock);
        dir.lock().unwrap();
    }

    #[test]
    fn clear_leaves_what_is_not_ours() {
        let place = tempfile::tempdir().unwrap();
        let dir = StateDir::new(&place.path().join("lockne"));
        dir.create().unwrap();
        drop(dir.lock().unwrap());
        fs::write(dir.socket(), "not a socket").unwrap();
        let foreign = dir.path().join("foreign");
        fs::write(&foreign, "").unwrap();

        dir.clear(&dir.socket()).unwrap();
        assert!(foreign.exists() && dir.socket().exists());

        fs::remove_file(&foreign).unwrap();
        fs::remove_file(dir.socket()).unwrap();
        dir.clear(&dir.socket()).unwrap();
        assert!(!dir.path().exists());
    }
}
