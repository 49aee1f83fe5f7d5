//! The maps by which an exec is decided.

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    thread::{self, JoinHandle},
    time::Duration,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, IterableMap, MapData, MapError},
    sys::SyscallError,
};
use lockne_abi::{
    Executable, Filter, Group, GroupName, Hash, InForce, MAX_GROUP_NAME, MAX_PLACE_NAME,
    MAX_SCRIPT_NAME, Outline, Place, RuleBits, RuleSet, Script, Seen, UNNAMED_GROUPS, Unnamed,
    User, name,
};

use super::{Error, sys, take};

/// A whole set of rules, by what an exec is looked up by. Names are shorter than their rooms in the maps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sheet {
    /// What is to be known of all together.
    pub(crate) outline: Outline,
    /// The rules that do not ask, and the policies; not the filter.
    pub(crate) set: RuleSet,
    /// By device and inode.
    pub(crate) executables: BTreeMap<(u32, u64), RuleBits>,
    /// By device, inode of the directory, and name there.
    pub(crate) places: BTreeMap<(u32, u64, Vec<u8>), RuleBits>,
    /// By name.
    pub(crate) scripts: BTreeMap<Vec<u8>, RuleBits>,
    /// By number.
    pub(crate) users: BTreeMap<u32, RuleBits>,
    /// By node above and name.
    pub(crate) groups: BTreeMap<(u32, Vec<u8>), Group>,
}

impl Sheet {
    fn filter(&self) -> Filter {
        let mut filter = Filter::NONE;
        for (device, inode) in self.executables.keys() {
            filter.insert(Hash::of_file(*device, *inode));
        }
        for (device, directory, name) in self.places.keys() {
            filter.insert(Hash::of_file(*device, *directory).of_place(name));
        }
        filter
    }
}

/// The maps.
pub(super) struct Maps {
    in_force: Array<MapData, InForce>,
    rules: Array<MapData, RuleSet>,
    executables: HashMap<MapData, Executable, RuleBits>,
    places: HashMap<MapData, Place, RuleBits>,
    scripts: HashMap<MapData, Script, RuleBits>,
    users: HashMap<MapData, User, RuleBits>,
    groups: HashMap<MapData, GroupName, Group>,
    seen: HashMap<MapData, Seen, RuleBits>,
    unnamed: Array<MapData, Unnamed>,
    /// Who may still read the slot that is not in force.
    readers: Readers,
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            in_force: take(ebpf, name::IN_FORCE)?,
            rules: take(ebpf, name::RULES)?,
            executables: take(ebpf, name::EXECUTABLES)?,
            places: take(ebpf, name::PLACES)?,
            scripts: take(ebpf, name::SCRIPTS)?,
            users: take(ebpf, name::USERS)?,
            groups: take(ebpf, name::GROUPS)?,
            seen: take(ebpf, name::SEEN)?,
            unnamed: take(ebpf, name::UNNAMED)?,
            // Of an earlier daemon.
            readers: Readers::until_now(),
        })
    }

    /// Writes the set beside the one in force, which may be that of an earlier daemon; then it is in force.
    pub(super) fn replace(&mut self, sheet: &Sheet) -> Result<(), Error> {
        let mut in_force = self
            .in_force
            .get(&0, 0)
            .map_err(Error::map(name::IN_FORCE))?;
        self.readers.wait();
        // 0 is no generation.
        let next = in_force.generation.checked_add(1).unwrap_or(2);
        let slot = next & 1;
        fill(
            &self.executables,
            name::EXECUTABLES,
            |key| key.slot == slot,
            sheet.executables.iter().map(|((device, inode), bits)| {
                let key = Executable {
                    slot,
                    device: *device,
                    inode: *inode,
                };
                (key, *bits)
            }),
        )?;
        fill(
            &self.places,
            name::PLACES,
            |key| key.slot == slot,
            sheet
                .places
                .iter()
                .map(|((device, directory, name), bits)| {
                    let key = Place {
                        slot,
                        device: *device,
                        directory: *directory,
                        name: room::<MAX_PLACE_NAME>(name),
                    };
                    (key, *bits)
                }),
        )?;
        fill(
            &self.scripts,
            name::SCRIPTS,
            |key| key.slot == slot,
            sheet.scripts.iter().map(|(name, bits)| {
                let name = room::<MAX_SCRIPT_NAME>(name);
                (Script { slot, name }, *bits)
            }),
        )?;
        fill(
            &self.users,
            name::USERS,
            |key| key.slot == slot,
            sheet
                .users
                .iter()
                .map(|(id, bits)| (User { slot, id: *id }, *bits)),
        )?;
        fill(
            &self.groups,
            name::GROUPS,
            |key| key.slot == slot,
            sheet.groups.iter().map(|((parent, name), group)| {
                let key = GroupName {
                    slot,
                    parent: *parent,
                    name: room::<MAX_GROUP_NAME>(name),
                };
                (key, *group)
            }),
        )?;
        self.unnamed
            .set(slot, [0; UNNAMED_GROUPS], 0)
            .map_err(Error::map(name::UNNAMED))?;
        let mut set = sheet.set;
        set.filter = sheet.filter();
        self.rules
            .set(slot, set, 0)
            .map_err(Error::map(name::RULES))?;
        in_force.outlines[slot as usize] = sheet.outline;
        self.set_in_force(in_force)?;
        // A step of its own: who sees this number sees all that was written before.
        in_force.generation = next;
        self.set_in_force(in_force)?;
        self.readers = Readers::until_now();
        fill(
            &self.seen,
            name::SEEN,
            |key| key.generation != next,
            std::iter::empty(),
        )
    }

    fn set_in_force(&mut self, in_force: InForce) -> Result<(), Error> {
        self.in_force
            .set(0, in_force, 0)
            .map_err(Error::map(name::IN_FORCE))
    }
}

/// The programs that ran at a moment. Whether they have ended takes the kernel some 15 ms to tell, which passes beside
/// other things: mostly, long before it has to be known.
struct Readers(Option<JoinHandle<()>>);

impl Readers {
    fn until_now() -> Self {
        let told = thread::Builder::new().spawn(wait_for_readers);
        if told.is_err() {
            wait_for_readers();
        }
        Self(told.ok())
    }

    fn wait(&mut self) {
        if self.0.take().is_some_and(|told| told.join().is_err()) {
            wait_for_readers();
        }
    }
}

/// Waits until every program that runs now has ended: whoever reads the slot that is not in force, or is of
/// the daemon before.
///
/// A program of a tracepoint runs with preemption off, which is a reader's section of RCU; those at
/// cgroups run in one.
pub(super) fn wait_for_readers() {
    const GLOBAL: libc::c_int = 1;
    // SAFETY: it takes two numbers, and waits for a grace period.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0) };
    if result != 0 {
        // Not where CPUs are without ticks (`nohz_full`). Nothing reads for a hundredth of this.
        thread::sleep(Duration::from_millis(20));
    }
}

/// Removes the entries that are `old`, and puts in new ones.
fn fill<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
    old: impl Fn(&K) -> bool,
    new: impl Iterator<Item = (K, V)>,
) -> Result<(), Error> {
    let old: Vec<K> = map.keys().filter_map(Result::ok).filter(old).collect();
    let (keys, values): (Vec<K>, Vec<V>) = new.unzip();
    let map = IterableMap::map(map).fd().as_fd();
    sys::delete_batch(map, &old)
        .and_then(|()| sys::update_batch(map, &keys, &values))
        .map_err(|io_error| {
            let call = "bpf_map_*_batch";
            Error::map(name)(MapError::SyscallError(SyscallError { call, io_error }))
        })
}

/// A name, filled up with zeros.
fn room<const N: usize>(name: &[u8]) -> [u8; N] {
    let mut room = [0; N];
    for (to, from) in room.iter_mut().zip(name) {
        *to = *from;
    }
    room
}
