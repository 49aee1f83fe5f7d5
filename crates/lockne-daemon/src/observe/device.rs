//! Network devices, and classifiers on both of their sides.

use std::{ffi::CStr, io};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, TcAttachOptions},
    },
};

use crate::kernel::{Error, patiently};

/// A network device of the namespace of the calling thread.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether its packets have an Ethernet header; if not, they start with the IP header.
    pub is_ethernet: bool,
}

impl Device {
    /// Lists all of them.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn all() -> io::Result<Vec<Self>> {
        let mut devices: Vec<Self> = names()?
            .into_iter()
            // One that is gone by now is none.
            .filter_map(|(index, name)| {
                let is_ethernet = is_ethernet(&name).ok()?;
                Some(Self {
                    index,
                    name,
                    is_ethernet,
                })
            })
            .collect();
        devices.sort();
        Ok(devices)
    }
}

fn names() -> io::Result<Vec<(u32, String)>> {
    // SAFETY: it takes nothing.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut names = Vec::new();
    let mut entry = list;
    // SAFETY: the list ends with an entry of zeros, and each name with a zero.
    unsafe {
        while (*entry).if_index != 0 {
            let name = CStr::from_ptr((*entry).if_name);
            names.push(((*entry).if_index, name.to_string_lossy().into_owned()));
            entry = entry.add(1);
        }
        libc::if_freenameindex(list);
    }
    Ok(names)
}

/// Asks for the kind of hardware address, `ARPHRD_*`.
fn is_ethernet(name: &str) -> io::Result<bool> {
    use std::os::fd::AsRawFd as _;
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)?;
    // SAFETY: plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the request is what this call reads and writes.
    let result = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFHWADDR as _,
            &raw mut request,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call filled in this part.
    let kind = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
    Ok(matches!(kind, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK))
}

/// Loads the classifier `name`.
pub(super) fn load(ebpf: &mut Ebpf, name: &str) -> Result<(), Error> {
    let program = classifier(ebpf, name);
    patiently(|| program.load()).map_err(|error| Error::program(name, error))
}

pub(super) fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    ebpf.program_mut(name)
        .expect("the object has the program")
        .try_into()
        .expect("it is a classifier")
}

/// Puts the classifier `name` on one side of a device: before all others on ingress, behind them on
/// egress. It goes with `ebpf`.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    name: &str,
    device: &Device,
    side: TcAttachType,
) -> Result<(), Error> {
    let program = classifier(ebpf, name);
    let order = match side {
        TcAttachType::Ingress => LinkOrder::first(),
        _ => LinkOrder::last(),
    };
    let result = program.attach_with_options(&device.name, side, TcAttachOptions::TcxOrder(order));
    let error = match result {
        Ok(_) => return Ok(()),
        Err(ProgramError::SyscallError(call)) => call.io_error,
        Err(error) => return Err(Error::program(name, error)),
    };
    // Before Linux 6.6 there is no TCX.
    if error.kind() == io::ErrorKind::InvalidInput {
        return attach_clsact(ebpf, name, device, side);
    }
    Err(Error::Device {
        name: device.name.clone(),
        index: device.index,
        source: error,
    })
}

fn attach_clsact(
    ebpf: &mut Ebpf,
    name: &str,
    device: &Device,
    side: TcAttachType,
) -> Result<(), Error> {
    // There already, or the next call says why not.
    let _ = tc::qdisc_add_clsact(&device.name);
    // Left by one that was killed.
    let _ = tc::qdisc_detach_program(&device.name, side, name);
    classifier(ebpf, name)
        .attach_with_options(
            &device.name,
            side,
            TcAttachOptions::Netlink(NlOptions::default()),
        )
        .map(drop)
        .map_err(|error| Error::program(name, error))
}
