//! The policies of all processes: the kernel's own table, mapped into our memory.
//!
//! One byte per possible process id. The kernel programs write bytes of it at any time, so we change
//! single bytes too: a system call could only write a whole page of the map, and undo what happened
//! beside. There is no count of members kept apart from this: two truths would drift.

use std::{
    fs, io,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU8, Ordering::Relaxed},
};

use rustix::mm::{MapFlags, ProtFlags};

use super::Error;

/// The table.
pub(super) struct Table {
    bytes: NonNull<AtomicU8>,
    length: usize,
}

// SAFETY: shared memory that is only touched by atomic operations.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// Maps `length` bytes of a map into our memory.
    pub(super) fn map(map: impl AsFd, length: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let bytes = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                MapFlags::SHARED,
                map,
                0,
            )
        }?;
        let bytes = NonNull::new(bytes.cast()).expect("the kernel does not choose address 0");
        Ok(Self { bytes, length })
    }

    /// The policy id of a process; 0 if it has none.
    pub(super) fn get(&self, pid: u32) -> u8 {
        self.byte(pid).map_or(0, |byte| byte.load(Relaxed))
    }

    /// Gives a process a policy id, or 0.
    pub(super) fn set(&self, pid: u32, id: u8) -> Result<(), Error> {
        let byte = self.byte(pid).ok_or_else(|| Error::ProcessBeyond {
            pid,
            highest: u32::try_from(self.length)
                .unwrap_or(u32::MAX)
                .saturating_sub(1),
        })?;
        let gone = Error::NoProcess { pid };
        if id == 0 {
            byte.store(0, Relaxed);
            return if is_running(pid) { Ok(()) } else { Err(gone) };
        }
        byte.store(id, Relaxed);
        // Only now: if a thread of it still runs, the kernel will clear the byte after the last one. If
        // none does, the kernel may have done so before we wrote.
        if is_running(pid) {
            Ok(())
        } else {
            let _ = byte.compare_exchange(id, 0, Relaxed, Relaxed);
            Err(gone)
        }
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
        (0..).zip(self.bytes()).filter_map(|(pid, byte)| {
            let id = byte.load(Relaxed);
            (id != 0).then_some((pid, id))
        })
    }

    fn byte(&self, pid: u32) -> Option<&AtomicU8> {
        self.bytes().get(usize::try_from(pid).ok()?)
    }

    fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: the mapping is this long and lives as long as `self`; all zero is valid.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), self.length) }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nothing borrows it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.bytes.as_ptr().cast(), self.length) };
        unmapped.expect("the mapping is as it was made");
    }
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
