//! Datagrams from peers: many as one long read, as the kernel or the card put them together (`UDP_GRO`, Linux 5.0).

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    os::fd::RawFd,
};

use bytes::BytesMut;
use gotatun::packet::{Packet, PacketBufPool};
use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrStorage, recvmmsg,
    },
};

use crate::blocks::Blocks;

/// How many reads are made at once. What they read is worked off before the next ones, while it is in the processor's
/// cache.
const READS: usize = 16;

/// Where reads go.
#[derive(Debug, Default)]
pub struct Reads {
    blocks: Blocks,
    /// For the next reads.
    next: Vec<BytesMut>,
}

/// What was read into one block.
struct Read {
    bytes: usize,
    /// Of each datagram but the last, which may be shorter.
    size: usize,
    from: SocketAddr,
}

impl Reads {
    /// Takes what has come to the socket `fd`, without waiting for more.
    ///
    /// # Errors
    ///
    /// What the system says; also if nothing has come.
    pub(super) fn receive(
        &mut self,
        fd: RawFd,
        pool: &PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        let missing = READS - self.next.len();
        self.next.extend((0..missing).map(|_| self.blocks.take()));
        let reads = self.read(fd)?;
        for (place, read) in reads.into_iter().enumerate() {
            let Some(read) = read else { continue };
            if read.bytes < Blocks::WORTH {
                copy(&self.next[place][..read.bytes], &read, pool, packets);
            } else {
                let block = std::mem::replace(&mut self.next[place], self.blocks.take());
                cut(block, &read, packets);
            }
        }
        Ok(())
    }

    fn read(&mut self, fd: RawFd) -> io::Result<Vec<Option<Read>>> {
        let control = cmsg_space!(libc::c_int);
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(READS, Some(control));
        let blocks = self.next.iter_mut();
        let mut parts: Vec<_> = blocks.map(|block| [IoSliceMut::new(block)]).collect();
        let results = recvmmsg(fd, &mut headers, &mut parts, MsgFlags::MSG_DONTWAIT, None)?;
        Ok(results.map(|result| Read::of(&result)).collect())
    }
}

impl Read {
    /// What the kernel says of it; nothing if it does not say whom it is from.
    fn of(result: &RecvMsg<'_, '_, SockaddrStorage>) -> Option<Self> {
        let address = result.address?;
        let v4 = address.as_sockaddr_in().map(|&it| SocketAddr::from(it));
        let v6 = address.as_sockaddr_in6().map(|&it| SocketAddr::from(it));
        let from = v4.or(v6)?;
        let size = result.cmsgs().ok()?.find_map(|message| match message {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        });
        Some(Self {
            bytes: result.bytes,
            size: size.unwrap_or(result.bytes).max(1),
            // Of IPv4 it says so in the way of IPv6.
            from: SocketAddr::new(from.ip().to_canonical(), from.port()),
        })
    }
}

/// Makes packets of the block itself.
fn cut(mut block: BytesMut, read: &Read, packets: &mut Vec<(Packet, SocketAddr)>) {
    block.truncate(read.bytes);
    while !block.is_empty() {
        let size = read.size.min(block.len());
        packets.push((Packet::from_bytes(block.split_to(size)), read.from));
    }
}

fn copy(bytes: &[u8], read: &Read, pool: &PacketBufPool, packets: &mut Vec<(Packet, SocketAddr)>) {
    for datagram in bytes.chunks(read.size) {
        let mut packet = pool.get();
        packet.buf_mut().clear();
        packet.buf_mut().extend_from_slice(datagram);
        packets.push((packet, read.from));
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsRawFd as _};

    use nix::sys::socket::{ControlMessage, sendmsg, setsockopt, sockopt::UdpGroSegment};

    use super::*;

    /// What is received of `bytes`, sent at once as datagrams of `size`.
    fn receive(bytes: &[u8], size: u16) -> Vec<(Vec<u8>, SocketAddr)> {
        let [from, to] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        setsockopt(&to, UdpGroSegment, &true).unwrap();
        let address = SockaddrStorage::from(to.local_addr().unwrap());
        let size = [ControlMessage::UdpGsoSegments(&size)];
        let parts = [io::IoSlice::new(bytes)];
        let (fd, none) = (from.as_raw_fd(), MsgFlags::empty());
        sendmsg(fd, &parts, &size, none, Some(&address)).unwrap();
        let source = from.local_addr().unwrap();

        let (mut reads, pool) = (Reads::default(), PacketBufPool::new(1));
        let mut packets = Vec::new();
        // Over loopback, what is sent has come.
        reads.receive(to.as_raw_fd(), &pool, &mut packets).unwrap();
        let end = reads.receive(to.as_raw_fd(), &pool, &mut packets);
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(packets.iter().all(|(_, from)| *from == source));
        let packets = packets.into_iter();
        packets
            .map(|(packet, from)| (packet.to_vec(), from))
            .collect()
    }

    #[test]
    fn long_read_is_the_datagrams_that_were_sent() {
        let bytes: Vec<u8> = (0..60_000_u32).flat_map(u32::to_be_bytes).collect();

        // Copied or lent, with a shorter one at the end or not.
        for (length, size) in [
            (900, 300),
            (1000, 300),
            (42_000, 1400),
            (60_001, 1200),
            (16_384, 1024),
        ] {
            let received = receive(&bytes[..length], size);

            let sent: Vec<_> = bytes[..length].chunks(size.into()).collect();
            let received: Vec<_> = received.iter().map(|(bytes, _)| &bytes[..]).collect();
            assert_eq!(received, sent);
        }
    }

    #[test]
    fn datagram_of_nothing_is_none() {
        let [from, to] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let mut reads = Reads::default();
        let mut packets = Vec::new();

        from.send_to(&[], to.local_addr().unwrap()).unwrap();
        from.send_to(b"more", to.local_addr().unwrap()).unwrap();
        reads
            .receive(to.as_raw_fd(), &PacketBufPool::new(1), &mut packets)
            .unwrap();

        assert_eq!(
            packets
                .iter()
                .map(|(packet, _)| &packet[..])
                .collect::<Vec<_>>(),
            [b"more"]
        );
    }

    #[test]
    fn packets_stay_as_they_are_while_more_is_read() {
        let [from, to] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let (mut reads, pool) = (Reads::default(), PacketBufPool::new(1));
        let mut packets = Vec::new();

        for number in 0..100_u8 {
            from.send_to(&vec![number; 60_000], to.local_addr().unwrap())
                .unwrap();
            reads.receive(to.as_raw_fd(), &pool, &mut packets).unwrap();
        }

        for (number, (packet, _)) in (0..100).zip(&packets) {
            assert_eq!(**packet, vec![number; 60_000]);
        }
        assert_eq!(packets.len(), 100);
    }

    #[test]
    fn peer_of_ipv4_is_one_also_where_the_socket_is_of_ipv6() {
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = UdpSocket::bind("[::]:0").unwrap();
        let mut packets = Vec::new();

        let port = to.local_addr().unwrap().port();
        from.send_to(b"hello", ("127.0.0.1", port)).unwrap();
        let pool = PacketBufPool::new(1);
        Reads::default()
            .receive(to.as_raw_fd(), &pool, &mut packets)
            .unwrap();

        assert_eq!(packets[0].1, from.local_addr().unwrap());
    }
}
