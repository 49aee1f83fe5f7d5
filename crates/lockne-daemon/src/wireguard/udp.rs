//! The UDP socket of the embedded WireGuard.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use gotatun::{
    packet::{Packet, PacketBufPool},
    udp::{
        UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams,
        socket::{SockOpt, UdpSocket},
    },
};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use rustix::net::sockopt;
use tokio::io::Interest;

use super::{death::Death, offload::LONGEST};

/// The kernel's default of 208 KiB loses one datagram in six under load.
const BUFFER_BYTES: usize = 4 << 20;

/// `UDP_MAX_SEGMENTS` before Linux 6.9.
const MOST_SEGMENTS: usize = 64;
/// Of IP and UDP, for the length of a long send has 16 bits, too.
const HEADERS: usize = 48;

/// A message of WireGuard that carries data, and none: how a far end says that it is there.
const KEEPALIVE_BYTES: usize = 32;
const DATA: [u8; 4] = [4, 0, 0, 0];

/// How many bytes of messages without content have come. gotatun counts the content only, so that a far end which
/// hears us and has nothing to say would look like one that is gone.
///
/// They are not decrypted here. Who forges them can make a dead tunnel look alive, so that its programs stay silent,
/// and no more.
#[derive(Clone, Debug, Default)]
pub(super) struct Keepalives(Arc<AtomicU64>);

impl Keepalives {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn count(&self, datagram: &[u8]) {
        if datagram.len() == KEEPALIVE_BYTES && datagram.starts_with(&DATA) {
            self.0.fetch_add(KEEPALIVE_BYTES as u64, Relaxed);
        }
    }
}

/// Opens sockets, whose end is told to the [`Death`].
pub(super) struct Sockets {
    death: Death,
    keepalives: Keepalives,
}

/// Datagrams to peers.
#[derive(Clone)]
pub(super) struct Sender {
    socket: UdpSocket,
    /// The same socket; the other one cannot be waited for.
    writable: Arc<tokio::net::UdpSocket>,
    /// The way out takes no long sends to be cut up.
    is_refused: Arc<AtomicBool>,
}

/// Datagrams from peers.
pub(super) struct Receiver {
    socket: UdpSocket,
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
            death: self.death.clone(),
            keepalives: self.keepalives.clone(),
        };
        let writable = std::net::UdpSocket::from(socket.as_fd().try_clone_to_owned()?);
        let sender = Sender {
            socket,
            writable: Arc::new(tokio::net::UdpSocket::from_std(writable)?),
            is_refused: Arc::default(),
        };
        Ok((sender, receiver))
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

impl UdpSend for Sender {
    type SendManyBuf = ();

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        self.socket.send_to(packet, destination).await
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        2 * MOST_SEGMENTS
    }

    async fn send_many_to(
        &self,
        (): &mut (),
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        let mut rest = packets.as_slice();
        while !rest.is_empty() {
            let (run, after) = rest.split_at(self.run(rest));
            // What is lost is lost, as on every other network; the rest may do better.
            if let Err(error) = self.send_run(run).await {
                tracing::trace!(%error, "cannot send to a peer");
            }
            rest = after;
        }
        packets.clear();
        Ok(())
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.writable.local_addr().map(Some)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        self.socket.set_fwmark(mark)
    }
}

impl Sender {
    /// How many of `packets` go in one call: of one length, to one peer; the last may be shorter.
    fn run(&self, packets: &[(Packet, SocketAddr)]) -> usize {
        let Some((first, destination)) = packets.first() else {
            return 0;
        };
        if self.is_refused.load(Relaxed) {
            return 1;
        }
        let most = (LONGEST - HEADERS) / first.len().max(1);
        let more = packets.iter().take(most.clamp(1, MOST_SEGMENTS)).skip(1);
        let mut count = 1;
        for (packet, to) in more {
            if to != destination || packet.len() > first.len() {
                break;
            }
            count += 1;
            if packet.len() < first.len() {
                break;
            }
        }
        count
    }

    async fn send_run(&self, run: &[(Packet, SocketAddr)]) -> io::Result<()> {
        match self.send_at_once(run).await {
            // The device cannot do checksums (`udp_send_skb`), or the socket is of another kind.
            Err(error) if run.len() > 1 && is_refusal(&error) => {
                self.is_refused.store(true, Relaxed);
                tracing::debug!(%error, "cannot send datagrams in batches");
                for packet in run {
                    self.send_at_once(std::slice::from_ref(packet)).await?;
                }
                Ok(())
            }
            done => done,
        }
    }

    async fn send_at_once(&self, run: &[(Packet, SocketAddr)]) -> io::Result<()> {
        let Some((first, destination)) = run.first() else {
            return Ok(());
        };
        let parts: Vec<_> = run.iter().map(|(it, _)| IoSlice::new(it)).collect();
        let size = u16::try_from(first.len()).map_err(io::Error::other)?;
        let size = [ControlMessage::UdpGsoSegments(&size)];
        let control = if run.len() > 1 { &size[..] } else { &[] };
        let to = SockaddrStorage::from(*destination);
        let send = || {
            let fd = self.writable.as_raw_fd();
            sendmsg(fd, &parts, control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
            Ok(())
        };
        self.writable.async_io(Interest::WRITABLE, send).await
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
    )
}

impl UdpRecv for Receiver {
    type RecvManyBuf = <UdpSocket as UdpRecv>::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        let result = self.socket.recv_from(pool).await;
        if let Ok((packet, _)) = &result {
            self.keepalives.count(packet);
        }
        result.map_err(|error| self.death.fatal(error))
    }

    async fn recv_many_from(
        &mut self,
        buffer: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        let before = packets.len();
        loop {
            let result = self.socket.recv_many_from(buffer, pool, packets).await;
            match result {
                // Short of memory: the next datagram may do better.
                Err(error) if is_passing(&error) => tokio::task::yield_now().await,
                Err(error) => return Err(self.death.fatal(error)),
                Ok(()) => {
                    for (packet, _) in packets.iter().skip(before) {
                        self.keepalives.count(packet);
                    }
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
