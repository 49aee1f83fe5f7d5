//! The rules that name a program, and the first of them.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::bpf_get_current_uid_gid,
    macros::map,
    maps::{Array, HashMap},
};
use lockne_abi::{
    Executable, MAX_PLACE_NAME, MAX_RULES, MAX_SCRIPT_NAME, Place, RULE_WORDS, RuleBits, RuleSet,
    Script, User, look,
};

use super::{
    Exec, File, group,
    scratch::{MAX_PATH, SCRATCH, Scratch, read, read_name, write},
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

/// The policy of the first rule that names the program; 0 if none does.
#[inline(never)]
pub(super) fn first(exec: Exec) -> u32 {
    let slot = exec.slot();
    let Some(set) = RULES.get(slot) else {
        return 0;
    };
    let Some(scratch) = SCRATCH.get_ptr_mut(exec.turn) else {
        return 0;
    };
    // SAFETY: the map's own memory, and this CPU's own part of it.
    let scratch = unsafe { &mut *scratch };
    for word in &mut scratch.hits.words {
        *word = !0;
    }
    if exec.looks(look::EXECUTABLE) {
        let (known, place) = by_file(exec, scratch);
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
    exec: Exec,
    scratch: &mut Scratch,
) -> (Option<&'static RuleBits>, Option<&'static RuleBits>) {
    let File {
        device,
        inode,
        name,
        directory,
    } = exec.file();
    let slot = exec.slot();
    let place = &mut scratch.place;
    place.slot = slot;
    place.device = device;
    place.directory = directory;
    place.name = [0; MAX_PLACE_NAME];
    // SAFETY: a file has a name. Elements of a slot in force are not removed.
    unsafe {
        let known = EXECUTABLES.get(Executable {
            slot,
            device,
            inode,
        });
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
