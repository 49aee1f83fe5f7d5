//! Programs that start, and how they end.

use std::os::fd::BorrowedFd;

use aya::{Ebpf, programs::BtfTracePoint};
use lockne_abi::observe::{Counts, name};

use super::{Error, Run, missed::missed, object, ring::Ring};
use crate::kernel::patiently;

/// Room for records that nobody has read yet, in bytes: some ten thousand starts.
const ROOM: u32 = 16 << 20;

/// Programs that start, and how they end. Dropping it takes everything out of the kernel.
pub struct Life {
    ring: Ring,
    ebpf: Ebpf,
}

impl Life {
    /// Watches all programs of the machine, containers' too.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn start() -> Result<Self, Error> {
        let mut ebpf = object::load(0, false, ROOM)?;
        let types = object::kernel_types()?;
        // The end first: a program that starts in between would never end.
        for (name, tracepoint) in [
            (name::SEE_EXIT, "sched_process_exit"),
            (name::SEE_EXEC, "sched_process_exec"),
        ] {
            let program: &mut BtfTracePoint = ebpf
                .program_mut(name)
                .expect("the object has the program")
                .try_into()
                .expect("it is one for a tracepoint");
            patiently(|| program.load(tracepoint, &types))
                .and_then(|()| program.attach())
                .map_err(|error| Error::program(name, error))?;
        }
        Ok(Self {
            ring: Ring::take(&mut ebpf)?,
            ebpf,
        })
    }

    /// Hands what is there to `see`, until it says no.
    pub fn drain(&mut self, mut see: impl FnMut(&Run) -> bool) {
        self.ring
            .drain(|record| Run::read(record).is_none_or(|run| see(&run)));
    }

    /// How many starts there were, and how many records. Starts and ends that the kernel told nobody count as lost.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn counts(&self) -> Result<Counts, Error> {
        let mut counts = self.ring.counts()?;
        counts.lost += missed(&self.ebpf, &[name::SEE_EXEC, name::SEE_EXIT])?;
        Ok(counts)
    }

    /// Readable when something happened.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ring.fd()
    }
}

impl std::fmt::Debug for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Life")
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}
