//! The policies of all processes: the kernel's own table, mapped into our memory.
//!
//! Two bytes per possible process id. The kernel programs write words of it at any time, so we change
//! single words too: a system call could only write a whole page of the map, and undo what happened
//! beside. There is no count of members kept apart from this: two truths would drift.

use std::{
    fs, io,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

use lockne_abi::Member;
use rustix::mm::{MapFlags, ProtFlags};

use super::Error;

/// The table.
pub(super) struct Table {
    words: NonNull<AtomicU16>,
    length: usize,
}

// SAFETY: shared memory that is only touched by atomic operations.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// Maps a map for `length` processes into our memory.
    pub(super) fn map(map: impl AsFd, length: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let words = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length * size_of::<Member>(),
                protection,
                MapFlags::SHARED,
                map,
                0,
            )
        }?;
        let words = NonNull::new(words.cast()).expect("the kernel does not choose address 0");
        Ok(Self { words, length })
    }

    /// Under what a process stands.
    pub(super) fn get(&self, pid: u32) -> Member {
        self.word(pid)
            .map_or(Member::FREE, |word| Member(word.load(Relaxed)))
    }

    /// Puts a process under something else.
    pub(super) fn set(&self, pid: u32, member: Member) -> Result<(), Error> {
        let word = self.place(pid)?;
        word.store(member.0, Relaxed);
        settle(word, pid, member)
    }

    /// The same, unless it is not `from` any more; says whether it was.
    pub(super) fn exchange(&self, pid: u32, from: Member, to: Member) -> Result<bool, Error> {
        let word = self.place(pid)?;
        let done = word.compare_exchange(from.0, to.0, Relaxed, Relaxed);
        settle(word, pid, to).map(|()| done.is_ok())
    }

    fn place(&self, pid: u32) -> Result<&AtomicU16, Error> {
        self.word(pid).ok_or_else(|| Error::ProcessBeyond {
            pid,
            highest: self.room().saturating_sub(1),
        })
    }

    /// Every process with policy `id`.
    pub(super) fn with(&self, id: u8) -> Vec<u32> {
        self.policed()
            .filter(|(_, found)| *found == id)
            .map(|(pid, _)| pid)
            .collect()
    }

    /// Every process with a policy, and its id.
    pub(super) fn policed(&self) -> impl Iterator<Item = (u32, u8)> {
        (0..).zip(self.words()).filter_map(|(pid, word)| {
            let id = Member(word.load(Relaxed)).policy();
            (id != 0).then_some((pid, id))
        })
    }

    /// How many process ids there is room for.
    pub(super) fn room(&self) -> u32 {
        u32::try_from(self.length).unwrap_or(u32::MAX)
    }

    fn word(&self, pid: u32) -> Option<&AtomicU16> {
        self.words().get(usize::try_from(pid).ok()?)
    }

    fn words(&self) -> &[AtomicU16] {
        // SAFETY: the mapping is this long and lives as long as `self`; all zero is valid.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.length) }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nothing borrows it any more.
        let unmapped = unsafe {
            rustix::mm::munmap(
                self.words.as_ptr().cast(),
                self.length * size_of::<Member>(),
            )
        };
        unmapped.expect("the mapping is as it was made");
    }
}

/// Process ids are below this: `kernel.pid_max`.
pub(super) fn pid_max() -> Result<u32, Error> {
    const HIGHEST: &str = "/proc/sys/kernel/pid_max";
    let read = |source| Error::Read {
        path: HIGHEST.into(),
        source,
    };
    let text = fs::read_to_string(HIGHEST).map_err(read)?;
    text.trim()
        .parse()
        .map_err(|error| read(io::Error::other(error)))
}

/// Undoes what was written for a process that has ended.
///
/// Only after it was written: if a thread of it still runs, the kernel will clear the word after the last
/// one. If none does, the kernel may have done so before we wrote.
fn settle(word: &AtomicU16, pid: u32, member: Member) -> Result<(), Error> {
    if is_running(pid) {
        return Ok(());
    }
    let _ = word.compare_exchange(member.0, Member::FREE.0, Relaxed, Relaxed);
    Err(Error::NoProcess { pid })
}

/// Whether `pid` is a process of which a thread still runs user code, and not the id of a thread.
fn is_running(pid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return false;
    };
    let is_leader = status
        .lines()
        .filter_map(|line| line.strip_prefix("Tgid:"))
        .any(|tgid| tgid.trim() == pid.to_string());
    is_leader
        && fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| {
            tasks
                .filter_map(Result::ok)
                .filter_map(|task| fs::read_to_string(task.path().join("stat")).ok())
                .any(|stat| !is_exiting(&stat))
        })
}

/// Whether a line of `/proc/PID/stat` is that of a task on its way out.
///
/// The kernel sets the flag before it takes the thread off the count that `forget_exit` looks at.
fn is_exiting(stat: &str) -> bool {
    const PF_EXITING: u64 = 4;
    // The name comes second, in brackets, and can have brackets and blanks in it.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(6))
        .and_then(|flags| flags.parse::<u64>().ok())
        .is_none_or(|flags| flags & PF_EXITING != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_found_behind_a_nasty_name() {
        assert!(!is_exiting("7 (a) R 1 ) S 1 7 7 0 -1 4194304 1 2"));
        assert!(is_exiting("7 (cat) Z 1 7 7 0 -1 4194308 1 2"));
    }

    #[test]
    fn we_run_and_a_thread_is_no_process() {
        let thread = std::thread::spawn(|| {
            let me = rustix::thread::gettid().as_raw_nonzero().get();
            is_running(u32::try_from(me).unwrap())
        });

        assert!(is_running(std::process::id()));
        assert!(!thread.join().unwrap());
    }
}
