//! Taking everything out of the kernel, with or without a daemon.

use std::{fs, io, os::fd::AsFd as _, path::Path};

use aya::maps::{HashMap, Map, MapData, MapInfo};
use lockne_abi::{PROCESSES_PER_PAGE, name};

use super::{
    Error, bpffs,
    feature::OPTIONAL,
    hook::{self, HOOKS},
    object::MAPS,
    process::Table,
    stamp, sys,
};

/// What was taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many programs were detached, one per hook and device.
    pub programs: u32,
    /// How many living processes had a policy.
    pub processes: u64,
}

pub(super) fn remove(pins: &Path) -> Result<Removed, Error> {
    let mut removed = Removed::default();
    if !pins.exists() {
        return Ok(removed);
    }
    removed.processes = count_processes(pins);
    for index in devices(pins)? {
        removed.programs += u32::from(stamp::detach(pins, index)?);
    }
    // The guard goes after those that mark: in between, nothing may leave by the wrong device.
    let hooks = HOOKS.iter().map(|(name, _)| *name);
    for name in OPTIONAL.into_iter().chain(hooks.rev()) {
        let pin = pins.join(name);
        detach(&hook::replacement(&pin))?;
        removed.programs += u32::from(detach(&pin)?);
    }
    for map in &MAPS {
        let pin = pins.join(map.name);
        if pin.exists() {
            unpin(&pin)?;
        }
    }
    bpffs::release(pins)?;
    Ok(removed)
}

fn count_processes(pins: &Path) -> u64 {
    let path = pins.join(name::PROCESSES);
    let (Ok(map), Ok(info)) = (sys::open_pin(&path), MapInfo::from_pin(&path)) else {
        return 0;
    };
    let length = (info.max_entries() * PROCESSES_PER_PAGE) as usize;
    Table::map(map, length).map_or(0, |table| table.policed().count() as u64)
}

/// Every device that may have the classifier: those with a pin, and those in the map, which may have
/// a filter.
fn devices(pins: &Path) -> Result<Vec<u32>, Error> {
    let mut devices: Vec<_> = list(pins)?
        .iter()
        .filter_map(|pin| stamp::device_of_pin(pin))
        .collect();
    if let Ok(map) = MapData::from_pin(pins.join(name::DEVICES))
        && let Ok(map) = Map::from_map_data(map)
        && let Ok(map) = HashMap::<_, u32, u32>::try_from(map)
    {
        devices.extend(map.keys().filter_map(Result::ok));
    }
    devices.sort_unstable();
    devices.dedup();
    Ok(devices)
}

fn detach(pin: &Path) -> Result<bool, Error> {
    let Ok(link) = sys::open_pin(pin) else {
        return Ok(false);
    };
    // Without this, the program runs on for some milliseconds after its pin is gone. Tracepoints
    // cannot do it; they do nothing that matters now.
    match sys::detach(link.as_fd()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(source) => {
            return Err(Error::Link {
                action: "detach",
                program: pin.file_name().unwrap_or_default().display().to_string(),
                source,
            });
        }
    }
    unpin(pin)?;
    Ok(true)
}

fn unpin(pin: &Path) -> Result<(), Error> {
    fs::remove_file(pin).map_err(|source| Error::Pins {
        action: "unpin",
        path: pin.to_owned(),
        source,
    })
}

fn list(pins: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(pins).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(|source| Error::Pins {
        action: "list",
        path: pins.to_owned(),
        source,
    })?;
    Ok(entries
        .into_iter()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}
