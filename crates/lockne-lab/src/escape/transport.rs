//! Other transports, and other roads to the same ones.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use io_uring::{IoUring, opcode, squeue, types};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{
    Attempt, Family, Result, Way, Who,
    socket::{PAYLOAD, send_with, set},
};
use crate::probe::Call;

const V4: &[Family] = &[Family::V4];

pub(super) const WAYS: &[Way] = &[
    Way::new(
        "fast-open",
        "data in the first segment (`MSG_FASTOPEN`), bound to the device",
        |it| {
            let socket = it.tcp()?;
            it.bind_device(&socket)?;
            fast_open(it, &socket)
        },
    ),
    Way::new(
        "segments",
        "datagrams that the device cuts (`UDP_SEGMENT`)",
        |it| {
            const UDP_SEGMENT: libc::c_int = 103;
            let socket = it.udp()?;
            it.bind_device(&socket)?;
            set(
                &socket,
                libc::IPPROTO_UDP,
                UDP_SEGMENT,
                &400_i32.to_ne_bytes(),
                "UDP_SEGMENT",
            )?;
            let payload = PAYLOAD.repeat(40);
            socket
                .send_to(&payload, &it.to.into())
                .call("sendto")
                .map(drop)
        },
    ),
    Way::new(
        "zero-copy",
        "a datagram from the program's own pages (`MSG_ZEROCOPY`)",
        |it| {
            let socket = it.udp()?;
            set(
                &socket,
                libc::SOL_SOCKET,
                libc::SO_ZEROCOPY,
                &1_i32.to_ne_bytes(),
                "SO_ZEROCOPY",
            )?;
            it.bind_device(&socket)?;
            let sent = socket.send_to_with_flags(PAYLOAD, &it.to.into(), libc::MSG_ZEROCOPY);
            sent.call("sendto").map(drop)
        },
    ),
    Way::new("multipath-tcp", "a connection of Multipath TCP", |it| {
        let kind = Type::STREAM;
        let socket = Socket::new(it.domain(), kind, Some(Protocol::MPTCP)).call("socket")?;
        it.connect(&socket)
    }),
    Way::new(
        "multipath-tcp-bound",
        "the same, bound to the device",
        |it| {
            let kind = Type::STREAM;
            let socket = Socket::new(it.domain(), kind, Some(Protocol::MPTCP)).call("socket")?;
            it.bind_device(&socket)?;
            it.connect(&socket)
        },
    ),
    Way::new(
        "sctp",
        "an association of SCTP, bound to the device",
        |it| {
            let socket =
                Socket::new(it.domain(), Type::STREAM, Some(Protocol::SCTP)).call("socket")?;
            it.bind_device(&socket)?;
            it.connect(&socket)
        },
    ),
    Way::new(
        "udp-lite",
        "a datagram of UDP-Lite, bound to the device",
        |it| {
            let protocol = Protocol::from(libc::IPPROTO_UDPLITE);
            let socket = Socket::new(it.domain(), Type::DGRAM, Some(protocol)).call("socket")?;
            it.bind_device(&socket)?;
            it.send(&socket)
        },
    ),
    Way::new("l2tp", "a datagram of L2TP, bound to the device", |it| {
        let protocol = Protocol::from(115);
        let socket = Socket::new(it.domain(), Type::DGRAM, Some(protocol)).call("socket")?;
        it.bind_device(&socket)?;
        socket.send_to(PAYLOAD, &it.host()).call("sendto").map(drop)
    }),
    Way::new(
        "smc",
        "a connection of SMC, which falls back to TCP",
        |it| {
            let version = Protocol::from(i32::from(it.is_v6()));
            let socket =
                Socket::new(Domain::from(43), Type::STREAM, Some(version)).call("socket")?;
            it.connect(&socket)
        },
    ),
    Way::new(
        "rxrpc",
        "a call by RxRPC, whose socket is the kernel's own",
        |it| {
            let socket = Socket::new(Domain::from(33), Type::DGRAM, Some(Protocol::from(2)));
            let socket = socket.call("socket")?;
            let IpAddr::V4(to) = it.to.ip() else {
                return Ok(());
            };
            // `struct sockaddr_rxrpc`: family, service, transport, its length, an address of IPv4.
            let mut address = Vec::new();
            for word in [33_u16, 1, 2, 16, 2] {
                address.extend(word.to_ne_bytes());
            }
            address.extend(it.to.port().to_be_bytes());
            address.extend(to.octets());
            address.resize(36, 0);
            // SAFETY: so many bytes are written, which are all there is to the address.
            let ((), to) = unsafe {
                SockAddr::try_init(|storage, length| {
                    storage
                        .cast::<u8>()
                        .copy_from_nonoverlapping(address.as_ptr(), address.len());
                    *length = 36;
                    Ok(())
                })
            }
            .call("sockaddr")?;
            send_with(it, &socket, PAYLOAD, &to, (272, 1, &1_u64.to_ne_bytes()))
        },
    )
    .only(V4)
    .open_for(&Who::ALL),
    Way::new("io-uring", "a socket made and used by `io_uring`", |it| {
        let mut ring = ring(it, &IoUring::builder())?;
        let socket = ring.socket()?;
        ring.send(&socket)
    }),
    Way::new(
        "io-uring-worker",
        "the same by the kernel's workers, bound to the device",
        |it| {
            let mut ring = ring(it, &IoUring::builder())?;
            ring.flags = squeue::Flags::ASYNC;
            let socket = ring.socket()?;
            it.bind_device(&socket)?;
            ring.send(&socket)
        },
    ),
    Way::new(
        "io-uring-thread",
        "the same by a thread of the kernel (`SQPOLL`)",
        |it| {
            let mut ring = ring(it, IoUring::builder().setup_sqpoll(100))?;
            let socket = ring.socket()?;
            it.bind_device(&socket)?;
            ring.send(&socket)
        },
    ),
    Way::new(
        "io-uring-option",
        "a socket that `io_uring` binds to the device",
        |it| {
            let mut ring = ring(it, &IoUring::builder())?;
            let socket = ring.socket()?;
            let device = it.scene.device.as_bytes();
            ring.set(&socket, libc::SO_BINDTODEVICE, device, "SO_BINDTODEVICE")?;
            ring.send(&socket)
        },
    ),
    Way::new(
        "io-uring-connect",
        "a connection by `io_uring`, bound to the device",
        |it| {
            let mut ring = ring(it, &IoUring::builder())?;
            let socket = it.tcp()?;
            it.bind_device(&socket)?;
            socket.set_nonblocking(true).call("O_NONBLOCK")?;
            let to = SockAddr::from(it.to);
            let fd = types::Fd(socket.as_raw_fd());
            let entry = opcode::Connect::new(fd, to.as_ptr().cast(), to.len()).build();
            match ring.submit(entry, "connect", false) {
                Err(failed) if failed.error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
                result => result.map(drop),
            }
        },
    ),
];

/// Connects and sends in one call.
pub(super) fn fast_open(it: &Attempt<'_>, socket: &Socket) -> Result {
    socket.set_nonblocking(true).call("O_NONBLOCK")?;
    match socket.send_to_with_flags(PAYLOAD, &it.to.into(), libc::MSG_FASTOPEN) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error).call("sendto"),
        _ => Ok(()),
    }
}

/// An `io_uring` that does one thing at a time.
pub(super) struct Ring<'a> {
    uring: IoUring,
    it: &'a Attempt<'a>,
    flags: squeue::Flags,
}

pub(super) fn ring<'a>(it: &'a Attempt<'_>, builder: &io_uring::Builder) -> Result<Ring<'a>> {
    Ok(Ring {
        uring: builder.build(8).call("io_uring_setup")?,
        it,
        flags: squeue::Flags::empty(),
    })
}

impl Ring<'_> {
    pub(super) fn socket(&mut self) -> Result<OwnedFd> {
        let domain = i32::from(self.it.domain());
        let entry = opcode::Socket::new(domain, libc::SOCK_DGRAM, libc::IPPROTO_UDP).build();
        let fd = self.submit(entry, "socket", true)?;
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    pub(super) fn send(&mut self, socket: &OwnedFd) -> Result {
        let to = SockAddr::from(self.it.to);
        let length = u32::try_from(PAYLOAD.len()).expect("a short text");
        let entry = opcode::Send::new(types::Fd(socket.as_raw_fd()), PAYLOAD.as_ptr(), length)
            .dest_addr(to.as_ptr().cast())
            .dest_addr_len(to.len())
            .build();
        self.submit(entry, "send", true).map(drop)
    }

    pub(super) fn set(
        &mut self,
        socket: &OwnedFd,
        name: libc::c_int,
        value: &[u8],
        call: &'static str,
    ) -> Result {
        let level = u32::try_from(libc::SOL_SOCKET).expect("a small number");
        let name = u32::try_from(name).expect("a small number");
        let length = u32::try_from(value.len()).expect("options are short");
        let fd = types::Fd(socket.as_raw_fd());
        let entry = opcode::SetSockOpt::new(fd, level, name, value.as_ptr().cast(), length).build();
        self.submit(entry, call, false).map(drop)
    }

    fn submit(&mut self, entry: squeue::Entry, call: &'static str, flagged: bool) -> Result<i32> {
        let entry = if flagged {
            entry.flags(self.flags)
        } else {
            entry
        };
        // SAFETY: what the entry points to outlives the wait below.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        pushed.map_err(std::io::Error::other).call(call)?;
        self.uring.submit_and_wait(1).call("io_uring_enter")?;
        let result = self
            .uring
            .completion()
            .next()
            .map_or(-libc::EIO, |it| it.result());
        if result < 0 {
            return Err(std::io::Error::from_raw_os_error(-result)).call(call);
        }
        Ok(result)
    }
}
