//! Who we are, as the kernel programs see it.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
};

use socket2::{Domain, Socket, Type};

use super::Error;

/// The cookie of the calling thread's network namespace. Unlike its inode, no later namespace gets the same.
pub(super) fn current() -> Result<u64, Error> {
    own_cookie().map_err(|source| match source.raw_os_error() {
        Some(libc::ENOPROTOOPT) => Error::Unsupported {
            feature: "network namespace cookies",
            since: "5.14",
        },
        _ => Error::Read {
            path: "the network namespace's cookie".into(),
            source,
        },
    })
}

/// Fails where process ids, or the root of the cgroups, are not what the programs see.
pub(super) fn require_initial() -> Result<(), Error> {
    // `enum init_ns_ino` of the kernel: fixed numbers.
    const INITIAL: [(&str, &str, u32); 2] = [
        ("PID", "/proc/self/ns/pid", 0xefff_fffc),
        ("cgroup", "/proc/self/ns/cgroup", 0xefff_fffb),
    ];
    for (kind, path, number) in INITIAL {
        if inode(path)? != number {
            return Err(Error::Contained { kind });
        }
    }
    Ok(())
}

fn inode(path: &str) -> Result<u32, Error> {
    let metadata = fs::metadata(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })?;
    Ok(u32::try_from(metadata.ino()).expect("namespaces have 32-bit inodes"))
}

fn own_cookie() -> io::Result<u64> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    cookie_of(socket.as_fd())
}

/// The cookie of the network namespace that a socket lives in; Linux 5.14.
pub(crate) fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).expect("8 bytes");
    // SAFETY: the buffer is as long as the length says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
