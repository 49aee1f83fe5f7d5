//! Processes by their numbers, and handles on them, which their numbers can lose to others.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

/// A handle on the process with this number.
pub(crate) fn open(pid: u32) -> io::Result<OwnedFd> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(number, PidfdFlags::empty())?)
}

/// Whether the process behind the handle has ended: then the handle is readable, as `pidfd_open(2)` says.
pub(crate) fn has_ended(handle: impl AsFd) -> bool {
    let mut polled = [PollFd::new(&handle, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// The numbers of all processes.
pub(crate) fn all() -> io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// The inode of a namespace of a process, of the kind that `/proc` calls `kind`.
pub(crate) fn namespace(pid: u32, kind: &str) -> io::Result<u64> {
    Ok(fs::metadata(format!("/proc/{pid}/ns/{kind}"))?.ino())
}

/// The inode of the network namespace of this thread.
pub(crate) fn own_netns() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}
