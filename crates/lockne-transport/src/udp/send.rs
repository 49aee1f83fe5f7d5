//! Datagrams to peers: many as one long send, which the kernel or the card cuts up (`UDP_SEGMENT`, Linux 4.18).

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use gotatun::{
    packet::Packet,
    udp::{UdpSend, socket::UdpSocket},
};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use tokio::io::Interest;

use crate::offload::LONGEST;

/// `UDP_MAX_SEGMENTS` before Linux 6.9.
const MOST_SEGMENTS: usize = 64;
/// Of IP and UDP, for the length of a long send has 16 bits, too.
const HEADERS: usize = 48;

/// Sends by the socket.
#[derive(Clone)]
pub struct Sender {
    socket: UdpSocket,
    /// The way out takes no long sends to be cut up.
    is_refused: Arc<AtomicBool>,
}

impl Sender {
    pub(super) fn new(socket: UdpSocket) -> Self {
        Self {
            socket,
            is_refused: Arc::default(),
        }
    }

    /// Sends all at once. They are of one length, but the last, and go to one peer.
    async fn send_long(&self, run: &[(Packet, SocketAddr)]) -> io::Result<()> {
        let Some((first, destination)) = run.first() else {
            return Ok(());
        };
        let parts: Vec<_> = run.iter().map(|(it, _)| IoSlice::new(it)).collect();
        let size = u16::try_from(first.len()).map_err(io::Error::other)?;
        let size = [ControlMessage::UdpGsoSegments(&size)];
        let control = if run.len() > 1 { &size[..] } else { &[] };
        let to = SockaddrStorage::from(*destination);
        let socket = self.socket.socket();
        let send = || {
            sendmsg(
                socket.as_raw_fd(),
                &parts,
                control,
                MsgFlags::MSG_DONTWAIT,
                Some(&to),
            )?;
            Ok(())
        };
        socket.async_io(Interest::WRITABLE, send).await
    }
}

impl UdpSend for Sender {
    type SendManyBuf = <UdpSocket as UdpSend>::SendManyBuf;

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        self.socket.send_to(packet, destination).await
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        self.socket.max_number_of_packets_to_send()
    }

    async fn send_many_to(
        &self,
        buffer: &mut Self::SendManyBuf,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        let mut sent = 0;
        while sent < packets.len() && !self.is_refused.load(Relaxed) {
            let rest = &packets[sent..];
            let run = &rest[..joined(rest.iter().map(|(packet, to)| (packet.len(), *to)))];
            match self.send_long(run).await {
                Err(error) if run.len() > 1 && is_refusal(&error) => {
                    tracing::debug!(%error, "cannot send datagrams in batches");
                    self.is_refused.store(true, Relaxed);
                    break;
                }
                // What is lost is lost, as on every other network; the rest may do better.
                Err(error) => tracing::trace!(%error, "cannot send to a peer"),
                Ok(()) => {}
            }
            sent += run.len();
        }
        packets.drain(..sent);
        if packets.is_empty() {
            return Ok(());
        }
        self.socket.send_many_to(buffer, packets).await
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.socket.local_addr().map(Some)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        self.socket.set_fwmark(mark)
    }
}

/// How many of `packets` go as one: of one length, to one peer; only the last may be shorter.
fn joined(mut packets: impl Iterator<Item = (usize, SocketAddr)>) -> usize {
    let Some((size, destination)) = packets.next() else {
        return 0;
    };
    let most = ((LONGEST - HEADERS) / size.max(1)).clamp(1, MOST_SEGMENTS);
    let mut count = 1;
    for (length, to) in packets.take(most - 1) {
        if to != destination || length > size {
            break;
        }
        count += 1;
        if length < size {
            break;
        }
    }
    count
}

/// The device cannot do checksums (EIO), a datagram would be broken up into fragments (EMSGSIZE, or EINVAL of older
/// kernels) or the kernel does not know of it.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EMSGSIZE | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(lengths: &[(usize, u16)]) -> usize {
        let at = |port| SocketAddr::from(([192, 0, 2, 1], port));
        super::joined(lengths.iter().map(|&(length, port)| (length, at(port))))
    }

    #[test]
    fn datagrams_of_one_length_to_one_peer_go_as_one() {
        assert_eq!(joined(&[(100, 1); 5]), 5);
        assert_eq!(joined(&[(100, 1), (100, 1), (100, 2)]), 2);
        assert_eq!(joined(&[(100, 1), (101, 1)]), 1);
    }

    #[test]
    fn shorter_datagram_is_the_last() {
        assert_eq!(joined(&[(100, 1), (40, 1), (40, 1)]), 2);
    }

    #[test]
    fn long_send_is_no_longer_than_the_kernel_takes() {
        assert_eq!(joined(&[(32, 1); 100]), 64);
        assert_eq!(joined(&[(1452, 1); 100]), 45);
        assert_eq!(joined(&[(65_535, 1); 3]), 1);
    }
}
