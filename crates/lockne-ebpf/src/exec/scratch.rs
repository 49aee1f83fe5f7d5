//! What the decision at an exec has no room for on the stack.

use aya_ebpf::{helpers::generated::bpf_probe_read_kernel_str, macros::map, maps::PerCpuArray};
use lockne_abi::{GroupName, MAX_GROUP_NAME, Place, RuleBits, Script};

#[map]
pub(super) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(2, 0);

/// How deep a cgroup can be; what is deeper is matched by its lowest names, and by no path.
pub(super) const MAX_DEPTH: usize = 16;

/// How long the path of a script can be.
pub(super) const MAX_PATH: usize = 256;

/// What has no room on the stack, by the program that decides: one does not run twice at once on a CPU.
///
/// The single numbers are here because the verifier does not follow what is in a map: it would look at
/// each loop once for each value that they can have.
#[repr(C)]
pub(super) struct Scratch {
    pub(super) depth: u32,
    pub(super) scope: u32,
    pub(super) path_node: u32,
    pub(super) end: u32,
    pub(super) dots: u32,
    /// From the cgroup up.
    pub(super) names: [[u64; MAX_GROUP_NAME / 8]; MAX_DEPTH],
    pub(super) place: Place,
    pub(super) bits: RuleBits,
    pub(super) hits: RuleBits,
    pub(super) group: GroupName,
    pub(super) path: [u8; MAX_PATH],
    pub(super) script: Script,
}

/// A number that the verifier shall not follow.
#[inline(always)]
pub(super) fn read(number: &u32) -> u32 {
    // SAFETY: a reference.
    unsafe { core::ptr::from_ref(number).read_volatile() }
}

/// The other half of [`read`].
#[inline(always)]
pub(super) fn write(number: &mut u32, value: u32) {
    // SAFETY: a reference.
    unsafe { core::ptr::from_mut(number).write_volatile(value) }
}

/// Reads a text of the kernel; says its length with the zero at its end.
///
/// # Safety
///
/// None: the helper checks the address.
#[inline(always)]
pub(super) unsafe fn read_name(to: &mut [u8], from: *const u8) -> i64 {
    // SAFETY: the helper writes no more than the length.
    unsafe { bpf_probe_read_kernel_str(to.as_mut_ptr().cast(), to.len() as u32, from.cast()) }
}
