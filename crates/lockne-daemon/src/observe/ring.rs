//! Records from the kernel, and how many there were.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, RingBuf},
};
use lockne_abi::observe::{Counts, name};

use crate::kernel::Error;

pub(super) struct Ring {
    records: RingBuf<MapData>,
    counts: PerCpuArray<MapData, Counts>,
    /// How many records came out of it.
    taken: u64,
}

/// How long a program of the kernel may be interrupted while it writes a record.
const PATIENCE: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_millis(1);

impl Ring {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let mut take = |name| ebpf.take_map(name).expect("the object has the map");
        let records = take(name::RECORDS);
        let counts = take(name::COUNTS);
        Ok(Self {
            records: RingBuf::try_from(records).map_err(Error::map(name::RECORDS))?,
            counts: PerCpuArray::try_from(counts).map_err(Error::map(name::COUNTS))?,
            taken: 0,
        })
    }

    /// Hands each record that is there to `see`, until it says no.
    ///
    /// The ring ends before a record that is still being written (`BPF_RINGBUF_BUSY_BIT`), though others behind it
    /// are whole. Those are waited for: this may be the last time that anybody looks.
    pub(super) fn drain(&mut self, mut see: impl FnMut(&[u8]) -> bool) {
        let kept = self.counts().map_or(0, |counts| counts.kept);
        let end = Instant::now() + PATIENCE;
        loop {
            while let Some(record) = self.records.next() {
                self.taken += 1;
                if !see(&record) {
                    return;
                }
            }
            if self.taken >= kept || Instant::now() >= end {
                return;
            }
            thread::sleep(REST);
        }
    }

    pub(super) fn counts(&self) -> Result<Counts, Error> {
        let all = self.counts.get(&0, 0).map_err(Error::map(name::COUNTS))?;
        Ok(all.iter().fold(Counts::default(), |sum, one| Counts {
            seen: sum.seen + one.seen,
            kept: sum.kept + one.kept,
            lost: sum.lost + one.lost,
            unmetered: sum.unmetered + one.unmetered,
        }))
    }

    /// Readable when there are records.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns its descriptor, and is borrowed as long.
        unsafe { BorrowedFd::borrow_raw(self.records.as_raw_fd()) }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("fd", &self.fd().as_fd())
            .finish_non_exhaustive()
    }
}
