//! What can be asked of a socket, and of a single datagram, to get out another way.

use std::{
    io,
    mem::{size_of, size_of_val},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};

use nix::net::if_::if_nametoindex;
use socket2::{Domain, SockAddr, Socket};

use super::{
    Form, Probe,
    act::{ANY_MAPPED, Call, Result},
};

/// Sets the options that `probe` names.
pub(super) fn apply(socket: &Socket, probe: &Probe) -> Result<()> {
    let options = &probe.options;
    let is_v6 = socket.domain().call("SO_DOMAIN")? == Domain::IPV6;
    if let Some(mark) = options.mark {
        socket.set_mark(mark).call("SO_MARK")?;
    }
    if let Some(device) = &options.bind_device {
        let device = device.as_bytes();
        socket.bind_device(Some(device)).call("SO_BINDTODEVICE")?;
    }
    if let Some(device) = &options.unicast_device {
        let index = if_nametoindex(device.as_str()).call("if_nametoindex")?;
        if is_v6 {
            let set = set_u32(
                socket,
                libc::IPPROTO_IPV6,
                libc::IPV6_UNICAST_IF,
                index.to_be(),
            );
            set.call("IPV6_UNICAST_IF")?;
        }
        // Holds for IPv4 on a socket of IPv6 too.
        if !is_v6 || options.form == Form::V4Mapped {
            let set = set_u32(socket, libc::IPPROTO_IP, libc::IP_UNICAST_IF, index.to_be());
            set.call("IP_UNICAST_IF")?;
        }
    }
    if let Some(source) = options.source {
        let source = match source {
            IpAddr::V4(source) if is_v6 => source.to_ipv6_mapped().into(),
            source => source,
        };
        let source = SockAddr::from(SocketAddr::new(source, 0));
        socket.bind(&source).call("bind")?;
    }
    Ok(())
}

/// Sends a datagram with the control messages that `probe` names.
pub(super) fn send(
    socket: &Socket,
    payload: &[u8],
    to: Option<SocketAddr>,
    probe: &Probe,
) -> Result<()> {
    let options = &probe.options;
    let mut control = Control::default();
    if let Some(device) = &options.packet_device {
        let index = if_nametoindex(device.as_str()).call("if_nametoindex")?;
        if socket.domain().call("SO_DOMAIN")? == Domain::IPV6 {
            let any = match options.form {
                Form::Plain => Ipv6Addr::UNSPECIFIED,
                Form::V4Mapped => ANY_MAPPED,
            };
            let mut info = any.octets().to_vec();
            info.extend(index.to_ne_bytes());
            control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        } else {
            // `struct in_pktinfo`: the index, the source and the destination, both of them any.
            let mut info = index.to_ne_bytes().to_vec();
            info.extend([0; 8]);
            control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
    }
    if let Some(mark) = options.packet_mark {
        control.push(libc::SOL_SOCKET, libc::SO_MARK, &mark.to_ne_bytes());
    }

    let to = to.map(SockAddr::from);
    control.send(socket, payload, to.as_ref()).call("sendmsg")
}

/// Control messages in the form of `cmsg(3)`.
#[derive(Default)]
struct Control(Vec<u64>);

impl Control {
    fn push(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        // `cmsghdr` on Linux is a length and two ints, and each message begins on a whole word.
        let header = size_of::<libc::cmsghdr>();
        let length = header + data.len();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        assert_eq!(bytes.len(), header, "the header has no padding");
        bytes.extend(data);
        bytes.resize(length.next_multiple_of(size_of::<usize>()), 0);
        for word in bytes.chunks(8) {
            let mut whole = [0; 8];
            whole[..word.len()].copy_from_slice(word);
            self.0.push(u64::from_ne_bytes(whole));
        }
    }

    fn send(&self, socket: &Socket, payload: &[u8], to: Option<&SockAddr>) -> io::Result<()> {
        let mut piece = libc::iovec {
            iov_base: payload.as_ptr().cast_mut().cast(),
            iov_len: payload.len(),
        };
        // SAFETY: all zeros are a message without an address, data and control.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        if let Some(to) = to {
            message.msg_name = to.as_ptr().cast_mut().cast();
            message.msg_namelen = to.len();
        }
        if !self.0.is_empty() {
            message.msg_control = self.0.as_ptr().cast_mut().cast();
            message.msg_controllen = size_of_val(self.0.as_slice()) as _;
        }
        // SAFETY: every pointer in the message is valid for its length and only read from.
        match unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

fn set_u32(socket: &Socket, level: libc::c_int, name: libc::c_int, value: u32) -> io::Result<()> {
    let length = 4;
    let value = std::ptr::from_ref(&value).cast();
    // SAFETY: the pointer is valid for the length of the option's value.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
