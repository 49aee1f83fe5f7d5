//! From the kernel: one packet of many segments, cut into packets.

use super::{
    Header, Malformed, Segments, TCP_CHECKSUM, TCP_FLAGS, TCP_LEN, UDP_CHECKSUM, UDP_LEN, V6_LEN,
    be16, checksum::Sum, length,
};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A packet of the kernel, and how to cut it.
#[derive(Debug)]
pub(crate) struct Split<'a> {
    /// All headers.
    head: &'a [u8],
    payload: &'a [u8],
    /// Bytes of the IP header and its extensions.
    ip: usize,
    size: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Whole,
    Tcp,
    Udp,
}

impl<'a> Split<'a> {
    /// Looks at a packet and what the kernel says of it. A checksum that is left to us is filled in.
    pub(crate) fn new(header: Header, packet: &'a mut [u8]) -> Result<Self, Malformed> {
        let start = usize::from(header.checksum_start);
        let version = *packet.first().ok_or(Malformed)? >> 4;
        let (kind, fixed, offset) = match header.segments {
            Segments::None => {
                if header.needs_checksum {
                    complete(packet, start, header.checksum_offset.into())?;
                }
                return Ok(Self {
                    head: packet,
                    payload: &[],
                    ip: 0,
                    size: 1,
                    kind: Kind::Whole,
                });
            }
            Segments::Tcp4 if version == 4 => (Kind::Tcp, TCP_LEN, TCP_CHECKSUM),
            Segments::Tcp6 if version == 6 => (Kind::Tcp, TCP_LEN, TCP_CHECKSUM),
            Segments::Udp if version == 4 || version == 6 => (Kind::Udp, UDP_LEN, UDP_CHECKSUM),
            _ => return Err(Malformed),
        };
        let shortest = if version == 4 { 20 } else { V6_LEN };
        if !header.needs_checksum
            || header.checksum_offset != offset
            || header.segment_size == 0
            || start < shortest
            || packet.len() < start + fixed
            || version == 4 && start != usize::from(packet[0] & 0xf) * 4
        {
            return Err(Malformed);
        }
        let transport = match kind {
            Kind::Tcp => usize::from(packet[start + 12] >> 4) * 4,
            _ => UDP_LEN,
        };
        let headers = start + transport;
        if transport < fixed || packet.len() < headers {
            return Err(Malformed);
        }
        let (head, payload) = packet.split_at(headers);
        Ok(Self {
            head,
            payload,
            ip: start,
            size: header.segment_size.into(),
            kind,
        })
    }

    /// How many packets it makes.
    pub(crate) fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size).max(1)
    }

    /// The bytes that no packet of it exceeds.
    pub(crate) fn longest(&self) -> usize {
        self.head.len() + self.size.min(self.payload.len())
    }

    /// The headers and the payload of packet `index`, as they are before [`mend`](Self::mend).
    pub(crate) fn parts(&self, index: usize) -> [&'a [u8]; 2] {
        let from = (index * self.size).min(self.payload.len());
        let until = (from + self.size).min(self.payload.len());
        [self.head, &self.payload[from..until]]
    }

    /// Makes packet `index` of its parts, put together: lengths, numbers, flags and checksums.
    pub(crate) fn mend(&self, index: usize, packet: &mut [u8]) {
        if self.kind == Kind::Whole {
            return;
        }
        let len = length(packet.len());
        if packet[0] >> 4 == 4 {
            let id = be16(packet, 4).wrapping_add(length(index));
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[10..12].fill(0);
            let checksum = Sum::default().bytes(&packet[..self.ip]).checksum();
            packet[10..12].copy_from_slice(&checksum);
        } else {
            packet[4..6].copy_from_slice(&(len - length(V6_LEN)).to_be_bytes());
        }

        let whole = length(self.head.len() - self.ip + self.payload.len());
        let transport = &mut packet[self.ip..];
        let own = length(transport.len());
        let at = if self.kind == Kind::Tcp {
            self.mend_tcp(index, transport);
            TCP_CHECKSUM
        } else {
            transport[4..6].copy_from_slice(&own.to_be_bytes());
            UDP_CHECKSUM
        };
        let at = usize::from(at);
        // It holds the sum of the pseudo header of the whole. Only the length is another one.
        let pseudo = Sum::default().number(be16(transport, at));
        transport[at..at + 2].fill(0);
        let sum = pseudo.without(whole).number(own).bytes(transport);
        let checksum = match self.kind {
            Kind::Tcp => sum.checksum(),
            _ => sum.datagram(),
        };
        transport[at..at + 2].copy_from_slice(&checksum);
    }

    /// As `tcp_gso_segment` of the kernel does it.
    fn mend_tcp(&self, index: usize, tcp: &mut [u8]) {
        let [.., a, b, c, d] = tcp[..8] else {
            return;
        };
        #[expect(clippy::cast_possible_truncation, reason = "below 64 KiB")]
        let before = (index * self.size) as u32;
        let sequence = u32::from_be_bytes([a, b, c, d]).wrapping_add(before);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if index > 0 {
            tcp[TCP_FLAGS] &= !CWR;
        }
        if index + 1 < self.count() {
            tcp[TCP_FLAGS] &= !(FIN | PSH);
        }
    }
}

/// Turns the sum of the pseudo header into the checksum.
fn complete(packet: &mut [u8], start: usize, offset: usize) -> Result<(), Malformed> {
    let at = start + offset;
    if packet.len() < at + 2 {
        return Err(Malformed);
    }
    // Of whatever it is: to all but UDP, both zeros mean the same.
    let checksum = Sum::default().bytes(&packet[start..]).datagram();
    packet[at..at + 2].copy_from_slice(&checksum);
    Ok(())
}
