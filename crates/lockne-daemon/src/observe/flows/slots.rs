//! The places of flows, shared with the kernel programs.

use std::{
    io,
    os::fd::BorrowedFd,
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicU64, Ordering},
};

use lockne_abi::flow::{Flow, WAYS, place};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const WORDS: usize = size_of::<Flow>() / 8;
const STARTED: usize = std::mem::offset_of!(Flow, started) / 8;

/// An array map, as memory.
pub(super) struct Slots {
    start: NonNull<[AtomicU64; WORDS]>,
    count: usize,
}

// SAFETY: atomics that belong to the kernel; the mapping is of the process, not of a thread.
unsafe impl Send for Slots {}

impl Slots {
    pub(super) fn map(fd: BorrowedFd<'_>, count: u32) -> io::Result<Self> {
        let count = count as usize;
        // SAFETY: a new mapping, wherever the kernel likes.
        let start = unsafe {
            mmap(
                null_mut(),
                count * size_of::<Flow>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, count })
    }

    fn words(&self, slot: u32) -> &[AtomicU64; WORDS] {
        assert!((slot as usize) < self.count, "the kernel's place is one");
        // SAFETY: within the mapping, which lives as long as this does; the kernel changes words only.
        unsafe { self.start.add(slot as usize).as_ref() }
    }

    /// What is in a place, if it is complete.
    pub(super) fn get(&self, slot: u32) -> Option<Flow> {
        let place = self.words(slot);
        let key = place[0].load(Ordering::Acquire);
        if key == 0 || place[STARTED].load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut words = [0_u64; WORDS];
        for (word, from) in words.iter_mut().zip(place) {
            *word = from.load(Ordering::Relaxed);
        }
        // SAFETY: as large, integers only, and aligned by the read.
        let flow: Flow = unsafe { words.as_ptr().cast::<Flow>().read_unaligned() };
        let is_whole = flow.started != 0 && place[0].load(Ordering::Acquire) == key;
        is_whole.then_some(flow)
    }

    /// Puts a flow into a free place.
    pub(super) fn claim(&self, flow: &Flow) -> Option<u32> {
        // SAFETY: as large, and integers only.
        let words: [u64; WORDS] = unsafe { std::mem::transmute_copy(flow) };
        for way in 0..WAYS {
            let slot = place(flow.key, way);
            let place = self.words(slot);
            let claimed =
                place[0].compare_exchange(0, flow.key, Ordering::AcqRel, Ordering::Acquire);
            if claimed.is_err() {
                continue;
            }
            for (word, to) in words.iter().zip(place).skip(1) {
                to.store(*word, Ordering::Release);
            }
            return Some(slot);
        }
        None
    }

    /// Empties a place, if `key` is still there.
    pub(super) fn free(&self, slot: u32, key: u64) {
        let place = self.words(slot);
        if place[0].load(Ordering::Acquire) != key {
            return;
        }
        for word in &place[1..] {
            word.store(0, Ordering::Release);
        }
        place[0].store(0, Ordering::Release);
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and not used any more.
        let _unmapped =
            unsafe { munmap(self.start.as_ptr().cast(), self.count * size_of::<Flow>()) };
    }
}
