//! The classifier on the ingress of tunnel devices.

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        ProgramError, SchedClassifier, TcAttachType, TcError,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};
use lockne_abi::name;

use super::{
    Error, hook,
    sys::{self, Target},
};

/// Before whatever another program has: with clsact, a lower number comes first.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 108);
const PREFIX: &str = "stamp-";

/// How a classifier sits on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Classifier {
    /// By a link that is pinned; since Linux 6.6.
    Tcx,
    /// By a filter that stays until somebody removes it.
    Clsact,
}

/// A device, by name and index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device<'a> {
    pub(super) name: &'a str,
    pub(super) index: u32,
}

impl Device<'_> {
    /// Fails if the name is another device's by now.
    pub(super) fn check(self) -> Result<(), Error> {
        match index_of(self.name) {
            Ok(index) if index == self.index => Ok(()),
            Ok(_) => Err(self.failed(io::Error::from_raw_os_error(libc::ENODEV))),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(self, source: io::Error) -> Error {
        Error::Device {
            name: self.name.to_owned(),
            index: self.index,
            source,
        }
    }
}

/// Attaches the classifier to a device, or replaces its predecessor there.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    pins: &Path,
    device: Device<'_>,
) -> Result<Classifier, Error> {
    device.check()?;
    match attach_tcx(ebpf, pins, device) {
        Err(Error::Device { source, .. }) if source.kind() == io::ErrorKind::InvalidInput => {
            attach_clsact(ebpf, device)?;
            Ok(Classifier::Clsact)
        }
        Err(error) => Err(error),
        Ok(()) => Ok(Classifier::Tcx),
    }
}

fn attach_tcx(ebpf: &Ebpf, pins: &Path, device: Device<'_>) -> Result<(), Error> {
    let program = hook::program_fd(ebpf, name::STAMP_REPLY)?;
    let pin = pin(pins, device.index);
    let failed = |source| device.failed(source);
    if let Ok(link) = sys::open_pin(&pin) {
        if sys::device_of(link.as_fd()).map_err(failed)? == device.index {
            return sys::replace(link.as_fd(), program).map_err(failed);
        }
        // The device is gone, and another one has its number.
        fs::remove_file(&pin).map_err(failed)?;
    }
    let link = sys::attach(program, &Target::Ingress(device.index)).map_err(failed)?;
    sys::pin(link.as_fd(), &pin).map_err(failed)
}

/// Attaches by clsact, which every kernel has.
pub(super) fn attach_clsact(ebpf: &mut Ebpf, device: Device<'_>) -> Result<(), Error> {
    match tc::qdisc_add_clsact(device.name) {
        Err(error) if io_error(&error).kind() != io::ErrorKind::AlreadyExists => {
            return Err(device.failed(io_error(&error)));
        }
        _ => {}
    }
    detach_clsact(device.name)?;
    let failed = |error: ProgramError| match error {
        ProgramError::TcError(error) => device.failed(io_error(&error)),
        error => Error::program(name::STAMP_REPLY, error),
    };
    let program: &mut SchedClassifier = ebpf
        .program_mut(name::STAMP_REPLY)
        .expect("the object has the program")
        .try_into()
        .map_err(failed)?;
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: PRIORITY,
        handle: HANDLE,
        ..NlOptions::default()
    });
    let link = program
        .attach_with_options(device.name, TcAttachType::Ingress, options)
        .map_err(failed)?;
    let link: SchedClassifierLink = program.take_link(link).map_err(failed)?;
    // It would remove the filter when dropped, but the filter has to outlive the daemon.
    std::mem::forget(link);
    Ok(())
}

/// Takes the classifier off a device that may be gone. Says whether there was one.
pub(super) fn detach(pins: &Path, index: u32) -> Result<bool, Error> {
    let pin = pin(pins, index);
    if let Ok(link) = sys::open_pin(&pin) {
        // Fails if the device is gone, and the program with it.
        let was_there = sys::detach(link.as_fd()).is_ok();
        fs::remove_file(&pin).map_err(|source| Error::Pins {
            action: "unpin",
            path: pin,
            source,
        })?;
        return Ok(was_there);
    }
    match name_of(index) {
        Some(name) => detach_clsact(&name),
        None => Ok(false),
    }
}

fn detach_clsact(device: &str) -> Result<bool, Error> {
    match tc::qdisc_detach_program(device, TcAttachType::Ingress, name::STAMP_REPLY) {
        Ok(()) => Ok(true),
        Err(error) => {
            let error = io_error(&error);
            // Without the qdisc, the kernel says that the parent is not valid.
            let nothing = matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV))
                || error.kind() == io::ErrorKind::NotFound;
            if nothing {
                Ok(false)
            } else {
                Err(Error::Link {
                    action: "detach",
                    program: format!("{} of {device}", name::STAMP_REPLY),
                    source: error,
                })
            }
        }
    }
}

/// Whether `pin` is that of a device, and of which.
pub(super) fn device_of_pin(pin: &str) -> Option<u32> {
    pin.strip_prefix(PREFIX)?.parse().ok()
}

fn pin(pins: &Path, index: u32) -> PathBuf {
    pins.join(format!("{PREFIX}{index}"))
}

fn index_of(name: &str) -> io::Result<u32> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(socket, name)?)
}

/// The name of the device with this index in the network namespace of the calling thread, if there is one.
pub(crate) fn name_of(index: u32) -> Option<String> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None).ok()?;
    rustix::net::netdevice::index_to_name(socket, index).ok()
}

fn io_error(error: &TcError) -> io::Error {
    match error {
        TcError::NetlinkError(error) => error.raw_os_error().map_or_else(
            || io::Error::other(error.to_string()),
            io::Error::from_raw_os_error,
        ),
        TcError::IoError(error) => error
            .raw_os_error()
            .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error),
        error => io::Error::other(error.to_string()),
    }
}
