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

/// The same, those that began first before others: a child holds all that its parent has until it executes another
/// program.
pub(crate) fn eldest_first() -> io::Result<Vec<u32>> {
    let mut processes = all()?;
    processes.sort_by_cached_key(|pid| {
        let started = Stat::of_task(*pid).map_or(u64::MAX, |stat| stat.started);
        (started, *pid)
    });
    Ok(processes)
}

/// What one line of `/proc/PID/stat` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) name: String,
    pub(crate) parent: u32,
    pub(crate) threads: u32,
    /// When it was started, in ticks since boot.
    pub(crate) started: u64,
    /// Whether it is a part of the kernel.
    pub(crate) is_kernel: bool,
    /// Whether it has ended, and waits for its parent to notice.
    pub(crate) has_ended: bool,
}

impl Stat {
    /// Reads that of a living process; `None` if there is none, or `pid` is the number of a thread.
    pub(crate) fn read(pid: u32) -> Option<Self> {
        // Threads can be opened below `/proc`, but are not listed there.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let leader = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
        if leader.trim() != pid.to_string() {
            return None;
        }
        Self::of_task(pid)
    }

    /// The same of a thread, too.
    pub(crate) fn of_task(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(line: &str) -> Option<Self> {
        /// `include/linux/sched.h`.
        const PF_KTHREAD: u64 = 0x0020_0000;
        // The name comes second, in brackets, and can have brackets and blanks in it.
        let (head, rest) = line.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        let flags: u64 = words.get(6)?.parse().ok()?;
        let threads = words.get(17)?.parse().ok()?;
        Some(Self {
            name: name.to_owned(),
            parent: words.get(1)?.parse().ok()?,
            threads,
            started: words.get(19)?.parse().ok()?,
            is_kernel: flags & PF_KTHREAD != 0,
            // A leader may end before its threads; then it is a zombie that still has some.
            has_ended: matches!(words.first(), Some(&("Z" | "X"))) && threads <= 1,
        })
    }
}

/// The inode of a namespace of a process, of the kind that `/proc` calls `kind`.
pub(crate) fn namespace(pid: u32, kind: &str) -> io::Result<u64> {
    Ok(fs::metadata(format!("/proc/{pid}/ns/{kind}"))?.ino())
}

/// The inode of the network namespace of this thread.
pub(crate) fn own_netns() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nasty_names_are_read_whole() {
        let line = "7 (a) R (1) S 3 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 12 0 99 1";

        let stat = Stat::parse(line).unwrap();

        assert_eq!(
            (stat.name.as_str(), stat.parent, stat.threads),
            ("a) R (1", 3, 12)
        );
        assert!(!stat.is_kernel && !stat.has_ended);
    }

    #[test]
    fn leader_that_ended_before_its_threads_lives() {
        let line =
            |threads| format!("7 (a) Z 3 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 {threads} 0 99 1");

        assert!(Stat::parse(&line(1)).unwrap().has_ended);
        assert!(!Stat::parse(&line(2)).unwrap().has_ended);
    }

    #[test]
    fn thread_is_no_process() {
        let thread = std::thread::spawn(|| {
            let me = rustix::thread::gettid().as_raw_nonzero().get();
            Stat::read(u32::try_from(me).unwrap())
        });

        assert!(Stat::read(std::process::id()).is_some());
        assert_eq!(thread.join().unwrap(), None);
    }
}
