//! Packets as they pass the devices, chosen in the kernel.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use aya::{Ebpf, maps::Map, programs::TcAttachType};
use lockne_abi::observe::{Counts, FILTER, Packet, REPORT, name};
use lockne_core::filter::{Code, Program};

use super::{Device, Devices, Error, device, object, owner, record::split, ring::Ring};
use crate::kernel::sys;

/// Room for records that nobody has read yet, in bytes.
const ROOM: u32 = 8 << 20;

/// Packets as they pass the devices. Dropping it takes everything out of the kernel.
pub struct Monitor {
    ebpf: Ebpf,
    ring: Ring,
    wanted: Devices,
    attached: BTreeMap<u32, Device>,
}

impl Monitor {
    /// Watches the devices of the network namespace of the calling thread, for packets that `program`
    /// wants, and copies the first `capture` bytes of each.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or there is no device of a name.
    pub fn start(
        program: &Program,
        asks_for_process: bool,
        capture: u32,
        wanted: Devices,
    ) -> Result<Self, Error> {
        let mut ebpf = object::load(capture, asks_for_process, ROOM)?;
        let sides = [name::ETHERNET, name::BARE];
        for name in sides.as_flattened().iter().chain([&name::REPORT]) {
            device::load(&mut ebpf, name)?;
        }
        connect(&mut ebpf, program)?;
        owner::watch(&mut ebpf)?;
        let mut monitor = Self {
            ring: Ring::take(&mut ebpf)?,
            ebpf,
            wanted,
            attached: BTreeMap::new(),
        };
        monitor.look_for_devices()?;
        if let Devices::Named(names) = &monitor.wanted {
            let is_there = |name: &&String| monitor.device(name).is_some();
            if let Some(name) = names.iter().find(|name| !is_there(name)) {
                return Err(Error::Device {
                    name: name.clone(),
                    index: 0,
                    source: io::Error::from_raw_os_error(libc::ENODEV),
                });
            }
        }
        Ok(monitor)
    }

    fn device(&self, name: &str) -> Option<&Device> {
        self.attached.values().find(|device| device.name == name)
    }

    /// Watches devices that came since.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn look_for_devices(&mut self) -> Result<(), Error> {
        let all = Device::all().map_err(|source| Error::Read {
            path: "the list of network devices".into(),
            source,
        })?;
        self.attached
            .retain(|index, _| all.iter().any(|device| device.index == *index));
        for device in all {
            let is_wanted = match &self.wanted {
                Devices::All => true,
                Devices::Named(names) => names.contains(&device.name),
            };
            if !is_wanted {
                continue;
            }
            if let Some(known) = self.attached.get_mut(&device.index) {
                known.name = device.name;
                continue;
            }
            match self.attach(&device) {
                // Gone again.
                Err(Error::Device { source, .. })
                    if source.raw_os_error() == Some(libc::ENODEV) => {}
                result => {
                    result?;
                    self.attached.insert(device.index, device);
                }
            }
        }
        Ok(())
    }

    fn attach(&mut self, device: &Device) -> Result<(), Error> {
        let [inside, outside] = if device.is_ethernet {
            name::ETHERNET
        } else {
            name::BARE
        };
        device::attach(&mut self.ebpf, inside, device, TcAttachType::Ingress)?;
        device::attach(&mut self.ebpf, outside, device, TcAttachType::Egress)
    }

    /// The devices that are watched.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.attached.values()
    }

    /// Hands each packet that is there, and its first bytes, to `see`, until it says no.
    pub fn drain(&mut self, mut see: impl FnMut(&Packet, &[u8]) -> bool) {
        self.ring
            .drain(|record| split(record).is_none_or(|(packet, bytes)| see(&packet, bytes)));
    }

    /// How many packets there were.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn counts(&self) -> Result<Counts, Error> {
        self.ring.counts()
    }

    /// Readable when there are packets.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ring.fd()
    }

    /// Puts a packet through the classifier for what comes in, for tests.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    #[doc(hidden)]
    pub fn try_packet(&mut self, bytes: &[u8], is_ethernet: bool) -> Result<(), Error> {
        use aya::{TestRun as _, programs::TestRunOptions};
        let [inside, _] = if is_ethernet {
            name::ETHERNET
        } else {
            name::BARE
        };
        let options = TestRunOptions {
            data_in: Some(bytes),
            ..TestRunOptions::default()
        };
        device::classifier(&mut self.ebpf, inside)
            .test_run(options)
            .map(drop)
            .map_err(|error| Error::program(inside, error))
    }

    /// Puts another filter in place of the one that is there, at once.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn set_filter(&mut self, program: &Program) -> Result<(), Error> {
        set_filter(&mut self.ebpf, program)
    }
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor")
            .field("attached", &self.attached)
            .finish_non_exhaustive()
    }
}

/// Lets the classifiers reach the filter, and the filter the report.
fn connect(ebpf: &mut Ebpf, program: &Program) -> Result<(), Error> {
    let report = device::classifier(ebpf, name::REPORT)
        .fd()
        .and_then(|fd| Ok(fd.try_clone()?))
        .map_err(|error| Error::program(name::REPORT, error))?;
    set_stage(ebpf, REPORT, report.as_fd())?;
    set_filter(ebpf, program)
}

fn set_filter(ebpf: &mut Ebpf, program: &Program) -> Result<(), Error> {
    const FILTER_NAME: &str = "filter";
    let scratch = map_fd(ebpf, name::SCRATCH).as_raw_fd();
    let stages = map_fd(ebpf, name::STAGES).as_raw_fd();
    let code = Code::classifier(program, scratch, stages, REPORT);
    let filter =
        sys::load_classifier(FILTER_NAME, code.instructions()).map_err(|(source, log)| {
            Error::Rejected {
                program: FILTER_NAME.to_owned(),
                end: log.lines().rev().take(3).collect::<Vec<_>>().join("\n"),
                log,
                source,
            }
        })?;
    set_stage(ebpf, FILTER, filter.as_fd())
}

fn set_stage(ebpf: &Ebpf, stage: u32, program: BorrowedFd<'_>) -> Result<(), Error> {
    sys::set_program(map_fd(ebpf, name::STAGES), stage, program).map_err(|source| Error::Link {
        action: "connect",
        program: "filter".to_owned(),
        source,
    })
}

fn map_fd<'a>(ebpf: &'a Ebpf, name: &str) -> BorrowedFd<'a> {
    let map = ebpf.map(name).expect("the object has the map");
    let (Map::PerCpuArray(data) | Map::ProgramArray(data)) = map else {
        unreachable!("of one of these types in the object");
    };
    data.fd().as_fd()
}
