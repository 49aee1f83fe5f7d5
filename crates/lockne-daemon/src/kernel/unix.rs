//! The hook on Unix sockets, which Aya 0.14 does not know: loaded and attached by bpf(2).

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
    path::Path,
};

use aya::{Ebpf, maps::Map};
use aya_obj::Object;
use lockne_abi::name;

use super::{
    Error, hook,
    object::{MAPS, OBJECT},
    sys,
};

/// `BPF_CGROUP_UNIX_CONNECT`.
const HOOK: u32 = 49;

/// Loads the program, with the maps that Aya has made and pinned.
pub(super) fn load(ebpf: &Ebpf, pins: &Path) -> Result<OwnedFd, Error> {
    let failed = |source| Error::Link {
        action: "load",
        program: name::CONNECT_UNIX.to_owned(),
        source,
    };
    let mut pinned = Vec::new();
    for map in &MAPS {
        let fd = sys::open_pin(&pins.join(map.name)).map_err(failed)?;
        pinned.push((map.name, fd));
    }
    let descriptor = |name: &str| -> RawFd {
        let pin = pinned.iter().find(|(of, _)| *of == name);
        match (pin, ebpf.map(name)) {
            (Some((_, fd)), _) => fd.as_raw_fd(),
            // What is no map of ours holds the constants.
            (None, Some(Map::Array(data))) => data.fd().as_fd().as_raw_fd(),
            // The program names no other.
            (None, _) => -1,
        }
    };
    let broken = |error: &dyn std::fmt::Display| failed(io::Error::other(error.to_string()));

    let mut object = Object::parse(OBJECT).map_err(|error| broken(&error))?;
    let sections: HashSet<usize> = object.functions.keys().map(|key| key.0).collect();
    let maps = object.maps.clone();
    let numbered = maps
        .iter()
        .map(|(name, map)| (name.as_str(), descriptor(name), map));
    object
        .relocate_maps(numbered, &sections)
        .map_err(|error| broken(&error))?;
    object
        .relocate_calls(&sections)
        .map_err(|error| broken(&error))?;
    let program = &object.programs[name::CONNECT_UNIX];
    let function = &object.functions[&program.function_key()];
    sys::load(&function.instructions, c"connect_unix", HOOK).map_err(failed)
}

/// Attaches it and pins its link, or puts it where its predecessor is.
pub(super) fn attach(program: &OwnedFd, pins: &Path) -> Result<(), Error> {
    hook::attach_one(program.as_fd(), (name::CONNECT_UNIX, HOOK), pins)
}
