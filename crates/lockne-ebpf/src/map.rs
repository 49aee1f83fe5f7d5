//! The maps, by the names that `lockne_abi::name` gives them.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray},
};
use lockne_abi::{
    Config, Counters, FORK_COUNTERS, LanKey, MAX_DEVICES, MAX_LAN_PREFIXES, Member, Policy,
    Resolvers,
};

/// The daemon maps this one into its memory: one process of a page cannot be set by a system call
/// without a race against those beside it. The loader sets the true number of pages.
#[map]
pub(crate) static PROCESSES: Array<[Member; lockne_abi::PROCESSES_PER_PAGE as usize]> =
    Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The loader sets the true number of pages.
#[map]
pub(crate) static EXECS: Array<[u8; lockne_abi::PROCESSES_PER_PAGE as usize]> =
    Array::with_max_entries(1, 0);

#[map]
pub(crate) static OVERFLOW: Array<u32> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static STRICT: Array<u32> = Array::with_max_entries(1, 0);

#[map]
static FORKS: PerCpuArray<u64> = PerCpuArray::with_max_entries(FORK_COUNTERS, 0);

#[map]
pub(crate) static POLICIES: Array<Policy> = Array::with_max_entries(lockne_abi::POLICIES, 0);

#[map]
pub(crate) static COUNTERS: PerCpuArray<Counters> =
    PerCpuArray::with_max_entries(lockne_abi::POLICIES, 0);

#[map]
pub(crate) static LAN: LpmTrie<LanKey, u8> = LpmTrie::with_max_entries(MAX_LAN_PREFIXES, 0);

#[map]
pub(crate) static DEVICES: HashMap<u32, u32> = HashMap::with_max_entries(MAX_DEVICES, 0);

#[map]
pub(crate) static RESOLVERS: Array<Resolvers> = Array::with_max_entries(lockne_abi::POLICIES, 0);

/// No program reads it: it is for the daemon that comes after the one that loaded this.
#[map]
pub(crate) static LOADED: Array<Config> = Array::with_max_entries(1, 0);

/// The policy `id`; without one, nothing may leave.
#[inline(always)]
pub(crate) fn policy(id: u8) -> Policy {
    POLICIES
        .get(u32::from(id))
        .copied()
        .unwrap_or(Policy::BLOCK)
}

/// Changes this CPU's counters of policy `id`.
#[inline(always)]
pub(crate) fn count(id: u8, change: impl FnOnce(&mut Counters)) {
    if let Some(counters) = COUNTERS.get_ptr_mut(u32::from(id)) {
        // SAFETY: the map's own memory, which lives as long as the program.
        change(unsafe { &mut *counters });
    }
}

/// Counts a process that has inherited a policy, or got one from a rule, for the program `by`: one may be interrupted by
/// another.
///
/// After it is written down: who reads these numbers and then the table has seen every such process in it.
#[inline(always)]
pub(crate) fn count_fork(by: u32) {
    if let Some(forks) = FORKS.get_ptr_mut(by) {
        // SAFETY: the map's own memory, and this CPU's own part of it.
        unsafe { forks.write_volatile(forks.read_volatile() + 1) }
    }
}

/// Counts a refusal under policy `id`.
#[inline(always)]
pub(crate) fn count_refusal(id: u8) {
    count(id, |counters| counters.refused += 1);
}
