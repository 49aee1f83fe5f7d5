//! What the next daemon must know: written on every change, read at start.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use lockne_abi::MarkField;
use lockne_core::{api::TunnelUp, plan::Sysctl, policy::Policy};
use serde::{Deserialize, Serialize};

use crate::configured::Kept;

/// The record. It holds private keys, so only root may read it, and it lies on a tmpfs by default.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The version of this format.
    pub version: u32,
    /// [`lockne_abi::MarkField::shift`].
    pub mark_shift: u32,
    /// The network namespace it belongs to, by inode.
    pub netns: u64,
    /// Every policy ever asked for.
    pub policies: Vec<Policy>,
    /// Tunnels that lockne brought up.
    pub tunnels: Vec<TunnelUp>,
    /// The configuration in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Kept>,
    /// Settings that were changed, with the value they had.
    pub sysctls: BTreeMap<Sysctl, i32>,
}

/// The version this program writes and reads.
pub(crate) const VERSION: u32 = 1;

/// Why the record cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what a lockne wrote.
    #[error("`{}` is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Another version wrote it.
    #[error("`{}` was written by another version of lockne", path.display())]
    Version {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Record {
    /// The bits of the mark that carry the policy.
    #[must_use]
    pub(crate) fn field(&self) -> MarkField {
        MarkField::new(self.mark_shift).unwrap_or(MarkField::DEFAULT)
    }

    /// Reads the record; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be read or understood.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, Error> {
        let bytes = match fs::read(path) {
            Ok(bytes) => zeroize::Zeroizing::new(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(Error::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let record: Self = serde_json::from_slice(&bytes).map_err(|source| Error::Damaged {
            path: path.to_owned(),
            source,
        })?;
        if record.version != VERSION {
            return Err(Error::Version {
                path: path.to_owned(),
            });
        }
        Ok(Some(record))
    }

    /// Replaces the record as a whole.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be written; the old one stays then.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::Write {
            path: path.to_owned(),
            source,
        };
        let next = path.with_extension("next");
        let bytes = zeroize::Zeroizing::new(
            serde_json::to_vec(self).expect("names, numbers and texts are JSON"),
        );
        let mut file: File = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&next)
            .map_err(failed)?;
        file.write_all(&bytes).map_err(failed)?;
        fs::rename(&next, path).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_the_owner_can_read_the_keys_in_it() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("record.json");

        Record {
            version: VERSION,
            ..Record::default()
        }
        .write(&path)
        .unwrap();

        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(Record::read(&path).unwrap().is_some());
    }

    #[test]
    fn damaged_record_is_an_error_and_not_an_empty_one() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("record.json");
        fs::write(&path, "{").unwrap();

        assert!(matches!(Record::read(&path), Err(Error::Damaged { .. })));
    }

    #[test]
    fn record_of_another_version_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("record.json");
        Record::default().write(&path).unwrap();

        assert!(matches!(Record::read(&path), Err(Error::Version { .. })));
    }
}
