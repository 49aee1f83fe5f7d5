//! To the kernel: packets of one flow, given as one.
//!
//! Only what the kernel cuts up again into the very same packets is merged; everything else goes alone. So a
//! program sees the same packets, and a packet with a wrong checksum is refused by the kernel as ever.

use super::{
    Header, LONGEST, Segments, TCP_CHECKSUM, TCP_FLAGS, TCP_LEN, UDP_CHECKSUM, UDP_LEN, V6_LEN,
    be16,
    checksum::{Sum, pseudo},
    length,
};

/// As many as the kernel's GRO takes together, and UDP allows (`UDP_MAX_SEGMENTS`).
const MOST: usize = 64;
/// How many flows a batch is sorted by. Another one goes alone.
const FLOWS: usize = 32;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DONT_FRAGMENT: u8 = 0x40;

/// Which kinds the device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kinds {
    pub(crate) tcp: bool,
    pub(crate) udp: bool,
}

/// Packets of a batch that go to the kernel as one, in their order.
#[derive(Debug)]
pub(crate) struct Run {
    /// Their places in the batch.
    pub(crate) packets: Vec<usize>,
    shape: Option<Shape>,
    payload: usize,
    is_closed: bool,
}

/// What is looked at in a packet that may be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    segments: Segments,
    /// Bytes of the IP header.
    ip: usize,
    /// Bytes of all headers.
    head: usize,
    payload: usize,
    sequence: u32,
    id: u16,
    /// The flow's next packet must not be joined to it.
    is_last: bool,
}

/// Sorts a batch into runs, in an order that keeps each flow's.
pub(crate) fn runs<P: AsRef<[u8]>>(batch: &[P], kinds: Kinds) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::with_capacity(batch.len().min(FLOWS));
    for (place, packet) in batch.iter().enumerate() {
        let packet = packet.as_ref();
        let shape = Shape::of(packet, kinds);
        if let Some(shape) = shape {
            let open = runs.iter_mut().rev().take(FLOWS).find(|run| {
                let theirs = run.shape.filter(|_| !run.is_closed);
                theirs.is_some_and(|theirs| {
                    theirs.is_same_flow(batch[run.packets[0]].as_ref(), shape, packet)
                })
            });
            if let Some(run) = open {
                if run.join(batch[run.packets[0]].as_ref(), place, shape, packet) {
                    continue;
                }
                run.is_closed = true;
            }
        } else if !is_tcp(packet) {
            // It may be a datagram of any of these flows. TCP has numbers to put things in order again.
            let datagrams = runs.iter_mut().filter(|run| run.is_udp());
            datagrams.for_each(|run| run.is_closed = true);
        }
        runs.push(Run {
            packets: vec![place],
            shape,
            payload: shape.map_or(0, |shape| shape.payload),
            is_closed: shape.is_none_or(|shape| shape.is_last),
        });
    }
    runs
}

fn is_tcp(packet: &[u8]) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(9) == Some(&TCP),
        Some(6) => packet.get(6) == Some(&TCP),
        _ => false,
    }
}

impl Run {
    /// Takes `packet` too, if it is what follows.
    fn join(&mut self, first: &[u8], place: usize, shape: Shape, packet: &[u8]) -> bool {
        let Some(ours) = self.shape else {
            return false;
        };
        let count = self.packets.len();
        let follows = match shape.segments {
            Segments::Udp => true,
            #[expect(clippy::cast_possible_truncation, reason = "below 64 KiB")]
            _ => shape.sequence == ours.sequence.wrapping_add(self.payload as u32),
        };
        // The kernel counts on from the first; where nothing may be fragmented, the number means nothing.
        let is_numbered = first[0] >> 4 == 6
            || first[6] & DONT_FRAGMENT != 0
            || shape.id == ours.id.wrapping_add(length(count));
        if !follows
            || !is_numbered
            || count >= MOST
            || shape.payload > ours.payload
            || ours.head + self.payload + shape.payload > LONGEST
            || !ours.has_same_head(first, packet)
            || !shape.has_right_checksum(packet)
            || count == 1 && !ours.has_right_checksum(first)
        {
            return false;
        }
        self.packets.push(place);
        self.payload += shape.payload;
        self.is_closed = shape.is_last || shape.payload < ours.payload;
        true
    }

    /// What goes before the payloads of a run of several packets: the device's header, and theirs.
    pub(crate) fn head<P: AsRef<[u8]>>(&self, batch: &[P]) -> Option<(Header, Vec<u8>)> {
        let shape = self.shape.filter(|_| self.packets.len() > 1)?;
        let [first, .., last] = *self.packets.as_slice() else {
            return None;
        };
        let mut head = batch[first].as_ref()[..shape.head].to_vec();
        let len = length(shape.head + self.payload);
        let transport_len = len - length(shape.ip);
        let addresses = if shape.ip == V6_LEN {
            head[4..6].copy_from_slice(&transport_len.to_be_bytes());
            8..40
        } else {
            head[2..4].copy_from_slice(&len.to_be_bytes());
            head[10..12].fill(0);
            let checksum = Sum::default().bytes(&head[..shape.ip]).checksum();
            head[10..12].copy_from_slice(&checksum);
            12..20
        };
        let protocol = shape.protocol();
        let offset = if protocol == TCP {
            head[shape.ip + TCP_FLAGS] |= batch[last].as_ref()[shape.ip + TCP_FLAGS] & PSH;
            TCP_CHECKSUM
        } else {
            head[shape.ip + 4..shape.ip + 6].copy_from_slice(&transport_len.to_be_bytes());
            UDP_CHECKSUM
        };
        let sum = pseudo(&head[addresses], protocol, transport_len).folded();
        let at = shape.ip + usize::from(offset);
        head[at..at + 2].copy_from_slice(&sum);
        let header = Header {
            needs_checksum: true,
            segments: shape.segments,
            head: length(shape.head),
            segment_size: length(shape.payload),
            checksum_start: length(shape.ip),
            checksum_offset: offset,
        };
        Some((header, head))
    }

    /// The payload of a packet of the run.
    pub(crate) fn payload<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        &packet[self.shape.map_or(0, |shape| shape.head)..]
    }

    /// Whether its packets are datagrams.
    pub(crate) fn is_udp(&self) -> bool {
        let segments = self.shape.map(|shape| shape.segments);
        segments == Some(Segments::Udp)
    }
}

impl Shape {
    fn of(packet: &[u8], kinds: Kinds) -> Option<Self> {
        let (ip, protocol, id) = match packet.first()? >> 4 {
            4 if packet.len() >= 20
                && packet[0] == 0x45
                && usize::from(be16(packet, 2)) == packet.len()
                // Neither a fragment nor to be one.
                && be16(packet, 6) & 0xbfff == 0 =>
            {
                (20, packet[9], be16(packet, 4))
            }
            6 if packet.len() >= V6_LEN
                && usize::from(be16(packet, 4)) + V6_LEN == packet.len() =>
            {
                (V6_LEN, packet[6], 0)
            }
            _ => return None,
        };
        let transport = &packet[ip..];
        let (segments, len, is_last, sequence) = match protocol {
            TCP if kinds.tcp && transport.len() >= TCP_LEN => {
                let [.., a, b, c, d] = transport[..8] else {
                    return None;
                };
                // Anything but plain data is for the kernel to see as it is.
                if transport[TCP_FLAGS] & !PSH != ACK || transport[12] & 0xf != 0 {
                    return None;
                }
                let segments = if ip == V6_LEN {
                    Segments::Tcp6
                } else {
                    Segments::Tcp4
                };
                let len = usize::from(transport[12] >> 4) * 4;
                let is_last = transport[TCP_FLAGS] & PSH != 0;
                (segments, len, is_last, u32::from_be_bytes([a, b, c, d]))
            }
            UDP if kinds.udp
                && transport.len() >= UDP_LEN
                && usize::from(be16(transport, 4)) == transport.len()
                // No checksum: it would get one.
                && be16(transport, UDP_CHECKSUM.into()) != 0 =>
            {
                (Segments::Udp, UDP_LEN, false, 0)
            }
            _ => return None,
        };
        let head = ip + len;
        let shortest = if protocol == TCP { TCP_LEN } else { UDP_LEN };
        if len < shortest || head >= packet.len() {
            return None;
        }
        Some(Self {
            segments,
            ip,
            head,
            payload: packet.len() - head,
            sequence,
            id,
            is_last,
        })
    }

    const fn protocol(self) -> u8 {
        match self.segments {
            Segments::Udp => UDP,
            _ => TCP,
        }
    }

    const fn addresses(self) -> std::ops::Range<usize> {
        if self.ip == V6_LEN { 8..40 } else { 12..20 }
    }

    /// Addresses and ports are the same.
    fn is_same_flow(self, first: &[u8], other: Self, packet: &[u8]) -> bool {
        let ports = self.ip..self.ip + 4;
        self.segments == other.segments
            && self.ip == other.ip
            && first[ports.clone()] == packet[ports]
            && first[self.addresses()] == packet[self.addresses()]
    }

    /// Everything in the headers is the same but what differs from packet to packet by its place.
    fn has_same_head(self, first: &[u8], packet: &[u8]) -> bool {
        let ip = if self.ip == V6_LEN {
            // Not the length.
            first[..4] == packet[..4] && first[6..8] == packet[6..8]
        } else {
            // Not the length, the number and the checksum.
            first[..2] == packet[..2] && first[6..10] == packet[6..10]
        };
        let (first, packet) = (&first[self.ip..], &packet[self.ip..]);
        let head = self.head - self.ip;
        let transport = self.segments == Segments::Udp || {
            // Not the sequence, the flags and the checksum.
            packet.len() >= head
                && first[8..13] == packet[8..13]
                && first[14..16] == packet[14..16]
                && first[18..head] == packet[18..head]
        };
        ip && transport
    }

    fn has_right_checksum(self, packet: &[u8]) -> bool {
        let transport = &packet[self.ip..];
        let ip = Sum::default().bytes(&packet[..self.ip]);
        let sum = pseudo(
            &packet[self.addresses()],
            self.protocol(),
            length(transport.len()),
        );
        sum.bytes(transport).is_right() && (self.ip == V6_LEN || ip.is_right())
    }
}
