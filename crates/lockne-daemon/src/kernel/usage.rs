//! How full the tables are, and how long the programs ran.

use std::{os::fd::AsFd as _, time::Duration};

use lockne_abi::{MAX_DEVICES, MAX_LAN_PREFIXES, name};

use super::{Error, Kernel, hook, sys};

/// How much of a table is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fill {
    /// Which table.
    pub(crate) map: &'static str,
    /// Entries that are used.
    pub(crate) used: u64,
    /// Entries that there can be.
    pub(crate) room: u64,
}

/// What a program did since it was loaded, as far as the kernel kept count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Runs {
    /// Which program.
    pub(crate) program: &'static str,
    /// How often it ran.
    pub(crate) count: u64,
    /// How long all that took.
    pub(crate) time: Duration,
}

impl Kernel {
    /// How full the tables are that can be full; `processes` are those that have a policy.
    pub(crate) fn fills(&self, processes: u64) -> Result<Vec<Fill>, Error> {
        let prefixes = self.lan.keys().flatten().count();
        let devices = self.stamped()?.len();
        let fill = |map, used, room| Fill { map, used, room };
        Ok(vec![
            fill(
                name::PROCESSES,
                processes,
                self.reading.processes.room().into(),
            ),
            fill(name::LAN, prefixes as u64, MAX_LAN_PREFIXES.into()),
            fill(name::DEVICES, devices as u64, MAX_DEVICES.into()),
        ])
    }

    /// What each program did; empty if the kernel has never kept count of that.
    pub(crate) fn runs(&self) -> Result<Vec<Runs>, Error> {
        let mut all = Vec::new();
        for (program, _) in hook::needed() {
            let fd = hook::program_fd(&self.ebpf, program)?;
            let (time, count) = sys::runs(fd.as_fd()).map_err(|source| Error::Link {
                action: "read",
                program: program.to_owned(),
                source,
            })?;
            all.push(Runs {
                program,
                count,
                time: Duration::from_nanos(time),
            });
        }
        if all.iter().all(|it| it.count == 0) {
            all.clear();
        }
        Ok(all)
    }
}
