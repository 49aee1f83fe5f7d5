//! A TUN device, seen by the embedded WireGuard.
//!
//! The device is persistent: it, its index and its routes outlive a killed daemon, so that nothing
//! finds another way out before the next daemon takes it over.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    sync::Arc,
};

use gotatun::{
    packet::{Ip, Packet, PacketBufPool},
    tun::{IpRecv, IpSend, MtuWatcher},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{Error, death::Death};

const PATH: &str = "/dev/net/tun";

/// A deleted device is an error only, neither readable nor closed (`tun_chr_poll`).
const READ: Interest = Interest::READABLE.add(Interest::ERROR);

/// The open device.
pub(super) struct Tun {
    name: String,
    fd: Arc<AsyncFd<File>>,
}

/// Packets from WireGuard to applications.
pub(super) struct TunSend {
    fd: Arc<AsyncFd<File>>,
    death: Death,
}

/// Packets from applications to WireGuard.
pub(super) struct TunRecv {
    fd: Arc<AsyncFd<File>>,
    mtu: u16,
    buffer: Vec<u8>,
    death: Death,
}

/// Whether a device should be there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// There must be none.
    Create,
    /// There is one, left over by another daemon.
    Attach,
}

impl Tun {
    /// Opens the device `name`. A new one is gone with the value, until [`persist`](Self::persist).
    pub(super) fn open(name: &str, start: Start) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(PATH)
            .map_err(|source| Error::OpenTun { source })?;

        let (action, exclusive) = match start {
            Start::Create => ("create", libc::IFF_TUN_EXCL),
            Start::Attach => ("attach to", 0),
        };
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | exclusive;
        set_interface(&file, name, flags).map_err(|source| match source.raw_os_error() {
            // Another process has it open, or it came to be just now.
            Some(libc::EBUSY) => Error::Busy {
                name: name.to_owned(),
            },
            _ => Error::Tun {
                action,
                name: name.to_owned(),
                source,
            },
        })?;

        let interest = READ | Interest::WRITABLE;
        // SAFETY: a `File` has one descriptor as long as it lives, and nothing else closes it.
        let fd = unsafe { AsyncFd::register_with_interest(file, interest) };
        let fd = fd.map_err(|error| Error::Tun {
            action: "watch",
            name: name.to_owned(),
            source: error.into(),
        })?;
        Ok(Self {
            name: name.to_owned(),
            fd: Arc::new(fd),
        })
    }

    /// Lets the device outlive this process.
    pub(super) fn persist(&self) -> Result<(), Error> {
        let fd = self.fd.get_ref().as_raw_fd();
        // SAFETY: `fd` is open, and TUNSETPERSIST takes a number.
        let result = unsafe { libc::ioctl(fd, libc::TUNSETPERSIST, 1) };
        if result < 0 {
            return Err(Error::Tun {
                action: "keep",
                name: self.name.clone(),
                source: io::Error::last_os_error(),
            });
        }
        Ok(())
    }

    /// Both directions of the device, whose end is told to `death`.
    pub(super) fn split(&self, mtu: u16, death: &Death) -> (TunSend, TunRecv) {
        let send = TunSend {
            fd: self.fd.clone(),
            death: death.clone(),
        };
        let recv = TunRecv {
            fd: self.fd.clone(),
            mtu,
            // The longest IP packet.
            buffer: vec![0; 0xffff],
            death: death.clone(),
        };
        (send, recv)
    }
}

/// The ioctl TUNSETIFF.
fn set_interface(file: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: every bit pattern is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from.cast_signed();
    }
    // The flags of TUNSETIFF use all 16 bits of the field, sign or not.
    #[expect(clippy::cast_possible_truncation, reason = "the field has 16 bits")]
    let flags = flags as libc::c_short;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: `file` is open, and TUNSETIFF takes a pointer to an `ifreq` that it may write to.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl IpRecv for TunRecv {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        let buffer = self.buffer.as_mut_slice();
        let read = self.fd.async_io(READ, |mut file| file.read(buffer)).await;
        let length = match read {
            Ok(length) => length,
            Err(error) => return Err(self.death.fatal(error)),
        };

        let mut packet = pool.get();
        packet.buf_mut().clear();
        packet.buf_mut().extend_from_slice(&self.buffer[..length]);
        Ok(packet.try_into_ip().ok().into_iter())
    }

    fn mtu(&self) -> MtuWatcher {
        MtuWatcher::new(self.mtu)
    }
}

impl IpSend for TunSend {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let packet = packet.into_bytes();
        let write = self
            .fd
            .async_io(Interest::WRITABLE, |mut file| file.write(&packet))
            .await;
        match write {
            Err(error) if is_gone(&error) => Err(self.death.fatal(error)),
            // The device is down (EIO), the packet is malformed (EINVAL) or memory is short: as on
            // every other network, the packet is lost.
            _ => Ok(()),
        }
    }
}

/// `tun_get` of the kernel finds no device behind the file any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV))
}
