//! The root of the cgroup2 hierarchy, wherever it is mounted, or if it is not.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags},
};

use super::Error;

const MOUNTS: &str = "/proc/self/mountinfo";

/// Opens the root.
pub(crate) fn root() -> Result<OwnedFd, Error> {
    let mounts = fs::read_to_string(MOUNTS).map_err(|source| Error::Read {
        path: MOUNTS.into(),
        source,
    })?;
    find(&mounts)
        .and_then(|path| open(&path).ok())
        .map_or_else(mount_detached, Ok)
        .map_err(|source| Error::NoCgroup2 { source })
}

/// The first mount that has the root of the hierarchy for its own.
fn find(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, fs) = line.split_once(" - ")?;
        let fields: Vec<_> = mount.split(' ').collect();
        let is_root = *fields.get(3)? == "/" && fs.split(' ').next()? == "cgroup2";
        is_root.then(|| unescape(fields[4]).into())
    })
}

/// The kernel writes blank, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// Mounts it nowhere: nobody else sees it, and it goes with the descriptor.
fn mount_detached() -> io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&fs)?;
    let mount =
        rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&mount, c".", flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mount_of_the_root_is_taken() {
        let mounts = "\
25 30 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
26 30 0:24 /system.slice /bind rw shared:9 - cgroup2 cgroup2 rw
27 30 0:24 / /sys/fs/my\\040cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
";

        assert_eq!(find(mounts), Some("/sys/fs/my cgroup".into()));
    }

    #[test]
    fn without_a_mount_there_is_none() {
        assert_eq!(find("25 30 0:23 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
