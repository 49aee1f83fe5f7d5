//! A TUN device, seen by the embedded WireGuard.
//!
//! The device is persistent: it, its index and its routes outlive a killed daemon, so that nothing
//! finds another way out before the next daemon takes it over.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, Read as _, Write as _},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    sync::Arc,
};

use bytes::BytesMut;
use gotatun::{
    packet::{Ip, Packet, PacketBufPool},
    tun::{IpRecv, IpSend, MtuWatcher},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
};

use crate::{
    blocks::Blocks,
    death::Death,
    offload::{
        Header, LONGEST,
        merge::{Kinds, Run, runs},
        split::Split,
    },
    pace::Pace,
};

const PATH: &str = "/dev/net/tun";

/// A deleted device is an error only, neither readable nor closed (`tun_chr_poll`).
const READ: Interest = Interest::READABLE.add(Interest::ERROR);

/// How many packets may wait to be written, and how many of them are looked at together.
const WAITING: usize = 1024;
const BATCH: usize = 256;

/// By how much WireGuard makes a packet longer in its place: up to a multiple of 16 bytes.
const PADDING: usize = 15;

/// Why a device could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// There is no TUN driver.
    #[error("cannot open {PATH}")]
    Open {
        /// What the system said.
        source: io::Error,
    },
    /// Another process serves it.
    #[error("the TUN device `{name}` is in use")]
    Busy {
        /// The device.
        name: String,
    },
    /// It could not be made or taken over.
    #[error("cannot {action} the TUN device `{name}`")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// The device.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

/// The open device.
pub struct Tun {
    name: String,
    file: File,
    kinds: Kinds,
}

/// Packets from WireGuard to applications.
///
/// They come one by one. What waits while another is written is then written as one packet, if it belongs
/// together.
pub struct TunSend(mpsc::Sender<Packet<Ip>>);

/// Writes what was sent.
struct Writer {
    fd: Arc<AsyncFd<File>>,
    kinds: Kinds,
    death: Death,
}

/// Packets from applications to WireGuard.
pub struct TunRecv {
    fd: Arc<AsyncFd<File>>,
    mtu: u16,
    buffer: Vec<u8>,
    blocks: Blocks,
    pace: Pace,
    death: Death,
}

/// Whether a device should be there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// There must be none.
    Create,
    /// There is one, left over by another daemon.
    Attach,
}

impl Tun {
    /// Opens the device `name`. A new one is gone with the value, until [`persist`](Self::persist).
    ///
    /// # Errors
    ///
    /// If the driver is missing, the device is in use, or the system refuses.
    pub fn open(name: &str, start: Start) -> Result<Self, TunError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(PATH)
            .map_err(|source| TunError::Open { source })?;

        let (action, exclusive) = match start {
            Start::Create => ("create", libc::IFF_TUN_EXCL),
            Start::Attach => ("attach to", 0),
        };
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | exclusive;
        set_interface(&file, name, flags).map_err(|source| match source.raw_os_error() {
            // Another process has it open, or it came to be just now.
            Some(libc::EBUSY) => TunError::Busy {
                name: name.to_owned(),
            },
            _ => TunError::Refused {
                action,
                name: name.to_owned(),
                source,
            },
        })?;

        let kinds = offload(&file);
        Ok(Self {
            name: name.to_owned(),
            file,
            kinds,
        })
    }

    /// Lets the device outlive this process.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn persist(&self) -> Result<(), TunError> {
        let fd = self.file.as_raw_fd();
        // SAFETY: `fd` is open, and TUNSETPERSIST takes a number.
        let result = match unsafe { libc::ioctl(fd, libc::TUNSETPERSIST, 1) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        self.refused("keep", result)
    }

    /// Says what was refused.
    pub(super) fn refused<T>(
        &self,
        action: &'static str,
        result: io::Result<T>,
    ) -> Result<T, TunError> {
        result.map_err(|source| TunError::Refused {
            action,
            name: self.name.clone(),
            source,
        })
    }

    /// Both directions of the device, whose end is told to `death`. Must be called in the runtime that
    /// shall do the work.
    pub(super) fn split(&self, mtu: u16, death: &Death) -> Result<(TunSend, TunRecv), TunError> {
        let fd = Arc::new(self.refused("watch", self.watch())?);
        let (sender, packets) = mpsc::channel(WAITING);
        let writer = Writer {
            fd: fd.clone(),
            kinds: self.kinds,
            death: death.clone(),
        };
        tokio::spawn(writer.run(packets));
        let recv = TunRecv {
            fd,
            mtu,
            buffer: vec![0; Header::LEN + LONGEST],
            blocks: Blocks::default(),
            pace: Pace::default(),
            death: death.clone(),
        };
        Ok((TunSend(sender), recv))
    }

    fn watch(&self) -> io::Result<AsyncFd<File>> {
        let file = self.file.try_clone()?;
        // SAFETY: a `File` has one descriptor as long as it lives, and nothing else closes it.
        let fd = unsafe { AsyncFd::register_with_interest(file, READ | Interest::WRITABLE) };
        fd.map_err(io::Error::from)
    }
}

/// Asks for packets of many segments, as far as this kernel makes them. The same are then given to it.
///
/// Without any, every packet still has its [`Header`].
fn offload(file: &File) -> Kinds {
    const TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let ask = |flags: libc::c_uint| {
        // SAFETY: `file` is open, and TUNSETOFFLOAD takes a number.
        0 == unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, flags) }
    };
    // UDP since Linux 6.2.
    if ask(TCP | UDP) {
        return Kinds {
            tcp: true,
            udp: true,
        };
    }
    Kinds {
        tcp: ask(TCP),
        udp: false,
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
        self.pace.keep().await;
        let buffer = self.buffer.as_mut_slice();
        let read = self.fd.async_io(READ, |mut file| file.read(buffer)).await;
        let length = match read {
            Ok(length) => length,
            Err(error) => return Err(self.death.fatal(error)),
        };
        let packets = cut(&mut self.buffer[..length], &mut self.blocks, pool);
        self.pace.count(packets.len());
        Ok(packets.into_iter())
    }

    fn mtu(&self) -> MtuWatcher {
        MtuWatcher::new(self.mtu)
    }
}

/// The packets in what was read at once. What makes no sense is lost, as on every other network.
pub(crate) fn cut(read: &mut [u8], blocks: &mut Blocks, pool: &PacketBufPool) -> Vec<Packet<Ip>> {
    let Some((header, packet)) = read.split_first_chunk_mut() else {
        return Vec::new();
    };
    let length = packet.len();
    let Ok(split) = Header::read(*header).and_then(|header| Split::new(header, packet)) else {
        return Vec::new();
    };
    let write = |index, to: &mut BytesMut| {
        to.clear();
        for part in split.parts(index) {
            to.extend_from_slice(part);
        }
        split.mend(index, to);
    };
    let mut block = (length >= Blocks::WORTH).then(|| blocks.take());
    let packet = |index| {
        let room = split.longest() + PADDING;
        let packet = match &mut block {
            Some(block) if block.len() >= room => {
                let mut bytes = block.split_to(room);
                write(index, &mut bytes);
                Packet::from_bytes(bytes)
            }
            _ => {
                let mut packet = pool.get();
                write(index, packet.buf_mut());
                packet
            }
        };
        packet.try_into_ip().ok()
    };
    (0..split.count()).filter_map(packet).collect()
}

impl IpSend for TunSend {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        // The writer has ended, and told why.
        let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.send(packet).await.map_err(closed)
    }
}

impl Writer {
    /// Writes until the device or the sender is gone.
    async fn run(mut self, mut packets: mpsc::Receiver<Packet<Ip>>) {
        let mut waiting = Vec::with_capacity(BATCH);
        let mut batch: Vec<Packet> = Vec::with_capacity(BATCH);
        while packets.recv_many(&mut waiting, BATCH).await > 0 {
            batch.clear();
            batch.extend(waiting.drain(..).map(Packet::into_bytes));
            for run in runs(&batch, self.kinds) {
                if let Err(error) = self.write(&run, &batch).await {
                    self.death.fatal(error);
                    return;
                }
            }
        }
    }

    /// Fails only when the device is gone.
    async fn write(&mut self, run: &Run, batch: &[Packet]) -> io::Result<()> {
        if let Some((header, head)) = run.head(batch) {
            let header = header.write();
            let mut parts = Vec::with_capacity(2 + run.packets.len());
            parts.extend([IoSlice::new(&header), IoSlice::new(&head)]);
            let payloads = run.packets.iter().map(|place| &batch[*place]);
            parts.extend(payloads.map(|packet| IoSlice::new(run.payload(packet))));
            match self.put(&parts).await {
                // It takes no such packets after all.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    tracing::debug!("the kernel takes no joined packets; each goes alone");
                    let kinds = &mut self.kinds;
                    *if run.is_udp() {
                        &mut kinds.udp
                    } else {
                        &mut kinds.tcp
                    } = false;
                }
                done => return lost(done),
            }
        }
        for place in &run.packets {
            let header = Header::WHOLE.write();
            let parts = [IoSlice::new(&header), IoSlice::new(&batch[*place])];
            lost(self.put(&parts).await)?;
        }
        Ok(())
    }

    async fn put(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let write = |mut file: &File| file.write_vectored(parts).map(drop);
        self.fd.async_io(Interest::WRITABLE, write).await
    }
}

/// The device is down (EIO), the packet is malformed (EINVAL) or memory is short: as on every other network,
/// the packet is lost. But not when the device is gone.
fn lost(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// `tun_get` of the kernel finds no device behind the file any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV))
}
