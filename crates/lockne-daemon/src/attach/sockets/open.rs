//! What a process has open.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::RawFd,
};

use crate::inherited::Error;

/// What a process has open.
pub(super) struct Open {
    /// Sockets by inode, with a descriptor each.
    pub(super) sockets: BTreeMap<u64, RawFd>,
    /// Sockets that an `io_uring` holds, and maybe nobody else.
    pub(super) registered: BTreeSet<u64>,
}

impl Open {
    pub(super) fn of(pid: u32) -> Result<Self, Error> {
        let mut open = Self {
            sockets: BTreeMap::new(),
            registered: BTreeSet::new(),
        };
        let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => return Ok(open),
            Err(source) => return Err(Error::List { pid, source }),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if is_gone(&error) => break,
                Err(source) => return Err(Error::List { pid, source }),
            };
            let name = entry.file_name();
            let Some(number) = name.to_str().and_then(|it| it.parse().ok()) else {
                continue;
            };
            // It may have been closed since it was listed.
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            let target = target.to_string_lossy();
            if let Some(inode) = inodes(&target).next() {
                open.sockets.entry(inode).or_insert(number);
            } else if target == "anon_inode:[io_uring]" {
                let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
                open.registered.extend(inodes(&info.unwrap_or_default()));
            }
        }
        Ok(open)
    }
}

/// Whether the process has ended meanwhile.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The sockets that a text of `/proc` names, as `socket:[4711]`.
fn inodes(text: &str) -> impl Iterator<Item = u64> {
    let after = text.split("socket:[").skip(1);
    after.filter_map(|rest| rest.split_once(']')?.0.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_in_links_and_in_what_an_io_uring_tells() {
        let info = "UserFiles:\t3\n    0: socket:[17]\n    1: /dev/null\n    2: socket:[4711]\n";

        assert_eq!(inodes("socket:[99]").collect::<Vec<_>>(), [99]);
        assert_eq!(inodes(info).collect::<Vec<_>>(), [17, 4711]);
        assert_eq!(inodes("pipe:[99]").count(), 0);
    }
}
