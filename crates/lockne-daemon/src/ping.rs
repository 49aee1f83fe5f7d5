//! Pings through a tunnel, to see whether anything behind it answers.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Pings an address, one at a time.
pub(crate) struct Ping {
    socket: Socket,
    address: IpAddr,
    sequence: u16,
    /// What was asked last has had no answer yet.
    is_open: bool,
}

impl Ping {
    /// Pings `address` with this mark on each packet, so that it goes as the mark's policy says.
    pub(crate) fn new(address: IpAddr, mark: u32) -> io::Result<Self> {
        let (domain, protocol) = match address {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.set_mark(mark)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            address,
            sequence: 0,
            is_open: false,
        })
    }

    pub(crate) const fn address(&self) -> IpAddr {
        self.address
    }

    /// Says whether the ping before was answered, if there was one, and sends the next.
    pub(crate) fn again(&mut self) -> Option<bool> {
        let answered = self.is_open.then(|| self.is_answered());
        self.sequence = self.sequence.wrapping_add(1);
        self.is_open = true;
        // What cannot be sent is not answered either.
        let to = SockAddr::from(SocketAddr::new(self.address, 0));
        let _unanswered = self.socket.send_to(&self.request(), &to);
        answered
    }

    fn is_answered(&self) -> bool {
        let mut found = false;
        let mut buffer = [MaybeUninit::uninit(); 256];
        while let Ok((length, from)) = self.socket.recv_from(&mut buffer) {
            if from.as_socket().map(|it| it.ip()) != Some(self.address) {
                continue;
            }
            // SAFETY: the kernel has written that many bytes.
            let packet: Vec<u8> = buffer[..length]
                .iter()
                .map(|byte| unsafe { byte.assume_init() })
                .collect();
            // A raw socket for IPv4 gets the header of the packet too.
            let header = match self.address {
                IpAddr::V4(_) => packet.first().map_or(0, |byte| usize::from(byte & 15) * 4),
                IpAddr::V6(_) => 0,
            };
            let Some(answer) = packet.get(header..header + 8) else {
                continue;
            };
            let kind = if self.address.is_ipv4() { 0 } else { 129 };
            found |= answer[0] == kind && answer[4..] == self.request()[4..];
        }
        found
    }

    fn request(&self) -> [u8; 8] {
        let [i0, i1] = identifier().to_be_bytes();
        let [s0, s1] = self.sequence.to_be_bytes();
        let kind = if self.address.is_ipv4() { 8 } else { 128 };
        let mut request = [kind, 0, 0, 0, i0, i1, s0, s1];
        // RFC 1071; for IPv6 the kernel does it.
        let words = request
            .chunks(2)
            .map(|it| u32::from(it[0]) << 8 | u32::from(it[1]));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        let [c0, c1] = (!u16::try_from(sum).unwrap_or(0)).to_be_bytes();
        (request[2], request[3]) = (c0, c1);
        request
    }
}

/// Ours among the pings of this machine.
fn identifier() -> u16 {
    let [.., high, low] = std::process::id().to_be_bytes();
    u16::from_be_bytes([high, low])
}
