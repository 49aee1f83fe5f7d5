//! WireGuard of the kernel, by generic netlink (`include/uapi/linux/wireguard.h`).
//!
//! The kernel answers before `send` returns, so nothing here waits and nothing is asynchronous.

mod message;
mod socket;

use std::net::SocketAddr;

use lockne_core::wgquick::{Config, PublicKey};

use self::socket::Socket;
use super::{
    Error,
    link::Link,
    peer::{Peer, PeerState},
};

/// A WireGuard interface of the kernel. It is asked by its index: somebody may rename it.
pub(super) struct Kernel {
    name: String,
    ifindex: u32,
}

impl Kernel {
    /// Makes the interface do what `config` says.
    ///
    /// Works on an interface in use, too: peers that stay keep their sessions, and those whose
    /// session lives keep the address that they were last heard from.
    pub(super) fn configure(
        link: &Link,
        config: &Config,
        port: u16,
        peers: &[Peer<'_>],
    ) -> Result<Self, Error> {
        let kernel = Self {
            name: link.name.clone(),
            ifindex: link.index,
        };
        let mut socket = kernel.open()?;
        let before = kernel.read(&mut socket)?;
        for attributes in message::configure(link.index, config, port, peers, &before) {
            let result = socket.set(attributes);
            result.map_err(|source| match source.raw_os_error() {
                Some(libc::EADDRINUSE) => Error::PortInUse { port, source },
                _ => kernel.refused("configure", source),
            })?;
        }
        Ok(kernel)
    }

    /// What is known about every peer.
    pub(super) fn peers(&self) -> Result<Vec<PeerState>, Error> {
        self.read(&mut self.open()?)
    }

    /// Sends what goes to `peer` to another address from now on.
    pub(super) fn set_endpoint(&self, peer: &PublicKey, to: SocketAddr) -> Result<(), Error> {
        let attributes = message::set_endpoint(self.ifindex, peer, to);
        let result = self.open()?.set(attributes);
        result.map_err(|source| self.refused("configure", source))
    }

    fn open(&self) -> Result<Socket, Error> {
        let socket = Socket::open();
        socket.map_err(|source| self.refused("find the WireGuard of", source))
    }

    fn read(&self, socket: &mut Socket) -> Result<Vec<PeerState>, Error> {
        let messages = socket.get(self.ifindex);
        let messages = messages.map_err(|source| self.refused("read", source))?;
        Ok(message::peers(messages))
    }

    fn refused(&self, action: &'static str, source: std::io::Error) -> Error {
        Error::Link {
            action,
            name: self.name.clone(),
            source,
        }
    }
}
