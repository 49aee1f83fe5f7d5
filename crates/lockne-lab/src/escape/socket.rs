//! What most attempts begin and end with.

use std::{
    io,
    mem::size_of,
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
};

use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Attempt, Family, Result};
use crate::probe::Call;

/// What a datagram carries.
pub(super) const PAYLOAD: &[u8] = b"lockne escape suite";

impl Attempt<'_> {
    pub(super) fn domain(&self) -> Domain {
        Domain::for_address(self.to)
    }

    pub(super) fn is_v6(&self) -> bool {
        self.case.family == Family::V6
    }

    pub(super) fn udp(&self) -> Result<Socket> {
        Socket::new(self.domain(), Type::DGRAM, Some(Protocol::UDP)).call("socket")
    }

    pub(super) fn tcp(&self) -> Result<Socket> {
        Socket::new(self.domain(), Type::STREAM, Some(Protocol::TCP)).call("socket")
    }

    fn icmp(&self) -> Protocol {
        if self.is_v6() {
            Protocol::ICMPV6
        } else {
            Protocol::ICMPV4
        }
    }

    pub(super) fn ping(&self) -> Result<Socket> {
        Socket::new(self.domain(), Type::DGRAM, Some(self.icmp())).call("socket")
    }

    pub(super) fn raw_ping(&self) -> Result<Socket> {
        Socket::new(self.domain(), Type::RAW, Some(self.icmp())).call("socket")
    }

    /// An echo request, for ping and raw sockets.
    pub(super) fn echo(&self) -> Vec<u8> {
        crate::probe::echo_request(self.to, PAYLOAD)
    }

    /// The destination for sockets that know no ports.
    pub(super) fn host(&self) -> SockAddr {
        SocketAddr::new(self.to.ip(), 0).into()
    }

    pub(super) fn device(&self) -> Result<u32> {
        if_nametoindex(self.scene.device.as_str()).call("if_nametoindex")
    }

    pub(super) fn bind_device(&self, socket: &impl AsRawFd) -> Result {
        let device = self.scene.device.as_bytes();
        set(
            socket,
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            device,
            "SO_BINDTODEVICE",
        )
    }

    /// The machine's own address on the physical device.
    pub(super) fn source(&self, port: u16) -> SockAddr {
        let (v4, v6) = self.scene.source;
        if self.is_v6() {
            SocketAddr::new(v6.into(), port).into()
        } else {
            SocketAddr::new(v4.into(), port).into()
        }
    }

    /// Sends one datagram.
    pub(super) fn send(&self, socket: &Socket) -> Result {
        socket
            .send_to(PAYLOAD, &self.to.into())
            .call("sendto")
            .map(drop)
    }

    /// Asks for a connection, without waiting for it: the first segment goes out at once.
    pub(super) fn connect(&self, socket: &Socket) -> Result {
        socket.set_nonblocking(true).call("O_NONBLOCK")?;
        match socket.connect(&self.to.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                Err(error).call("connect")
            }
            _ => Ok(()),
        }
    }

    /// What a program does that seeks no way out.
    pub(super) fn plain(&self) -> Result {
        self.send(&self.udp()?)
    }
}

/// Sets an option by its numbers.
pub(super) fn set(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &[u8],
    call: &'static str,
) -> Result {
    let length = libc::socklen_t::try_from(value.len()).expect("options are short");
    let (fd, value) = (socket.as_raw_fd(), value.as_ptr().cast());
    // SAFETY: the pointer is valid for the length.
    check(
        unsafe { libc::setsockopt(fd, level, name, value, length) },
        call,
    )
    .map(drop)
}

/// Sends one datagram with a control message.
pub(super) fn send_with(
    attempt: &Attempt<'_>,
    socket: &Socket,
    payload: &[u8],
    to: &SockAddr,
    (level, kind, data): (libc::c_int, libc::c_int, &[u8]),
) -> Result {
    let header = size_of::<libc::cmsghdr>();
    let length = header + data.len();
    let mut control = vec![0_u64; length.div_ceil(size_of::<u64>())];
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(level.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    for (word, bytes) in control.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(whole);
    }
    debug_assert_eq!(attempt.domain() == Domain::IPV6, attempt.is_v6());

    let mut piece = libc::iovec {
        iov_base: payload.as_ptr().cast_mut().cast(),
        iov_len: payload.len(),
    };
    // SAFETY: all zeros are a message without an address, data and control.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = (control.len() * size_of::<u64>()) as _;
    // SAFETY: every pointer in the message is valid for its length.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
    check(sent, "sendmsg").map(drop)
}

/// Gives the result of a system call its name.
pub(super) fn check<T: TryInto<i64> + Copy>(result: T, call: &'static str) -> Result<T> {
    match result.try_into() {
        Ok(-1) => Err(io::Error::last_os_error()).call(call),
        _ => Ok(result),
    }
}

/// Lets a descriptor go over an exec.
pub(super) fn keep_open(fd: RawFd) -> Result {
    // SAFETY: changes a flag of the descriptor.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }, "F_SETFD").map(drop)
}
