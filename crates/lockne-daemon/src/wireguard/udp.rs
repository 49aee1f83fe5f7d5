//! The UDP socket of the embedded WireGuard.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
};

use gotatun::{
    packet::{Packet, PacketBufPool},
    udp::{
        UdpRecv, UdpTransportFactory, UdpTransportFactoryParams,
        socket::{SockOpt, UdpSocket},
    },
};
use rustix::net::sockopt;

use super::death::Death;

/// The kernel's default of 208 KiB loses one datagram in six under load.
const BUFFER_BYTES: usize = 4 << 20;

/// Opens sockets, whose end is told to the [`Death`].
pub(super) struct Sockets {
    death: Death,
}

/// Datagrams from peers.
pub(super) struct Receiver {
    socket: UdpSocket,
    death: Death,
}

impl Sockets {
    pub(super) fn new(death: &Death) -> Self {
        Self {
            death: death.clone(),
        }
    }
}

impl UdpTransportFactory for Sockets {
    type Send = UdpSocket;
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
            death: self.death.clone(),
        };
        Ok((socket, receiver))
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
    type RecvManyBuf = <UdpSocket as UdpRecv>::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        let result = self.socket.recv_from(pool).await;
        result.map_err(|error| self.death.fatal(error))
    }

    async fn recv_many_from(
        &mut self,
        buffer: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        loop {
            let result = self.socket.recv_many_from(buffer, pool, packets).await;
            match result {
                // Short of memory: the next datagram may do better.
                Err(error) if is_passing(&error) => tokio::task::yield_now().await,
                Err(error) => return Err(self.death.fatal(error)),
                Ok(()) => return Ok(()),
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
