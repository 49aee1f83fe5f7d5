//! Who is at the other end of a connection, as the kernel says it.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    sync::Arc,
};

use crate::{error::Error, process};

/// Who connected: that is decided when the connection is made, whoever holds it later.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// The process, in our pid namespace; `None` if it is in none that we see.
    pub(crate) pid: Option<u32>,
    /// Its effective user.
    pub(crate) uid: u32,
    /// Its effective group and its supplementary ones.
    pub(crate) gids: BTreeSet<u32>,
    /// The process itself, which its number can lose to another one.
    handle: Option<Arc<OwnedFd>>,
}

impl Peer {
    pub(crate) fn of(stream: &tokio::net::UnixStream) -> Self {
        let Ok(credentials) = stream.peer_cred() else {
            return Self {
                pid: None,
                uid: u32::MAX,
                gids: BTreeSet::new(),
                handle: None,
            };
        };
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
        let mut gids = groups(stream.as_fd()).unwrap_or_default();
        gids.insert(credentials.gid());
        Self {
            pid,
            uid: credentials.uid(),
            gids,
            handle: pid
                .and_then(|pid| handle(stream.as_fd(), pid))
                .map(Arc::new),
        }
    }

    /// The process, if it still lives.
    pub(crate) fn process(&self) -> Result<(u32, Arc<OwnedFd>), Error> {
        let pid = self.pid.ok_or(Error::NoProcess)?;
        let handle = self.handle.clone().ok_or(Error::NoProcess)?;
        if process::has_ended(&handle) {
            return Err(Error::NoProcess);
        }
        Ok((pid, handle))
    }
}

/// A handle on the process that connected.
///
/// Before Linux 6.5 the kernel gives none, and in between its number may have got another owner. Who asks for
/// more than root is judged by what the handle leads to, so nobody gets at a process of another user by that.
fn handle(stream: BorrowedFd<'_>, pid: u32) -> Option<OwnedFd> {
    match peer_pidfd(stream) {
        Ok(handle) => Some(handle),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => process::open(pid).ok(),
        Err(_) => None,
    }
}

/// `SO_PEERPIDFD`.
fn peer_pidfd(stream: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// `asm-generic/socket.h`; the libc crate has it not yet.
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut fd: RawFd = -1;
    let mut length = libc::socklen_t::try_from(size_of::<RawFd>()).expect("4 bytes");
    // SAFETY: the kernel writes at most `length` bytes to `fd`, which has as many.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `SO_PEERGROUPS`.
fn groups(stream: BorrowedFd<'_>) -> io::Result<BTreeSet<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let bytes = groups.len() * size_of::<libc::gid_t>();
        let mut length = libc::socklen_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `length` bytes to `groups`, which has as many.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let needed = usize::try_from(length).map_err(io::Error::other)? / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(needed);
            return Ok(groups.into_iter().collect());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || needed <= groups.len() {
            return Err(error);
        }
        groups.resize(needed, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn peer_is_told_with_a_handle_and_its_groups() {
        let (one, _other) = tokio::net::UnixStream::pair().unwrap();

        let peer = Peer::of(&one);

        assert_eq!(peer.process().unwrap().0, std::process::id());
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert!(peer.gids.contains(&rustix::process::getegid().as_raw()));
    }
}
