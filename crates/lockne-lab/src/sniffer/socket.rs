//! A packet socket: sees what a device receives and sends, without link headers.

use std::{
    io,
    mem::{MaybeUninit, size_of},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use socket2::{Domain, SockAddr, Socket, Type};

/// How much of each packet is read: enough for the headers, also of a packet quoted in an error.
pub(super) const SNAP: usize = 256;

/// So much may wait to be read. It is a limit, not an allocation.
const QUEUE_BYTES: libc::c_int = 512 << 20;

const AF_PACKET: u16 = 17;
const ETH_P_ALL: u16 = 3;

#[derive(Clone, Copy)]
enum LinkAddress {
    None,
    Broadcast,
}

#[derive(Debug)]
pub(super) struct PacketSocket(Socket);

/// The beginning of a packet.
pub(super) struct Captured<'a> {
    pub(super) ethertype: u16,
    pub(super) is_outgoing: bool,
    pub(super) bytes: &'a [u8],
    pub(super) length: usize,
}

impl PacketSocket {
    /// Listens on one device of the thread's namespace.
    pub(super) fn listen(index: u32) -> io::Result<Self> {
        // Without a protocol until it is bound, or it would hear all devices for a moment.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        let queue = &QUEUE_BYTES;
        // SAFETY: the option takes an int, which the pointer is valid for.
        let outcome = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                std::ptr::from_ref(queue).cast(),
                4,
            )
        };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
        socket.bind(&address(index, ETH_P_ALL, LinkAddress::None))?;
        Ok(Self(socket))
    }

    /// A socket that hears nothing.
    pub(super) fn for_sending() -> io::Result<Self> {
        Socket::new(Domain::PACKET, Type::DGRAM, None).map(Self)
    }

    /// Sends to all on the link of a device.
    pub(super) fn send(&self, index: u32, ethertype: u16, payload: &[u8]) -> io::Result<()> {
        self.0
            .send_to(payload, &address(index, ethertype, LinkAddress::Broadcast))
            .map(drop)
    }

    /// The next packet, if one waits.
    pub(super) fn next<'a>(
        &self,
        buffer: &'a mut [MaybeUninit<u8>; SNAP],
    ) -> io::Result<Option<Captured<'a>>> {
        let (length, from) = match self.0.recv_from_with_flags(buffer, libc::MSG_TRUNC) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        // SAFETY: a `SockAddr` has room for any address, and every bit pattern is a `sockaddr_ll`.
        let from = unsafe { from.as_ptr().cast::<libc::sockaddr_ll>().read_unaligned() };
        let read = &buffer[..length.min(SNAP)];
        // SAFETY: the kernel wrote so many bytes, or the whole buffer when it had more.
        let bytes = unsafe { std::slice::from_raw_parts(read.as_ptr().cast(), read.len()) };
        Ok(Some(Captured {
            ethertype: u16::from_be(from.sll_protocol),
            is_outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
            bytes,
            length,
        }))
    }

    /// How many packets found no room since the last time.
    pub(super) fn take_drops(&self) -> u64 {
        let mut statistics = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut length = length_of::<libc::tpacket_stats>();
        // SAFETY: pointer and length are of the structure that the option fills.
        let outcome = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                std::ptr::from_mut(&mut statistics).cast(),
                &raw mut length,
            )
        };
        assert_eq!(outcome, 0, "a packet socket always has statistics");
        statistics.tp_drops.into()
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn address(index: u32, ethertype: u16, link_address: LinkAddress) -> SockAddr {
    let packet = libc::sockaddr_ll {
        sll_family: AF_PACKET,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: i32::try_from(index).expect("the kernel's device numbers are positive ints"),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: match link_address {
            LinkAddress::None => [0; 8],
            LinkAddress::Broadcast => [0xff; 8],
        },
    };
    let fill = |storage: *mut socket2::SockAddrStorage, length: *mut libc::socklen_t| {
        // SAFETY: the storage has room for every kind of address, and the length is given to be set.
        unsafe {
            storage.cast::<libc::sockaddr_ll>().write(packet);
            length.write(length_of::<libc::sockaddr_ll>());
        }
        Ok(())
    };
    // SAFETY: the closure fills in a whole address and its length.
    let filled = unsafe { SockAddr::try_init(fill) };
    filled.expect("the closure never fails").1
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel's structures have few bytes"
)]
const fn length_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}
