//! Records to user space, and the count of those that found no room.

use aya_ebpf::{
    macros::map,
    maps::{PerCpuArray, RingBuf},
};
use lockne_abi::observe::Counts;

/// The loader sets the size.
#[map]
pub(crate) static RECORDS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

#[map]
static COUNTS: PerCpuArray<Counts> = PerCpuArray::with_max_entries(1, 0);

/// Changes this CPU's counts.
#[inline(always)]
pub(crate) fn count(change: impl FnOnce(&mut Counts)) {
    if let Some(counts) = COUNTS.get_ptr_mut(0) {
        // SAFETY: the map's own memory, and this CPU's own part of it.
        change(unsafe { &mut *counts });
    }
}

/// Counts a record that found room, or did not: a program cannot wait for a slow reader.
#[inline(always)]
pub(crate) fn count_kept(kept: bool) {
    count(|counts| {
        if kept {
            counts.kept += 1;
        } else {
            counts.lost += 1;
        }
    });
}
