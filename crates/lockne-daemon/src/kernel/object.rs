//! The programs and maps, from the object to the kernel.

use std::path::Path;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, MapInfo},
    programs::{Program, ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use lockne_abi::{
    Config, Counters, Executable, Group, GroupName, InForce, LanKey, MarkField, Member,
    PROCESSES_PER_PAGE, Place, Policy, Renames, Resolvers, RuleBits, RuleSet, Script, Seen,
    Unnamed, User, name,
};

use super::{Error, btf, namespace, process, sys};

/// A map and the sizes of its keys and values.
pub(super) struct Shape {
    pub(super) name: &'static str,
    key: usize,
    value: usize,
}

const fn shape<K, V>(name: &'static str) -> Shape {
    Shape {
        name,
        key: size_of::<K>(),
        value: size_of::<V>(),
    }
}

/// Every map that outlives the daemon; the last is written when all others are there.
pub(super) const MAPS: [Shape; 21] = [
    shape::<u32, [Member; PROCESSES_PER_PAGE as usize]>(name::PROCESSES),
    shape::<u32, [u8; PROCESSES_PER_PAGE as usize]>(name::EXECS),
    shape::<u32, u32>(name::OVERFLOW),
    shape::<u32, u32>(name::STRICT),
    shape::<u32, u64>(name::FORKS),
    shape::<u32, Policy>(name::POLICIES),
    shape::<u32, Counters>(name::COUNTERS),
    // The prefix length comes before the key.
    shape::<[u8; 4 + size_of::<LanKey>()], u8>(name::LAN),
    shape::<u32, u32>(name::DEVICES),
    shape::<u32, Resolvers>(name::RESOLVERS),
    shape::<i32, Renames>(name::NAMES),
    shape::<u32, InForce>(name::IN_FORCE),
    shape::<u32, RuleSet>(name::RULES),
    shape::<Executable, RuleBits>(name::EXECUTABLES),
    shape::<Place, RuleBits>(name::PLACES),
    shape::<Script, RuleBits>(name::SCRIPTS),
    shape::<User, RuleBits>(name::USERS),
    shape::<GroupName, Group>(name::GROUPS),
    shape::<Seen, RuleBits>(name::SEEN),
    shape::<u32, Unnamed>(name::UNNAMED),
    shape::<u32, Config>(name::LOADED),
];

const TRACEPOINTS: [(&str, &str); 5] = [
    (name::FOLLOW_FORK, "sched_wakeup_new"),
    (name::FORGET_EXIT, "sched_process_exit"),
    (name::FORGET_MISSED, "sched_process_exit"),
    (name::DECIDE_EXEC, "sched_process_exec"),
    (name::DECIDE_MISSED, "sched_process_exec"),
];

/// The kernel object.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lockne.bpf.o"));

/// How often a program is given to the verifier that is cut short each time.
const TRIES: u32 = 100;

/// Loads a program again while the verifier is interrupted: it gives up when a signal is pending (`bpf_check`).
pub(crate) fn patiently(
    mut load: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    let interrupted = |error: &ProgramError| {
        matches!(error, ProgramError::LoadError { io_error, .. }
            if io_error.raw_os_error() == Some(libc::EAGAIN))
    };
    for _ in 1..TRIES {
        match load() {
            Err(error) if interrupted(&error) => {}
            result => return result,
        }
    }
    load()
}

/// Loads every map and program, and pins the maps. Maps that are pinned already are used as they are.
pub(super) fn load(pins: &Path, field: MarkField) -> Result<Ebpf, Error> {
    let config = config(field, processes(pins)?)?;
    check_owner(pins, &config)?;
    let types = aya::Btf::from_sys_fs().map_err(|error| Error::load(error.into()))?;

    // What the programs before have noted is not known until they are out of the way.
    let assumed = u32::from(pins.join(name::STRICT).exists());
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(&types))
        .override_global(name::CONFIG, &config, true)
        .override_global(name::ASSUMED, &assumed, true)
        .map_max_entries(name::PROCESSES, config.max_processes / PROCESSES_PER_PAGE);
    if config.has_misses != 0 {
        loader.map_max_entries(name::EXECS, config.max_processes / PROCESSES_PER_PAGE);
    }
    for map in &MAPS {
        loader.map_pin_path(map.name, pins.join(map.name));
    }
    let mut ebpf = loader.load(OBJECT).map_err(Error::load)?;
    check_shapes(pins)?;

    let map = ebpf.map_mut(name::LOADED).expect("the object has the map");
    let mut copy: Array<_, Config> = Array::try_from(map).map_err(Error::map(name::LOADED))?;
    copy.set(0, config, 0).map_err(Error::map(name::LOADED))?;

    for (name, program) in ebpf.programs_mut() {
        let result = patiently(|| match program {
            // It is on a hook that Aya does not know.
            _ if name == name::CONNECT_UNIX => Ok(()),
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            Program::CgroupSockopt(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            Program::BtfTracePoint(_) if !is_needed(name) => Ok(()),
            Program::BtfTracePoint(program) => TRACEPOINTS
                .iter()
                .find(|(of, _)| *of == name)
                .map_or(Ok(()), |(_, tracepoint)| program.load(tracepoint, &types)),
            _ => Ok(()),
        });
        result.map_err(|error| Error::program(name, error))?;
    }
    Ok(ebpf)
}

/// How many process ids there is room for: what the pinned table has, or one for each there can be.
fn processes(pins: &Path) -> Result<u32, Error> {
    let highest = process::pid_max()?;
    if let Ok(pinned) = MapInfo::from_pin(pins.join(name::PROCESSES)) {
        return Ok(pinned.max_entries() * PROCESSES_PER_PAGE);
    }
    Ok(highest.div_ceil(PROCESSES_PER_PAGE) * PROCESSES_PER_PAGE)
}

/// Whether this kernel needs the program `name`.
pub(super) fn is_needed(name: &str) -> bool {
    !matches!(name, name::DECIDE_MISSED | name::FORGET_MISSED) || has_misses()
}

/// Whether the kernel may pass over a program on a tracepoint, since what it interrupts is the same one: Linux 7.0 and
/// newer (`tracepoint_srcu`). What is taken is the release before, as it may be brought there.
fn has_misses() -> bool {
    /// The first that may.
    const SINCE: (u32, u32) = (6, 19);
    // What cannot be read may be anything.
    super::version().is_none_or(|version| version >= SINCE)
}

fn config(field: MarkField, max_processes: u32) -> Result<Config, Error> {
    let types = btf::Btf::of_kernel()?;
    let has = |program, helper| {
        let supported = is_helper_supported(program, helper);
        supported.map_err(|error| Error::program("probe", error))
    };
    Ok(Config {
        netns_cookie: namespace::current()?,
        mark_shift: field.shift(),
        max_processes,
        task_tgid: types.offset("task_struct", "tgid")?,
        task_pid: types.offset("task_struct", "pid")?,
        task_signal: types.offset("task_struct", "signal")?,
        task_exec_id: types.offset("task_struct", "self_exec_id")?,
        has_misses: has_misses().into(),
        signal_live: types.offset("signal_struct", "live")?,
        sock_net: types.offset("sock", "__sk_common.skc_net.net")?,
        net_cookie: types.offset("net", "net_cookie")?,
        has_set_retval: has(ProgramType::CgroupSock, BpfHelper::BPF_FUNC_set_retval)?.into(),
        unix_address: types.offset("bpf_sock_addr_kern", "uaddr").unwrap_or(0),
        unix_length: types.offset("bpf_sock_addr_kern", "uaddrlen").unwrap_or(0),
        task_cgroups: types.offset("task_struct", "cgroups")?,
        css_set_cgroup: types.offset("css_set", "dfl_cgrp")?,
        cgroup_node: types.offset("cgroup", "kn")?,
        // Renamed in Linux 6.15.
        node_parent: types
            .offset("kernfs_node", "__parent")
            .or_else(|_| types.offset("kernfs_node", "parent"))?,
        node_name: types.offset("kernfs_node", "name")?,
        exec_file: types.offset("linux_binprm", "file")?,
        exec_filename: types.offset("linux_binprm", "filename")?,
        exec_interpreter: types.offset("linux_binprm", "interp")?,
        file_inode: types.offset("file", "f_inode")?,
        file_dentry: types.offset("file", "f_path.dentry")?,
        inode_number: types.offset("inode", "i_ino")?,
        inode_super: types.offset("inode", "i_sb")?,
        super_device: types.offset("super_block", "s_dev")?,
        dentry_parent: types.offset("dentry", "d_parent")?,
        dentry_inode: types.offset("dentry", "d_inode")?,
        dentry_name: types.offset("dentry", "d_name.name")?,
        dentry_length: types.offset("dentry", "d_name.len")?,
        // Renamed in Linux 6.14.
        dentry_short_name: types
            .offset("dentry", "d_shortname")
            .or_else(|_| types.offset("dentry", "d_iname"))?,
        task_cred: types.offset("task_struct", "cred")?,
        cred_permitted: types.offset("cred", "cap_permitted")?,
        cred_user_ns: types.offset("cred", "user_ns")?,
        user_ns_level: types.offset("user_namespace", "level")?,
        has_option_pid: has(
            ProgramType::CgroupSockopt,
            BpfHelper::BPF_FUNC_get_current_pid_tgid,
        )?
        .into(),
    })
}

/// Fails if the pins are those of another network namespace, or have another mark.
fn check_owner(pins: &Path, config: &Config) -> Result<(), Error> {
    let Some(was) = loaded(pins)? else {
        return Ok(());
    };
    let foreign = |what| Error::Foreign {
        pins: pins.to_owned(),
        what,
    };
    if was.netns_cookie != config.netns_cookie {
        return Err(foreign("network namespace"));
    }
    if was.mark_shift != config.mark_shift {
        return Err(foreign("field of the mark"));
    }
    Ok(())
}

/// What the pinned programs were loaded with, or `None` if there are none, or they never came to work.
pub(super) fn loaded(pins: &Path) -> Result<Option<Config>, Error> {
    let path = pins.join(name::LOADED);
    if sys::open_pin(&path).is_err() {
        return Ok(None);
    }
    let wrong = || Error::Incompatible {
        pins: pins.to_owned(),
        map: name::LOADED,
    };
    let map =
        aya::maps::Map::from_map_data(MapData::from_pin(path).map_err(Error::map(name::LOADED))?)
            .map_err(Error::map(name::LOADED))?;
    let map: Array<_, Config> = Array::try_from(map).map_err(|_| wrong())?;
    let config = map.get(&0, 0).map_err(Error::map(name::LOADED))?;
    Ok((config.netns_cookie != 0).then_some(config))
}

fn check_shapes(pins: &Path) -> Result<(), Error> {
    for shape in &MAPS {
        let map = MapInfo::from_pin(pins.join(shape.name)).map_err(Error::map(shape.name))?;
        if map.key_size() as usize != shape.key || map.value_size() as usize != shape.value {
            return Err(Error::Incompatible {
                pins: pins.to_owned(),
                map: shape.name,
            });
        }
    }
    Ok(())
}
