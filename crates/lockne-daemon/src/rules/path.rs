//! Where a path leads, and every name on the way whose change would lead elsewhere.

use std::{
    collections::{HashMap, VecDeque},
    ffi::{OsStr, OsString},
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use lockne_abi::Executable;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};

/// As many symbolic links as the kernel follows.
const MAX_LINKS: usize = 40;

/// Where paths lead, looked up at one moment: what many have in common is asked for once.
#[derive(Default)]
pub(super) struct Ways(HashMap<PathBuf, Step>);

/// What is found by a name.
enum Step {
    Link(PathBuf),
    Nothing,
    Other,
}

impl Ways {
    /// Where a path ends, without symbolic links; the file may be missing, the directory is there.
    pub(super) fn end(&mut self, path: &Path) -> Option<PathBuf> {
        let mut todo: VecDeque<_> = names(path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            match self.step(&next) {
                Step::Link(target) if links < MAX_LINKS => {
                    links += 1;
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    let mut rest = names(target);
                    rest.append(&mut todo);
                    todo = rest;
                }
                Step::Link(_) => return None,
                // A file can still be put here.
                Step::Nothing => return todo.is_empty().then_some(next),
                Step::Other => at = next,
            }
        }
        Some(at)
    }

    /// Every name that was looked for, with its directory.
    pub(super) fn into_names(self) -> impl Iterator<Item = (PathBuf, OsString)> {
        self.0.into_keys().filter_map(|path| {
            let name = path.file_name()?.to_owned();
            Some((path.parent()?.to_owned(), name))
        })
    }

    fn step(&mut self, path: &Path) -> &Step {
        let look = |path: &PathBuf| match fs::read_link(path) {
            Ok(target) => Step::Link(target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Step::Nothing,
            Err(_) => Step::Other,
        };
        self.0.entry(path.to_owned()).or_insert_with_key(look)
    }
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsStr::new("..").to_owned()),
            _ => None,
        })
        .collect()
}

/// The device and inode of a file, as the kernel itself has them.
///
/// What `stat` says of the device is another one on overlayfs and btrfs; that of the mount is the right one.
pub(super) fn identity(path: &Path, mounts: &Mounts) -> io::Result<Executable> {
    identity_of(CWD, path, AtFlags::empty(), mounts)
}

/// The same of a file that is held: while it is, its number is given to no other, even if it is deleted.
pub(super) fn hold(path: &Path, mounts: &Mounts) -> io::Result<(Executable, OwnedFd)> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let found = identity_of(file.as_fd(), Path::new(""), AtFlags::EMPTY_PATH, mounts)?;
    Ok((found, file))
}

fn identity_of(
    at: BorrowedFd<'_>,
    path: &Path,
    how: AtFlags,
    mounts: &Mounts,
) -> io::Result<Executable> {
    let flags = StatxFlags::INO | StatxFlags::MNT_ID | StatxFlags::TYPE;
    let found = rustix::fs::statx(at, path, how, flags)?;
    let plain = device(found.stx_dev_major, found.stx_dev_minor);
    Ok(Executable {
        slot: 0,
        device: mounts.device(found.stx_mnt_id).unwrap_or(plain),
        inode: found.stx_ino,
    })
}

/// The number of a device as `super_block.s_dev` has it.
const fn device(major: u32, minor: u32) -> u32 {
    major << 20 | minor & 0xf_ffff
}

/// The devices of all mounts.
#[derive(Clone, Debug, Default)]
pub(super) struct Mounts(std::collections::BTreeMap<u64, u32>);

impl Mounts {
    /// Those that the process sees, `thread-self` for our own.
    pub(super) fn of(process: &str) -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string(format!(
            "/proc/{process}/mountinfo"
        ))?))
    }

    fn parse(text: &str) -> Self {
        let mount = |line: &str| {
            let mut fields = line.split(' ');
            let id = fields.next()?.parse().ok()?;
            let (major, minor) = fields.nth(1)?.split_once(':')?;
            Some((id, device(major.parse().ok()?, minor.parse().ok()?)))
        };
        Self(text.lines().filter_map(mount).collect())
    }

    fn device(&self, mount: u64) -> Option<u32> {
        self.0.get(&mount).copied()
    }

    /// Whether it knows the mount of a file.
    pub(super) fn knows(&self, path: &Path) -> bool {
        rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)
            .is_ok_and(|found| self.0.contains_key(&found.stx_mnt_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn way_goes_by_each_link_and_tells_where_it_looked() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        fs::create_dir(root.join("v2")).unwrap();
        fs::write(root.join("v2/app"), "").unwrap();
        std::os::unix::fs::symlink("v2", root.join("current")).unwrap();
        std::os::unix::fs::symlink(root.join("current/app"), root.join("bin")).unwrap();

        let mut ways = Ways::default();
        let end = ways.end(&root.join("bin"));

        assert_eq!(end, Some(root.join("v2/app")));
        let names: Vec<_> = ways.into_names().collect();
        for (directory, name) in [
            (&root, "bin"),
            (&root, "current"),
            (&root, "v2"),
            (&root.join("v2"), "app"),
        ] {
            assert!(names.contains(&(directory.clone(), name.into())));
        }
    }

    #[test]
    fn ways_in_one_directory_are_told_apart() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("/", root.join("a")).unwrap();
        fs::write(root.join("b"), "").unwrap();

        let mut ways = Ways::default();

        assert_eq!(
            ways.end(&root.join("a/x-missing")),
            Some("/x-missing".into())
        );
        assert_eq!(ways.end(&root.join("b")), Some(root.join("b")));
        assert_eq!(ways.end(&root.join("a")), Some("/".into()));
    }

    #[test]
    fn way_of_a_missing_file_ends_where_it_would_be() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();

        let mut ways = Ways::default();

        assert_eq!(ways.end(&root.join("app")), Some(root.join("app")));
        assert_eq!(ways.end(&root.join("no/app")), None);
    }

    #[test]
    fn ring_of_links_ends() {
        let place = tempfile::tempdir().unwrap();
        let ring = place.path().join("ring");
        std::os::unix::fs::symlink("ring", &ring).unwrap();

        assert_eq!(Ways::default().end(&ring), None);
    }

    #[test]
    fn device_is_that_of_the_mount() {
        let mounts =
            Mounts::parse("29 1 0:27 / / rw - overlay overlay rw\n30 1 254:1 / /x rw - ext4");

        assert_eq!(mounts.device(29), Some(27));
        assert_eq!(mounts.device(30), Some(254 << 20 | 1));
    }
}
