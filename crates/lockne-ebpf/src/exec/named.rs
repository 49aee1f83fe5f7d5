//! The rules that name a program, and the first of them.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::{bpf_get_current_uid_gid, generated::bpf_probe_read_kernel_str},
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use lockne_abi::{
    Executable, GroupName, MAX_GROUP_NAME, MAX_PLACE_NAME, MAX_RULES, MAX_SCRIPT_NAME, Place,
    RULE_WORDS, RuleBits, RuleSet, Script, User, look,
};

use super::{
    Exec,
    group::{self, MAX_DEPTH},
};
use crate::{config, family::load};

/// Each rule once in either slot, and room for what goes while the next comes.
pub(super) const ENTRIES: u32 = 4 * MAX_RULES;

#[map]
pub(super) static RULES: Array<RuleSet> = Array::with_max_entries(2, 0);

#[map]
static EXECUTABLES: HashMap<Executable, RuleBits> =
    HashMap::with_max_entries(ENTRIES, BPF_F_NO_PREALLOC);

#[map]
static PLACES: HashMap<Place, RuleBits> = HashMap::with_max_entries(ENTRIES, BPF_F_NO_PREALLOC);

#[map]
static SCRIPTS: HashMap<Script, RuleBits> = HashMap::with_max_entries(ENTRIES, BPF_F_NO_PREALLOC);

#[map]
static USERS: HashMap<User, RuleBits> = HashMap::with_max_entries(ENTRIES, BPF_F_NO_PREALLOC);

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// How long the path of a script can be.
const MAX_PATH: usize = 256;

/// What has no room on the stack. Tracepoints do not nest on a CPU.
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
    place: Place,
    pub(super) bits: RuleBits,
    hits: RuleBits,
    pub(super) group: GroupName,
    path: [u8; MAX_PATH],
    script: Script,
}

/// The policy of the first rule that names the program; 0 if none does.
#[inline(never)]
pub(super) fn first(exec: Exec) -> u32 {
    let slot = exec.slot();
    let Some(set) = RULES.get(slot) else {
        return 0;
    };
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the map's own memory, and this CPU's own part of it.
    let scratch = unsafe { &mut *scratch };
    for word in &mut scratch.hits.words {
        *word = !0;
    }
    if exec.looks(look::EXECUTABLE) {
        let (known, place) = by_file(slot, exec.program, scratch);
        keep(set, look::EXECUTABLE, known, place, &mut scratch.hits);
    }
    if exec.looks(look::USER) {
        keep(set, look::USER, by_user(slot), None, &mut scratch.hits);
    }
    if exec.looks(look::SCRIPT) {
        let script = by_script(exec, scratch);
        keep(set, look::SCRIPT, script, None, &mut scratch.hits);
    }
    if exec.looks(look::GROUP) {
        group::find(exec, scratch);
        let found = Some(&scratch.bits);
        keep(set, look::GROUP, found, None, &mut scratch.hits);
    }
    for word in 0..RULE_WORDS {
        let hit = scratch.hits.words[word];
        if word >= exec.outline.words.into() {
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
    let of = |bits: Option<&RuleBits>, word: usize| bits.map_or(0, |bits| bits.words[word]);
    for word in 0..RULE_WORDS {
        hits.words[word] &= set.any[look].words[word] | of(one, word) | of(other, word);
    }
}

/// The rules that name the file by its inode, and those that name its place.
#[inline(always)]
fn by_file(
    slot: u32,
    program: *const u8,
    scratch: &mut Scratch,
) -> (Option<&'static RuleBits>, Option<&'static RuleBits>) {
    // SAFETY: what the kernel executes has a file, and that an inode, a name and a directory.
    unsafe {
        let file: *const u8 = load(program, config::exec_file());
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
        let place = &*place;
        (known, PLACES.get(place))
    }
}

/// The rules that name the real user.
#[inline(always)]
fn by_user(slot: u32) -> Option<&'static RuleBits> {
    let id = bpf_get_current_uid_gid() as u32;
    // SAFETY: elements of a slot in force are not removed.
    unsafe { USERS.get(User { slot, id }) }
}

/// The rules that name the script, if this is one: the kernel has put the interpreter in its place, and
/// knows of it only the path by which it was called.
#[inline(always)]
fn by_script(exec: Exec, scratch: &mut Scratch) -> Option<&'static RuleBits> {
    // SAFETY: the kernel passes a valid exec, whose names are texts.
    unsafe {
        if !exec.is_script() {
            return None;
        }
        let path: *const u8 = load(exec.program, config::exec_filename());
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
        scratch.script.slot = exec.slot();
        scratch.script.name = [0; MAX_SCRIPT_NAME];
        let name = (path as u64).wrapping_add(start) as *const u8;
        if read_name(&mut scratch.script.name, name) >= MAX_SCRIPT_NAME as i64 {
            return None;
        }
        let script = &scratch.script;
        SCRIPTS.get(script)
    }
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
