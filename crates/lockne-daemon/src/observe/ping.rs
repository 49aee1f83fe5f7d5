//! Who pings this machine, and whose pings are refused.

use std::{collections::BTreeSet, io, net::IpAddr, os::fd::BorrowedFd};

use aya::{Ebpf, maps::HashMap, programs::TcAttachType};
use lockne_abi::observe::{Counts, Packet, name};

use super::{Device, Devices, Error, device, object, record::split, ring::Ring};

/// Room for records that nobody has read yet, in bytes.
const ROOM: u32 = 1 << 20;

/// Pings that come in. Dropping it takes everything out of the kernel, and so lets all of them in.
pub struct Pings {
    ebpf: Ebpf,
    ring: Ring,
    wanted: Devices,
    attached: BTreeSet<u32>,
}

impl Pings {
    /// Watches the devices of the network namespace of the calling thread, and drops pings from the
    /// addresses in `refused`.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or there is no device of a name.
    pub fn start(wanted: Devices, refused: &[IpAddr]) -> Result<Self, Error> {
        let mut ebpf = object::load(0, false, ROOM)?;
        for name in name::PINGS {
            device::load(&mut ebpf, name)?;
        }
        let map = ebpf.map_mut(name::REFUSED).expect("the object has the map");
        let mut map: HashMap<_, [u8; 16], u32> =
            HashMap::try_from(map).map_err(Error::map(name::REFUSED))?;
        for address in refused {
            let bytes = match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            map.insert(bytes, 1, 0).map_err(Error::map(name::REFUSED))?;
        }
        let mut pings = Self {
            ring: Ring::take(&mut ebpf)?,
            ebpf,
            wanted,
            attached: BTreeSet::new(),
        };
        pings.look_for_devices()?;
        Ok(pings)
    }

    /// Watches devices that came since.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or there is no device of a name.
    pub fn look_for_devices(&mut self) -> Result<(), Error> {
        let all = Device::all().map_err(|source| Error::Read {
            path: "the list of network devices".into(),
            source,
        })?;
        if let Devices::Named(names) = &self.wanted
            && self.attached.is_empty()
            && let Some(name) = names
                .iter()
                .find(|name| all.iter().all(|it| it.name != **name))
        {
            return Err(Error::Device {
                name: name.clone(),
                index: 0,
                source: io::Error::from_raw_os_error(libc::ENODEV),
            });
        }
        self.attached
            .retain(|index| all.iter().any(|device| device.index == *index));
        for device in all {
            let is_wanted = match &self.wanted {
                Devices::All => true,
                Devices::Named(names) => names.contains(&device.name),
            };
            if !is_wanted || self.attached.contains(&device.index) {
                continue;
            }
            let [ethernet, bare] = name::PINGS;
            let name = if device.is_ethernet { ethernet } else { bare };
            match device::attach(&mut self.ebpf, name, &device, TcAttachType::Ingress) {
                // Gone again.
                Err(Error::Device { source, .. })
                    if source.raw_os_error() == Some(libc::ENODEV) => {}
                result => {
                    result?;
                    self.attached.insert(device.index);
                }
            }
        }
        Ok(())
    }

    /// Hands each ping that is there to `see`, until it says no.
    pub fn drain(&mut self, mut see: impl FnMut(&Packet) -> bool) {
        self.ring
            .drain(|record| split(record).is_none_or(|(packet, _)| see(&packet)));
    }

    /// How many pings there were.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn counts(&self) -> Result<Counts, Error> {
        self.ring.counts()
    }

    /// Readable when there are pings.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ring.fd()
    }
}

impl std::fmt::Debug for Pings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pings")
            .field("attached", &self.attached)
            .finish_non_exhaustive()
    }
}
