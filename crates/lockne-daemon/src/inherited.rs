//! The network sockets that a process has had since before its policy.
//!
//! They carry no mark, so the guard would let them out. A process brings them along from whoever
//! started it: `lockne run` keeps every descriptor that is meant to survive `exec`.

use std::{
    collections::BTreeSet,
    fs, io,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd, RawFd},
};

use ipnet::IpNet;
use lockne_abi::MarkField;
use lockne_core::{
    policy::{Action, PolicyId, Terms},
    rule::Existing,
};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use socket2::{Domain, Socket};

use crate::kernel::cookie_of;

/// Why the sockets of a process could not be bound to its policy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptors of the process cannot be listed.
    #[error("cannot list the open files of process {pid}")]
    List {
        /// The process.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// A socket of the process cannot be reached.
    #[error("cannot take hold of descriptor {number} of process {pid}")]
    Take {
        /// The process.
        pid: u32,
        /// The descriptor there.
        number: RawFd,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel does not list its sockets, or does not cut one.
    #[error("cannot list the sockets of this machine, or cut one")]
    Listing(#[source] io::Error),
    /// A socket of the process cannot be marked, or not be cut.
    #[error("cannot bind descriptor {number} of process {pid} to the policy")]
    Bind {
        /// The process.
        pid: u32,
        /// The descriptor there.
        number: RawFd,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// What a user can do about it.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::List { .. } | Self::Take { .. } => {
                Some("the daemon needs CAP_SYS_PTRACE to reach the sockets of other processes")
            }
            Self::Bind { .. } | Self::Listing(_) => None,
        }
    }
}

/// Marks the sockets of the process `pid` with its policy, and cuts what is connected to elsewhere;
/// says how many connections were cut.
///
/// A connection keeps its source address, so in another way than its own it could only be silent.
/// What stays on this machine, or goes where the policy lets it go directly, stays whole; so does
/// every connection under `direct`, or if `existing` ones are kept. Whoever else holds the same socket feels the change too.
///
/// # Errors
///
/// Fails at the first socket that can neither be marked nor cut.
pub(crate) fn bind(
    process: BorrowedFd<'_>,
    pid: u32,
    field: MarkField,
    id: PolicyId,
    terms: &Terms,
    existing: Existing,
) -> Result<u32, Error> {
    let mut seen = BTreeSet::new();
    let mut cut = 0;
    for (number, name) in sockets(pid)? {
        if !seen.insert(name) {
            continue;
        }
        let fd = match pidfd_getfd(process, number, PidfdGetfdFlags::empty()) {
            Ok(fd) => fd,
            // Closed in the meantime, or the whole process has ended.
            Err(rustix::io::Errno::BADF | rustix::io::Errno::SRCH) => continue,
            Err(errno) => {
                return Err(Error::Take {
                    pid,
                    number,
                    source: errno.into(),
                });
            }
        };
        let socket = Socket::from(fd);
        cut += u32::from(
            bind_socket(&socket, field, id, terms, existing).map_err(|source| Error::Bind {
                pid,
                number,
                source,
            })?,
        );
    }
    Ok(cut)
}

/// The descriptors that are sockets, with what `/proc` calls them.
fn sockets(pid: u32) -> Result<Vec<(RawFd, String)>, Error> {
    let failed = |source| Error::List { pid, source };
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let number = entry.file_name().to_str().and_then(|it| it.parse().ok());
        // It may have been closed since it was listed.
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let target = target.to_string_lossy();
        if let Some(number) = number.filter(|_| target.starts_with("socket:")) {
            sockets.push((number, target.into_owned()));
        }
    }
    Ok(sockets)
}

/// Returns whether the socket had a connection that was cut.
fn bind_socket(
    socket: &Socket,
    field: MarkField,
    id: PolicyId,
    terms: &Terms,
    existing: Existing,
) -> io::Result<bool> {
    let is_inet = matches!(socket.domain()?, Domain::IPV4 | Domain::IPV6);
    if !is_inet || !is_of_this_netns(socket) {
        return Ok(false);
    }
    let mark = socket.mark()?;
    let is_connected = socket.peer_addr().is_ok();
    let stays = terms.action == Action::Direct || existing == Existing::Keep;
    if field.policy(mark) == id.get() || is_connected && stays {
        return Ok(false);
    }
    socket.set_mark(field.stamp(mark, id.get()))?;
    if !is_connected || stays_whole(socket, &terms.lan) {
        return Ok(false);
    }
    // The program sees ECONNRESET or EDESTADDRREQ at once, and can connect anew.
    rustix::net::connect_unspec(socket)?;
    Ok(true)
}

/// In another network namespace our bits of the mark are somebody else's.
pub(crate) fn is_of_this_netns(socket: &Socket) -> bool {
    let ours = Socket::new(Domain::UNIX, socket2::Type::DGRAM, None);
    let ours = ours.and_then(|ours| cookie_of(ours.as_fd())).ok();
    // Where the kernel does not tell, it is taken for ours: better bound than free.
    match (ours, cookie_of(socket.as_fd()).ok()) {
        (Some(ours), Some(its)) => ours == its,
        _ => true,
    }
}

/// Whether the socket's connection works with a policy as it did without.
fn stays_whole(socket: &Socket, lan: &BTreeSet<IpNet>) -> bool {
    let ip = |address: io::Result<socket2::SockAddr>| {
        address.ok()?.as_socket().map(|it| it.ip().to_canonical())
    };
    is_near(ip(socket.local_addr()), ip(socket.peer_addr()), lan)
}

/// Whether a connection works with every policy: it stays on this machine, or goes past the tunnel.
pub(crate) fn is_near(
    local: Option<IpAddr>,
    remote: Option<IpAddr>,
    lan: &BTreeSet<IpNet>,
) -> bool {
    remote.is_some_and(|remote| {
        remote.is_loopback()
            || local == Some(remote)
            || lan.iter().any(|prefix| prefix.contains(&remote))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_to_this_machine_or_past_the_tunnel_is_near() {
        let lan = BTreeSet::from(["192.168.1.0/24".parse().unwrap()]);
        let near =
            |local: &str, remote: &str| is_near(local.parse().ok(), remote.parse().ok(), &lan);

        assert!(near("127.0.0.1", "127.0.0.53"));
        assert!(near("10.0.0.1", "10.0.0.1"));
        assert!(near("10.0.0.1", "192.168.1.9"));
        assert!(!near("10.0.0.1", "203.0.113.7"));
        assert!(!near("10.0.0.1", "-"));
    }
}
