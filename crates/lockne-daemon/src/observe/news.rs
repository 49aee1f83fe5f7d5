//! Whether devices came or went.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Becomes readable when a device changes.
#[derive(Debug)]
pub struct News(Socket);

/// `struct sockaddr_nl` of netlink(7).
#[repr(C)]
struct Address {
    family: libc::sa_family_t,
    pad: u16,
    pid: u32,
    groups: u32,
}

impl News {
    /// Listens in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn listen() -> io::Result<Self> {
        let socket = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW.nonblocking().cloexec(),
            Some(Protocol::from(libc::NETLINK_ROUTE)),
        )?;
        let address = Address {
            family: libc::sa_family_t::try_from(libc::AF_NETLINK).expect("a small number"),
            pad: 0,
            pid: 0,
            groups: 1 << (libc::RTNLGRP_LINK - 1),
        };
        // SAFETY: the storage is larger than the address, and as long as said.
        let address = unsafe {
            let init = |storage: *mut socket2::SockAddrStorage, length: *mut libc::socklen_t| {
                storage.cast::<Address>().write(address);
                *length = libc::socklen_t::try_from(size_of::<Address>()).expect("12 bytes");
                Ok(())
            };
            socket2::SockAddr::try_init(init)?.1
        };
        socket.bind(&address)?;
        Ok(Self(socket))
    }

    /// Forgets what came so far.
    pub fn clear(&self) {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 8192];
        // Also when there was more than there is room for: it says so once.
        while !matches!(self.0.recv(&mut buffer), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        {
        }
    }
}

impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
