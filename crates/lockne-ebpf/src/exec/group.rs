//! The rules that name a program's cgroup.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC, helpers::generated::bpf_get_current_cgroup_id, macros::map,
    maps::HashMap,
};
use lockne_abi::{Group, GroupName, MAX_GROUP_NAME, RULE_WORDS, RuleBits, Seen, node};

use super::{
    Exec, filter,
    named::ENTRIES,
    scratch::{MAX_DEPTH, Scratch, read, read_name, write},
};
use crate::{config, family::load};

/// A path has a node for each of its parts.
#[map]
static GROUPS: HashMap<GroupName, Group> =
    HashMap::with_max_entries(4 * ENTRIES, BPF_F_NO_PREALLOC);

/// Nothing is ever taken out while it can be read: that would want a lock. When it is full, cgroups are
/// walked over at each exec.
#[map]
static SEEN: HashMap<Seen, RuleBits> = HashMap::with_max_entries(2048, 0);

/// Finds those of the cgroup that runs now: [`Scratch::bits`].
#[inline(always)]
pub(super) fn find(exec: Exec, scratch: &mut Scratch) {
    let seen = Seen {
        generation: exec.generation,
        padding: 0,
        // SAFETY: it takes nothing.
        group: unsafe { bpf_get_current_cgroup_id() },
    };
    // SAFETY: nothing is removed while its generation is in force.
    if let Some(bits) = unsafe { SEEN.get(seen) } {
        scratch.bits = *bits;
        return;
    }
    walk(exec.slot(), exec.task, scratch);
    if scratch.bits == RuleBits::NONE {
        filter::set_unnamed(exec.slot(), seen.group);
    }
    // When it is full, the next exec has to walk again.
    let bits = &scratch.bits;
    let _ = SEEN.insert(seen, bits, 0);
}

/// Finds the rules by the names of the cgroup and of those that it is in.
#[inline(always)]
fn walk(slot: u32, task: *const u8, scratch: &mut Scratch) {
    write(&mut scratch.depth, 0);
    // SAFETY: the kernel passes a valid task; each task is in a cgroup, and each of these has a name.
    unsafe {
        let groups: *const u8 = load(task, config::task_cgroups());
        let group: *const u8 = load(groups, config::css_set_cgroup());
        let mut at: *const u8 = load(group, config::cgroup_node());
        for depth in 0..MAX_DEPTH {
            if at.is_null() {
                break;
            }
            let name = &mut scratch.names[depth];
            for word in name.iter_mut() {
                core::ptr::from_mut(word).write_volatile(0);
            }
            let room = core::ptr::from_mut(name).cast::<[u8; MAX_GROUP_NAME]>();
            read_name(&mut *room, load(at, config::node_name()));
            at = load(at, config::node_parent());
            write(&mut scratch.depth, depth as u32 + 1);
        }
        let start = if at.is_null() { node::ROOT } else { node::NONE };
        write(&mut scratch.path_node, start);
    }
    scratch.bits = RuleBits::NONE;
    scratch.group.slot = slot;
    // Programs of a Flatpak or a Snap are in one such scope.
    write(&mut scratch.scope, 0);
    // The last is the root, which has no name.
    for i in 2..=MAX_DEPTH {
        let at = read(&scratch.depth).wrapping_sub(i as u32) as usize;
        if at >= MAX_DEPTH {
            break;
        }
        take_name(scratch, at);
        let [first, second, ..] = scratch.names[at];
        let is_flatpak = first == u64::from_le_bytes(*b"app-flat")
            && second as u32 == u32::from_le_bytes(*b"pak-");
        if is_flatpak || first << 24 == u64::from_le_bytes(*b"snap.\0\0\0") << 24 {
            write(&mut scratch.scope, at as u32 + 1);
        }
        let parent = read(&scratch.path_node);
        if parent != node::NONE {
            let node = add(scratch, parent);
            write(&mut scratch.path_node, node);
        }
        add(scratch, node::UNIT);
    }
    let at = read(&scratch.scope).wrapping_sub(1) as usize;
    if at < MAX_DEPTH {
        take_name(scratch, at);
        cut(&mut scratch.group.name, &mut scratch.end, &mut scratch.dots);
        add(scratch, node::STEM);
    }
}

/// Copies a cgroup's name to where it is looked up, by words: the compiler's own copy goes by bytes.
#[inline(always)]
fn take_name(scratch: &mut Scratch, at: usize) {
    let from = &raw const scratch.names[at];
    let to = (&raw mut scratch.group.name).cast::<u64>();
    for word in 0..MAX_GROUP_NAME / 8 {
        // SAFETY: both are so long, and the name begins at a multiple of eight.
        unsafe {
            to.add(word)
                .write_volatile(from.cast::<u64>().add(word).read_volatile());
        }
    }
}

/// Adds the rules for the name below `parent`; returns the node that it leads to.
#[inline(always)]
fn add(scratch: &mut Scratch, parent: u32) -> u32 {
    scratch.group.parent = parent;
    // By reference: a copy has no room on the stack.
    let name = &scratch.group;
    // SAFETY: elements of a slot in force are not removed.
    let Some(group) = (unsafe { GROUPS.get(name) }) else {
        return node::NONE;
    };
    for word in 0..RULE_WORDS {
        scratch.bits.words[word] |= group.bits.words[word];
    }
    group.node
}

/// Cuts off what differs from one instance of an application to the next:
/// `app-flatpak-ID-NUMBER.scope` and `snap.NAME.APP....scope`.
#[inline(always)]
fn cut(name: &mut [u8; MAX_GROUP_NAME], end: &mut u32, dots: &mut u32) {
    write(end, 0);
    // Of a Flatpak, what counts is the last hyphen; of a Snap, the second dot.
    write(dots, u32::from(name[0] == b'a') << 8);
    for (at, byte) in name.iter().enumerate() {
        if *byte == b'-' && read(dots) >= 1 << 8 {
            write(end, at as u32);
        }
        if *byte == b'.' {
            let count = read(dots) + 1;
            write(dots, count);
            if count == 2 {
                write(end, at as u32);
            }
        }
    }
    for (at, byte) in name.iter_mut().enumerate() {
        if at as u32 >= read(end) {
            *byte = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stem(name: &str) -> String {
        let mut bytes = [0; MAX_GROUP_NAME];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        cut(&mut bytes, &mut 0, &mut 0);
        String::from_utf8(bytes.to_vec())
            .unwrap()
            .trim_end_matches('\0')
            .to_owned()
    }

    #[test]
    fn instances_of_an_application_have_one_stem() {
        assert_eq!(
            stem("app-flatpak-org.mozilla.firefox-2034923923.scope"),
            "app-flatpak-org.mozilla.firefox"
        );
        assert_eq!(
            stem("snap.firefox.firefox-4b9dc5f1-7b4d-4a0e-9d3e-0b5f1c1f9a66.scope"),
            "snap.firefox"
        );
        assert_eq!(stem("snap.my-app.daemon.service"), "snap.my-app");
    }
}
