//! Sending records to user space, and counting those that found no room.

use aya_ebpf::maps::{PerCpuArray, RingBuf};

/// Sends `record`, or counts it as lost if user space does not read fast enough.
///
/// A program cannot wait.
#[inline(always)]
pub fn send<T>(ring: &RingBuf, lost: &PerCpuArray<u64>, record: &T) {
    if ring.output::<T>(record, 0).is_err() {
        count(lost, 0, 1);
    }
}

/// Adds to this CPU's copy of a counter.
#[inline(always)]
pub fn count(counters: &PerCpuArray<u64>, index: u32, amount: u64) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: the map gave a valid address, and this CPU's copy is ours alone.
        unsafe { *counter += amount };
    }
}
