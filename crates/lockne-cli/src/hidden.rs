//! Resolvers' sockets, out of a program's sight where the kernel cannot refuse them: a mount namespace in which
//! their directories are others, without the sockets.
//!
//! Only for root, who may make one. Port 53 is led to the policy's resolver either way, so that the files beside
//! the sockets, to one of which `/etc/resolv.conf` may link, may be copies. What others mount later is seen inside,
//! too; what is mounted inside stays there.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use lockne_core::api::OpenSocket;
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

/// Room for copies, which are a few hundred bytes.
const SIZE: u64 = 64 << 10;

/// Somebody whom the program can ask for names.
#[derive(Debug)]
pub(crate) struct Open {
    name: String,
    source: io::Error,
}

/// Hides the sockets from this thread and what it will become.
pub(crate) fn hide(sockets: &[OpenSocket]) -> Result<(), Open> {
    let here = || sockets.iter().filter(|socket| socket.path.exists());
    let Some(first) = here().next() else {
        return Ok(());
    };
    let open = |source| Open {
        name: first.name.clone(),
        source,
    };
    // By their real names, as `/var/run` is a link.
    let directories: io::Result<BTreeSet<PathBuf>> = here()
        .filter_map(|socket| socket.path.parent())
        .map(fs::canonicalize)
        .collect();
    let directories = directories.map_err(open)?;
    // SAFETY: no descriptors or memory are unshared; nothing else here works with paths at the same time.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(|errno| open(errno.into()))?;
    let inward = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", inward).map_err(|errno| open(errno.into()))?;
    directories
        .iter()
        .try_for_each(|directory| cover(directory))
        .map_err(open)
}

/// Puts a directory with the same small files in the place of `directory`.
fn cover(directory: &Path) -> io::Result<()> {
    let mut copies = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let about = fs::metadata(&path)?;
        if about.is_file() && about.size() <= SIZE / 4 {
            copies.push((path.clone(), about.permissions(), fs::read(&path)?));
        }
    }
    let mode = fs::metadata(directory)?.permissions().mode() & 0o7777;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = std::ffi::CString::new(format!("size={SIZE},mode={mode:o}"))?;
    mount("lockne", directory, "tmpfs", flags, options.as_c_str())?;
    for (path, permissions, bytes) in copies {
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, permissions)?;
    }
    Ok(())
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, source } = self;
        write!(
            f,
            "this kernel cannot keep the program from asking {name}, which asks on outside of the policy \
             (hiding it failed: {source}); Linux 6.7 can, and for root {name} is hidden"
        )
    }
}
