//! What most programs are told by, that no rule names them.
//!
//! When a program starts, nothing that lockne needs is near the processor, its own code included. So what takes time
//! is each cache line, and this gets by with few.

use aya_ebpf::{
    helpers::{bpf_get_current_uid_gid, generated::bpf_get_current_cgroup_id},
    macros::map,
    maps::Array,
};
use lockne_abi::{Filter, Hash, SHORT_NAME, UNNAMED_GROUPS, Unnamed, look, user_bit};

use super::{Exec, File, named::RULES};
use crate::{config, family::load};

/// By slot. Beside what is seen of cgroups in a hash map, as this takes one cache line where that takes five.
#[map]
static UNNAMED: Array<Unnamed> = Array::with_max_entries(2, 0);

/// Whether a rule may name anything of the program.
#[inline(always)]
pub(super) fn may_be_named(exec: Exec) -> bool {
    let mut may = false;
    if exec.looks(look::EXECUTABLE)
        && let Some(set) = RULES.get(exec.slot())
    {
        may |= may_file_be_named(&set.filter, exec);
    }
    if exec.looks(look::USER) {
        may |= exec.outline.users & user_bit(bpf_get_current_uid_gid() as u32) != 0;
    }
    if exec.looks(look::SCRIPT) {
        may |= exec.is_script();
    }
    if exec.looks(look::GROUP) {
        may |= !is_unnamed(exec.slot());
    }
    may
}

/// Whether the filter has the file, or the place where it is.
#[inline(always)]
fn may_file_be_named(filter: &Filter, exec: Exec) -> bool {
    let File {
        device,
        inode,
        name,
        directory,
    } = exec.file();
    let mut place = Hash::of_file(device, directory);
    // SAFETY: a file has a name.
    unsafe {
        let length: u32 = load(name, config::dentry_length());
        if length < SHORT_NAME {
            // The verifier has to see the bound, too.
            let length = core::hint::black_box(length);
            for at in 0..SHORT_NAME {
                if at >= length {
                    break;
                }
                let byte: u8 = load(name, config::dentry_short_name() + at);
                place = place.and(byte.into());
            }
        }
    }
    filter.may_contain(Hash::of_file(device, inode)) | filter.may_contain(place)
}

/// Whether it is known that no rule names the cgroup.
#[inline(always)]
fn is_unnamed(slot: u32) -> bool {
    // SAFETY: it takes nothing.
    let group = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: the map's own memory. A word is written as a whole.
    unnamed(slot, group).is_some_and(|known| unsafe { known.read_volatile() } == group)
}

#[inline(always)]
pub(super) fn set_unnamed(slot: u32, group: u64) {
    if let Some(known) = unnamed(slot, group) {
        // SAFETY: as above.
        unsafe { known.write_volatile(group) }
    }
}

/// Where this cgroup is written down, or another for which there is no other room.
#[inline(always)]
fn unnamed(slot: u32, group: u64) -> Option<*mut u64> {
    let groups = UNNAMED.get_ptr_mut(slot)?;
    let at = group as usize % UNNAMED_GROUPS;
    // SAFETY: the remainder is within the array.
    Some(unsafe { groups.cast::<u64>().add(at) })
}
