//! The file system in which maps and links live on without a daemon.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use rustix::mount::{MountFlags, UnmountFlags};

use super::Error;

const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Makes sure that `dir` is in a bpffs: mounts one on it if it is not.
pub(super) fn ensure(dir: &Path) -> Result<(), Error> {
    let failed = |action| {
        move |source: io::Error| {
            if source.kind() == io::ErrorKind::PermissionDenied {
                return Error::NotPermitted { action, source };
            }
            Error::Pins {
                action,
                path: dir.to_owned(),
                source,
            }
        }
    };
    fs::create_dir_all(dir).map_err(failed("create the directory"))?;
    if is_bpffs(dir).map_err(failed("look at"))? {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("bpf", dir, "bpf", flags, c"mode=0700")
        .map_err(|errno| failed("mount a bpffs on")(errno.into()))
}

/// Undoes [`ensure`]: unmounts `dir` if it is a mount of its own, and removes it if it is empty.
///
/// A daemon that may not unmount has not mounted: that one stays, empty.
pub(super) fn release(dir: &Path) -> Result<(), Error> {
    let failed = |action| {
        move |source: io::Error| Error::Pins {
            action,
            path: dir.to_owned(),
            source,
        }
    };
    if is_mount(dir).map_err(failed("look at"))? {
        // Whoever looks into it at this moment keeps nothing alive: it is empty.
        match rustix::mount::unmount(dir, UnmountFlags::DETACH) {
            Err(rustix::io::Errno::PERM) => return Ok(()),
            unmounted => unmounted.map_err(|errno| failed("unmount")(errno.into()))?,
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
            Err(failed("remove the directory")(error))
        }
        _ => Ok(()),
    }
}

fn is_bpffs(dir: &Path) -> io::Result<bool> {
    let kind = rustix::fs::statfs(dir)?.f_type;
    Ok(u64::try_from(kind).is_ok_and(|kind| kind & 0xffff_ffff == BPF_FS_MAGIC))
}

fn is_mount(dir: &Path) -> io::Result<bool> {
    let parent = dir.join("..");
    Ok(fs::metadata(dir)?.dev() != fs::metadata(parent)?.dev())
}
