//! `tp_btf/sched_process_exec`: rules give a program its policy before its first instruction.
//!
//! The kernel has the new program in place and runs nothing of it yet, so there is no race: not with its
//! first packet, and not with a thread, for an exec leaves one only. Needs Linux 5.5, and typed loads
//! from 5.5; names are read by `bpf_probe_read_kernel_str`.
//!
//! The daemon writes a whole set of rules beside the one in force, then raises the generation. Before it
//! writes over the old one, it waits until nobody can be reading that (a grace period of RCU).

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::{
        bpf_get_current_uid_gid,
        generated::{bpf_get_current_cgroup_id, bpf_probe_read_kernel_str},
    },
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use lockne_abi::{
    Executable, Group, GroupName, Hash, MAX_GROUP_NAME, MAX_PLACE_NAME, MAX_RULES, MAX_SCRIPT_NAME,
    Member, Place, RULE_WORDS, RuleBits, RuleSet, SHORT_NAME, Script, Seen, UNNAMED_GROUPS,
    Unnamed, User, look, node,
};

use crate::{
    config,
    family::{Task, load, set},
    map, process, strict,
};

/// Each rule once in either slot, and room for what goes while the next comes.
const ENTRIES: u32 = 4 * MAX_RULES;

#[map]
static GENERATION: Array<u32> = Array::with_max_entries(1, 0);

#[map]
static RULES: Array<RuleSet> = Array::with_max_entries(2, 0);

#[map]
static EXECUTABLES: HashMap<Executable, RuleBits> =
    HashMap::with_max_entries(ENTRIES, BPF_F_NO_PREALLOC);

#[map]
static PLACES: HashMap<Place, RuleBits> = HashMap::with_max_entries(ENTRIES, BPF_F_NO_PREALLOC);

#[map]
static SCRIPTS: HashMap<Script, RuleBits> = HashMap::with_max_entries(ENTRIES, BPF_F_NO_PREALLOC);

#[map]
static USERS: HashMap<User, RuleBits> = HashMap::with_max_entries(ENTRIES, BPF_F_NO_PREALLOC);

/// A path has a node for each of its parts.
#[map]
static GROUPS: HashMap<GroupName, Group> =
    HashMap::with_max_entries(4 * ENTRIES, BPF_F_NO_PREALLOC);

/// Nothing is ever taken out while it can be read: that would want a lock. When it is full, cgroups are
/// walked over at each exec.
#[map]
static SEEN: HashMap<Seen, RuleBits> = HashMap::with_max_entries(2048, 0);

/// By slot. Beside [`SEEN`], as this takes one cache line where that takes five.
#[map]
static UNNAMED: Array<Unnamed> = Array::with_max_entries(2, 0);

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// How deep a cgroup can be; what is deeper is matched by its lowest names, and by no path.
const MAX_DEPTH: usize = 16;

/// How long the path of a script can be.
const MAX_PATH: usize = 256;

/// What has no room on the stack. Tracepoints do not nest on a CPU.
///
/// The single numbers are here because the verifier does not follow what is in a map: it would look at
/// each loop once for each value that they can have.
#[repr(C)]
struct Scratch {
    depth: u32,
    scope: u32,
    path_node: u32,
    end: u32,
    dots: u32,
    /// From the cgroup up.
    names: [[u64; MAX_GROUP_NAME / 8]; MAX_DEPTH],
    place: Place,
    bits: RuleBits,
    hits: RuleBits,
    group: GroupName,
    path: [u8; MAX_PATH],
    script: Script,
}

/// Gives a program the policy of the first rule that names it. Without such a rule it keeps the one that
/// it was started under.
#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn decide_exec(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(0);
    let exec: *const u8 = ctx.arg(2);
    let generation = generation();
    let tgid = Task::of(task).tgid;
    // No `Option`: the compiler would carry along what is in none, which the verifier refuses.
    let record = process::record(tgid).unwrap_or(core::ptr::null_mut());
    let member = if record.is_null() {
        Member::FREE
    } else {
        // SAFETY: the map's own memory.
        unsafe { record.read_volatile() }
    };
    let mut policy = u32::from(member.policy());
    if generation != 0 && !member.is_chosen() {
        let decided = decide(generation, task, exec, member);
        if decided != 0 && decided != policy {
            policy = decided;
            if record.is_null() {
                process::overflow();
            } else {
                set(record, Member::by_rule(decided as u8));
                map::count_fork();
            }
        }
    }
    if policy != 0 {
        // A program may gain rights by this, and it may have sockets that are older than its policy.
        strict::consider();
    }
    0
}

#[inline(always)]
fn generation() -> u32 {
    GENERATION
        .get_ptr(0)
        // SAFETY: the map's own memory. Volatile: the daemon changes it at any time.
        .map_or(0, |number| unsafe { number.read_volatile() })
}

/// The policy that the rules say; 0 if they say none.
///
/// Most programs are named by no rule, and nothing is near the processor when a program starts: what takes
/// time is each cache line, those of the code too. So what finds that out is short, and apart.
#[inline(always)]
fn decide(generation: u32, task: *const u8, exec: *const u8, member: Member) -> u32 {
    let slot = generation & 1;
    let Some(set) = RULES.get(slot) else {
        return 0;
    };
    if set.words == 0 {
        return fallback(set, member);
    }
    let policy = if may_be_named(generation, set, exec) {
        first(generation, set, task, exec)
    } else {
        set.everybody
    };
    if policy == 0 {
        fallback(set, member)
    } else {
        policy
    }
}

#[inline(always)]
fn fallback(set: &RuleSet, member: Member) -> u32 {
    if member == Member::FREE {
        set.fallback
    } else {
        0
    }
}

#[inline(always)]
fn looks(set: &RuleSet, at: usize) -> bool {
    set.looks >> at & 1 == 1
}

/// Whether a rule may name anything of the program.
#[inline(always)]
fn may_be_named(generation: u32, set: &RuleSet, exec: *const u8) -> bool {
    let mut may = false;
    if looks(set, look::EXECUTABLE) {
        may |= may_file_be_named(set, exec);
    }
    if looks(set, look::USER) {
        may |= set
            .filter
            .may_contain(Hash::of_user(bpf_get_current_uid_gid() as u32));
    }
    if looks(set, look::SCRIPT) {
        may |= is_script(exec);
    }
    if looks(set, look::GROUP) {
        may |= !is_unnamed(generation & 1);
    }
    may
}

/// The policy of the first rule that names the program; 0 if none does.
#[inline(always)]
fn first(generation: u32, set: &RuleSet, task: *const u8, exec: *const u8) -> u32 {
    let slot = generation & 1;
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the map's own memory, and this CPU's own part of it.
    let scratch = unsafe { &mut *scratch };
    for word in &mut scratch.hits.words {
        *word = !0;
    }
    if looks(set, look::EXECUTABLE) {
        let (known, place) = by_file(slot, exec, scratch);
        keep(set, look::EXECUTABLE, known, place, &mut scratch.hits);
    }
    if looks(set, look::USER) {
        keep(set, look::USER, by_user(slot), None, &mut scratch.hits);
    }
    if looks(set, look::SCRIPT) {
        let script = by_script(slot, exec, scratch);
        keep(set, look::SCRIPT, script, None, &mut scratch.hits);
    }
    if looks(set, look::GROUP) {
        let seen = seen(generation);
        // SAFETY: nothing is removed while its generation is in force.
        if let Some(bits) = unsafe { SEEN.get(seen) } {
            keep(set, look::GROUP, Some(bits), None, &mut scratch.hits);
        } else {
            walk(slot, task, scratch);
            if scratch.bits == RuleBits::NONE {
                set_unnamed(slot, seen.group);
            }
            // When it is full, the next exec has to walk again.
            let _ = SEEN.insert(seen, scratch.bits, 0);
            keep(
                set,
                look::GROUP,
                Some(&scratch.bits),
                None,
                &mut scratch.hits,
            );
        }
    }
    for word in 0..RULE_WORDS {
        let hit = scratch.hits.words[word];
        if word as u32 >= set.words {
            break;
        }
        if hit != 0 {
            let rule = word * 64 + hit.trailing_zeros() as usize;
            // The compiler knows that this is in bounds, and the verifier has to be shown.
            let rule = core::hint::black_box(rule) & (MAX_RULES as usize - 1);
            return u32::from(set.policies[rule]);
        }
    }
    0
}

/// Keeps of `hits` the rules that do not ask, and those that either of two sets has.
///
/// One thing after another, and what came of it in a map: to the verifier, all cases are one again.
#[inline(always)]
fn keep(
    set: &RuleSet,
    look: usize,
    one: Option<&RuleBits>,
    other: Option<&RuleBits>,
    hits: &mut RuleBits,
) {
    let mut at = |word: usize| {
        let of = |bits: Option<&RuleBits>| bits.map_or(0, |bits| bits.words[word]);
        hits.words[word] &= set.any[look].words[word] | of(one) | of(other);
    };
    (0..FEW).for_each(&mut at);
    if set.words as usize > FEW {
        (FEW..RULE_WORDS).for_each(at);
    }
}

/// How many words of bits most sets of rules get by with.
const FEW: usize = 1;

/// Whether the filter has the file, or the place where it is.
#[inline(always)]
fn may_file_be_named(set: &RuleSet, exec: *const u8) -> bool {
    // SAFETY: what the kernel executes has a file, and that an inode, a name and a directory.
    unsafe {
        let file: *const u8 = load(exec, config::exec_file());
        let inode: *const u8 = load(file, config::file_inode());
        let super_block: *const u8 = load(inode, config::inode_super());
        let device = load(super_block, config::super_device());
        let executable = Hash::of_file(device, load(inode, config::inode_number()));
        let name: *const u8 = load(file, config::file_dentry());
        let directory: *const u8 = load(name, config::dentry_parent());
        let directory: *const u8 = load(directory, config::dentry_inode());
        let mut place = Hash::of_file(device, load(directory, config::inode_number()));
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
        set.filter.may_contain(executable) | set.filter.may_contain(place)
    }
}

/// The rules that name the file by its inode, and those that name its place.
#[inline(always)]
fn by_file(
    slot: u32,
    exec: *const u8,
    scratch: &mut Scratch,
) -> (Option<&'static RuleBits>, Option<&'static RuleBits>) {
    // SAFETY: what the kernel executes has a file, and that an inode, a name and a directory.
    unsafe {
        let file: *const u8 = load(exec, config::exec_file());
        let inode: *const u8 = load(file, config::file_inode());
        let super_block: *const u8 = load(inode, config::inode_super());
        let device: u32 = load(super_block, config::super_device());
        let known = EXECUTABLES.get(Executable {
            slot,
            device,
            inode: load(inode, config::inode_number()),
        });
        let name: *const u8 = load(file, config::file_dentry());
        let directory: *const u8 = load(name, config::dentry_parent());
        let directory: *const u8 = load(directory, config::dentry_inode());
        let place = &mut scratch.place;
        place.slot = slot;
        place.device = device;
        place.directory = load(directory, config::inode_number());
        place.name = [0; MAX_PLACE_NAME];
        // One that fills the room was cut off; no rule has such a name.
        read_name(&mut place.name, load(name, config::dentry_name()));
        (known, PLACES.get(*place))
    }
}

/// The rules that name the real user.
#[inline(always)]
fn by_user(slot: u32) -> Option<&'static RuleBits> {
    let id = bpf_get_current_uid_gid() as u32;
    // SAFETY: elements of a slot in force are not removed.
    unsafe { USERS.get(User { slot, id }) }
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
fn set_unnamed(slot: u32, group: u64) {
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

/// The cgroup of the process that runs now.
#[inline(always)]
fn seen(generation: u32) -> Seen {
    Seen {
        generation,
        padding: 0,
        // SAFETY: it takes nothing.
        group: unsafe { bpf_get_current_cgroup_id() },
    }
}

/// Whether the kernel has put an interpreter in the place of what was called.
#[inline(always)]
fn is_script(exec: *const u8) -> bool {
    // SAFETY: the kernel passes a valid exec.
    unsafe {
        let path: *const u8 = load(exec, config::exec_filename());
        let interpreter: *const u8 = load(exec, config::exec_interpreter());
        path != interpreter
    }
}

/// The rules that name the script, if this is one: the kernel has put the interpreter in its place, and
/// knows of it only the path by which it was called.
#[inline(always)]
fn by_script(slot: u32, exec: *const u8, scratch: &mut Scratch) -> Option<&'static RuleBits> {
    // SAFETY: the kernel passes a valid exec, whose names are texts.
    unsafe {
        if !is_script(exec) {
            return None;
        }
        let path: *const u8 = load(exec, config::exec_filename());
        scratch.path[0] = 0;
        let length = read_name(&mut scratch.path, path);
        write(&mut scratch.dots, length.cast_unsigned() as u32);
        write(&mut scratch.end, 0);
        // To the end of the room, in any case: the verifier looks at each way out of a loop.
        for at in 0..MAX_PATH {
            if scratch.path[at] == b'/' && (at as u32) < read(&scratch.dots) {
                write(&mut scratch.end, at as u32 + 1);
            }
        }
        let start = u64::from(read(&scratch.end));
        scratch.script.slot = slot;
        scratch.script.name = [0; MAX_SCRIPT_NAME];
        let name = (path as u64).wrapping_add(start) as *const u8;
        if read_name(&mut scratch.script.name, name) >= MAX_SCRIPT_NAME as i64 {
            return None;
        }
        SCRIPTS.get(scratch.script)
    }
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

/// A number that the verifier shall not follow.
#[inline(always)]
fn read(number: &u32) -> u32 {
    // SAFETY: a reference.
    unsafe { core::ptr::from_ref(number).read_volatile() }
}

/// The other half of [`read`].
#[inline(always)]
fn write(number: &mut u32, value: u32) {
    // SAFETY: a reference.
    unsafe { core::ptr::from_mut(number).write_volatile(value) }
}

/// Adds the rules for the name below `parent`; returns the node that it leads to.
#[inline(always)]
fn add(scratch: &mut Scratch, parent: u32) -> u32 {
    scratch.group.parent = parent;
    // SAFETY: elements of a slot in force are not removed.
    let Some(group) = (unsafe { GROUPS.get(scratch.group) }) else {
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

/// Reads a text of the kernel; says its length with the zero at its end.
///
/// # Safety
///
/// None: the helper checks the address.
#[inline(always)]
unsafe fn read_name(to: &mut [u8], from: *const u8) -> i64 {
    // SAFETY: the helper writes no more than the length.
    unsafe { bpf_probe_read_kernel_str(to.as_mut_ptr().cast(), to.len() as u32, from.cast()) }
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
