//! Values below `/proc/sys/net`.
//!
//! The calling thread's network namespace decides whose values these are.

use std::{fs, io, path::Path, path::PathBuf};

use lockne_core::plan::Sysctl;

use super::Error;

/// Reads the value of `sysctl`; `None` if there is none, as for an interface that is gone.
///
/// # Errors
///
/// If the file is there but cannot be read, or holds no number.
pub fn read(sysctl: &Sysctl) -> Result<Option<i32>, Error> {
    let path = path(sysctl);
    match read_file(&path) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::ReadSysctl { path, source }),
    }
}

/// Writes `value` to `sysctl` and returns its value from before.
///
/// # Errors
///
/// If the file is not there, or cannot be read or written.
pub fn write(sysctl: &Sysctl, value: i32) -> Result<i32, Error> {
    let path = path(sysctl);
    let old = match read_file(&path) {
        Ok(old) => old,
        Err(source) => return Err(Error::ReadSysctl { path, source }),
    };
    if old != value {
        fs::write(&path, value.to_string()).map_err(|source| Error::WriteSysctl {
            path,
            value,
            source,
        })?;
    }
    Ok(old)
}

fn path(sysctl: &Sysctl) -> PathBuf {
    Path::new("/proc/sys").join(sysctl.path())
}

fn read_file(path: &Path) -> io::Result<i32> {
    fs::read_to_string(path)?
        .trim()
        .parse()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
