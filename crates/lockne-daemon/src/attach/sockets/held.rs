//! One socket of a process, held by us too.

use std::{io, net::SocketAddr, os::fd::RawFd};

use lockne_core::{
    api::{Fate, SocketStatus},
    rule::Existing,
};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use socket2::{Domain, Socket};

use super::{Move, Process};
use crate::{
    inherited::{Error, is_near, is_of_this_netns},
    socket::Listed,
};

/// A socket of a process, held by us too.
pub(super) struct Held {
    pub(super) socket: Socket,
    pid: u32,
    number: RawFd,
}

impl Held {
    /// `None` if it was closed, or the process has ended.
    pub(super) fn take(process: &Process, number: RawFd) -> Result<Option<Self>, Error> {
        let pid = process.pid;
        match pidfd_getfd(process.handle(), number, PidfdGetfdFlags::empty()) {
            Ok(fd) => Ok(Some(Self {
                socket: Socket::from(fd),
                pid,
                number,
            })),
            Err(rustix::io::Errno::BADF | rustix::io::Errno::SRCH) => Ok(None),
            Err(errno) => Err(Error::Take {
                pid,
                number,
                source: errno.into(),
            }),
        }
    }

    pub(super) fn failed(&self, source: io::Error) -> Error {
        Error::Bind {
            pid: self.pid,
            number: self.number,
            source,
        }
    }

    /// What it is; `None` if it is not one on the network, or the descriptor is another one's by now.
    pub(super) fn status(
        &self,
        inode: u64,
        listed: Option<&Listed>,
    ) -> io::Result<Option<SocketStatus>> {
        if rustix::fs::fstat(&self.socket)?.st_ino != inode {
            return Ok(None);
        }
        let domain = self.socket.domain()?;
        if domain != Domain::IPV4 && domain != Domain::IPV6 {
            let Some(protocol) = by_itself(domain) else {
                return Ok(None);
            };
            return Ok(Some(SocketStatus {
                inode,
                protocol: protocol.to_owned(),
                local: None,
                remote: None,
                state: "open".to_owned(),
                mark: self.socket.mark()?,
            }));
        }
        let mark = self.socket.mark()?;
        if let Some(listed) = listed {
            return Ok(Some(SocketStatus {
                mark,
                ..of_listed(inode, listed)
            }));
        }
        let address = |it: io::Result<socket2::SockAddr>| {
            let it = it.ok()?.as_socket()?;
            Some(SocketAddr::new(it.ip().to_canonical(), it.port()))
        };
        let remote = address(self.socket.peer_addr());
        let state = if remote.is_some() {
            "connected"
        } else {
            "open"
        };
        Ok(Some(SocketStatus {
            inode,
            protocol: self.protocol()?,
            local: address(self.socket.local_addr()),
            remote,
            state: state.to_owned(),
            mark,
        }))
    }

    /// What its protocol is called, where the kernel's list does not say it.
    fn protocol(&self) -> io::Result<String> {
        let number = self.socket.protocol()?.map_or(0, i32::from);
        let name = match (self.socket.r#type()?, number) {
            (socket2::Type::RAW, _) => "raw",
            (socket2::Type::DGRAM, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => "icmp",
            (_, libc::IPPROTO_TCP) => "tcp",
            (_, libc::IPPROTO_UDP) => "udp",
            (_, libc::IPPROTO_UDPLITE) => "udp-lite",
            (_, libc::IPPROTO_SCTP) => "sctp",
            (_, libc::IPPROTO_DCCP) => "dccp",
            (_, libc::IPPROTO_MPTCP) => "mptcp",
            (_, number) => return Ok(format!("ip-{number}")),
        };
        Ok(name.to_owned())
    }

    pub(super) fn fate(&self, status: &SocketStatus, how: Move<'_>) -> (Fate, Option<String>) {
        let stuck = |why: &str| (Fate::Stuck, Some(why.to_owned()));
        match status.protocol.as_str() {
            "packet" => return stuck("it writes frames past every route and mark"),
            "xdp" => return stuck("it is bound to a device, past every route and mark"),
            _ => {}
        }
        if !is_of_this_netns(&self.socket) {
            return stuck("it belongs to another network namespace");
        }
        if how.has(status.mark) {
            return (Fate::Same, None);
        }
        let is_connected = !matches!(status.state.as_str(), "open" | "listen");
        let fate = if !is_connected {
            Fate::Moved
        } else if is_near(
            status.local.map(|it| it.ip()),
            status.remote.map(|it| it.ip()),
            how.lan,
        ) {
            Fate::Near
        } else if how.existing == Existing::Keep {
            Fate::Kept
        } else {
            Fate::Cut
        };
        (fate, None)
    }

    pub(super) fn mark(&self, how: Move<'_>) -> Result<(), Error> {
        let mark = self.socket.mark().map_err(|e| self.failed(e))?;
        self.socket
            .set_mark(how.field.stamp(mark, how.id()))
            .map_err(|e| self.failed(e))
    }

    /// Cuts the connection, and marks what is left.
    pub(super) fn cut(&self, listed: Option<&Listed>, how: Move<'_>) -> Result<(), Error> {
        // A kernel may be built without it.
        let is_cut = listed.is_some_and(|it| it.cut().unwrap_or(false));
        self.mark(how)?;
        if is_cut || self.socket.peer_addr().is_err() {
            return Ok(());
        }
        // TCP in its last states is nobody's connection any more.
        if rustix::net::connect_unspec(&self.socket).is_ok() {
            return Ok(());
        }
        match self.socket.shutdown(std::net::Shutdown::Both) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(self.failed(error)),
            _ => Ok(()),
        }
    }
}

pub(super) fn of_listed(inode: u64, listed: &Listed) -> SocketStatus {
    SocketStatus {
        inode,
        protocol: if listed.is_tcp() { "tcp" } else { "udp" }.to_owned(),
        local: Some(listed.local()),
        remote: listed.remote(),
        state: listed.state().to_owned(),
        mark: listed.mark,
    }
}

/// Sockets that reach the network by themselves, without routes and marks.
fn by_itself(domain: Domain) -> Option<&'static str> {
    match i32::from(domain) {
        libc::AF_PACKET => Some("packet"),
        libc::AF_XDP => Some("xdp"),
        _ => None,
    }
}
