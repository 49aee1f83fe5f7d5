//! Records from the kernel, and how many there were.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, RingBuf},
};
use lockne_abi::observe::{Counts, name};

use crate::kernel::Error;

pub(super) struct Ring {
    records: RingBuf<MapData>,
    counts: PerCpuArray<MapData, Counts>,
}

impl Ring {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let mut take = |name| ebpf.take_map(name).expect("the object has the map");
        let records = take(name::RECORDS);
        let counts = take(name::COUNTS);
        Ok(Self {
            records: RingBuf::try_from(records).map_err(Error::map(name::RECORDS))?,
            counts: PerCpuArray::try_from(counts).map_err(Error::map(name::COUNTS))?,
        })
    }

    /// Hands each record that is there to `see`, until it says no.
    pub(super) fn drain(&mut self, mut see: impl FnMut(&[u8]) -> bool) {
        while let Some(record) = self.records.next() {
            if !see(&record) {
                break;
            }
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
