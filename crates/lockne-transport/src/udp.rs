//! The UDP socket of the embedded WireGuard.

mod receive;
mod send;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use gotatun::{
    packet::{Packet, PacketBufPool},
    udp::{
        UdpRecv, UdpTransportFactory, UdpTransportFactoryParams,
        socket::{SockOpt, UdpSocket},
    },
};
use rustix::net::sockopt;
use tokio::io::Interest;

use self::{receive::Reads, send::Sender};
use super::{death::Death, pace::Pace};

/// The kernel's default of 208 KiB loses one datagram in six under load.
const BUFFER_BYTES: usize = 4 << 20;

/// A message of WireGuard that carries data, and none: how a far end says that it is there.
const KEEPALIVE_BYTES: usize = 32;
const DATA: [u8; 4] = [4, 0, 0, 0];

/// How many bytes of messages without content have come. gotatun counts the content only, so that a far end which
/// hears us and has nothing to say would look like one that is gone.
///
/// They are not decrypted here. Who forges them can make a dead tunnel look alive, so that its programs stay silent,
/// and no more.
#[derive(Clone, Debug, Default)]
pub struct Keepalives(Arc<AtomicU64>);

impl Keepalives {
    /// How many there were.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn count(&self, datagram: &[u8]) {
        if datagram.len() == KEEPALIVE_BYTES && datagram.starts_with(&DATA) {
            self.0.fetch_add(KEEPALIVE_BYTES as u64, Relaxed);
        }
    }
}

/// Opens sockets, whose end is told to the [`Death`].
pub struct Sockets {
    death: Death,
    keepalives: Keepalives,
}

/// Datagrams from peers.
pub struct Receiver {
    socket: UdpSocket,
    pace: Pace,
    death: Death,
    keepalives: Keepalives,
}

impl Sockets {
    pub(super) fn new(death: &Death, keepalives: &Keepalives) -> Self {
        Self {
            death: death.clone(),
            keepalives: keepalives.clone(),
        }
    }
}

impl UdpTransportFactory for Sockets {
    type Send = Sender;
    type Recv = Receiver;

    async fn bind(
        &mut self,
        params: &UdpTransportFactoryParams,
    ) -> io::Result<(Self::Send, Self::Recv)> {
        let socket = match bind(Ipv6Addr::UNSPECIFIED.into(), params) {
            // IPv6 is turned off, or not there at all.
            Err(error) if no_ipv6(&error) => bind(Ipv4Addr::UNSPECIFIED.into(), params)?,
            other => other?,
        };
        // Beyond net.core.rmem_max; what cannot be had is no reason to fail.
        for result in [
            sockopt::set_socket_recv_buffer_size_force(socket.as_fd(), BUFFER_BYTES),
            sockopt::set_socket_send_buffer_size_force(socket.as_fd(), BUFFER_BYTES),
        ] {
            if let Err(error) = result {
                tracing::debug!(%error, "cannot enlarge a buffer of the tunnel's socket");
            }
        }
        if let Err(error) = socket.enable_udp_gro() {
            tracing::debug!(%error, "cannot receive datagrams in batches");
        }
        let receiver = Receiver {
            socket: socket.clone(),
            pace: Pace::default(),
            death: self.death.clone(),
            keepalives: self.keepalives.clone(),
        };
        Ok((Sender::new(socket), receiver))
    }
}

fn bind(address: IpAddr, params: &UdpTransportFactoryParams) -> io::Result<UdpSocket> {
    let options = SockOpt {
        fwmark: params.fwmark,
        only_v6: address.is_ipv6().then_some(false),
        ..SockOpt::default()
    };
    UdpSocket::bind(SocketAddr::new(address, params.port), options)
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

impl UdpRecv for Receiver {
    type RecvManyBuf = Reads;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        let result = self.socket.recv_from(pool).await;
        if let Ok((packet, _)) = &result {
            self.keepalives.count(packet);
        }
        result.map_err(|error| self.death.fatal(error))
    }

    async fn recv_many_from(
        &mut self,
        buffer: &mut Reads,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        self.pace.keep().await;
        let before = packets.len();
        let socket = self.socket.socket();
        loop {
            let read = || buffer.receive(socket.as_raw_fd(), pool, packets);
            let result = socket.async_io(Interest::READABLE, read).await;
            match result {
                // Short of memory: the next datagram may do better.
                Err(error) if is_passing(&error) => tokio::task::yield_now().await,
                Err(error) => return Err(self.death.fatal(error)),
                Ok(()) => {
                    for (packet, _) in packets.iter().skip(before) {
                        self.keepalives.count(packet);
                    }
                    self.pace.count(packets.len() - before);
                    return Ok(());
                }
            }
        }
    }

    fn enable_udp_gro(&self) -> io::Result<()> {
        self.socket.enable_udp_gro()
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOMEM | libc::ENOBUFS | libc::EINTR)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_data_without_content_is_a_keepalive() {
        let keepalives = Keepalives::default();
        let mut datagram = [0; 80];

        for (kind, length) in [(4, 32), (4, 48), (4, 80), (1, 32), (2, 32), (4, 16), (4, 0)] {
            datagram[0] = kind;
            keepalives.count(&datagram[..length]);
        }

        assert_eq!(keepalives.bytes(), 32);
    }
}
