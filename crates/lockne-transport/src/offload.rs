//! What the kernel leaves to a TUN device that asks for it, and takes from one: many packets as one.
//!
//! The kernel's own names for it are TSO and USO (an application's long send comes as one packet, to be cut
//! up here) and GRO (packets of one flow are given back as one). Layouts are those of `linux/virtio_net.h`.

pub(super) mod checksum;
pub(super) mod merge;
pub(super) mod split;

/// The longest IP packet.
pub(super) const LONGEST: usize = 0xffff;

/// The fixed part of a TCP header that both directions look at.
const TCP_LEN: usize = 20;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: u16 = 16;
const UDP_LEN: usize = 8;
const UDP_CHECKSUM: u16 = 6;
const V6_LEN: usize = 40;

/// What a packet of many segments holds: `gso_type` of `virtio_net_hdr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segments {
    /// It is one packet.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either (`VIRTIO_NET_HDR_GSO_UDP_L4`, Linux 6.2).
    Udp,
}

/// `struct virtio_net_hdr`, in front of each packet that is read from or written to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The checksum at `checksum_start + checksum_offset` is that of the pseudo header only.
    pub(super) needs_checksum: bool,
    pub(super) segments: Segments,
    /// Bytes of all headers; a hint.
    pub(super) head: u16,
    /// Bytes of payload in each segment but the last.
    pub(super) segment_size: u16,
    /// Where the TCP or UDP header begins.
    pub(super) checksum_start: u16,
    /// Where the checksum is, from there.
    pub(super) checksum_offset: u16,
}

/// A header that says what there is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Header {
    /// Bytes in front of each packet.
    pub(super) const LEN: usize = 10;

    /// In front of one packet that is whole.
    pub(super) const WHOLE: Self = Self {
        needs_checksum: false,
        segments: Segments::None,
        head: 0,
        segment_size: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    pub(super) fn read(bytes: [u8; Self::LEN]) -> Result<Self, Malformed> {
        let [flags, kind, rest @ ..] = bytes;
        let segments = match kind {
            0 => Segments::None,
            1 => Segments::Tcp4,
            4 => Segments::Tcp6,
            5 => Segments::Udp,
            _ => return Err(Malformed),
        };
        let (numbers, _) = rest.as_chunks();
        let number = |place: usize| u16::from_ne_bytes(numbers[place]);
        Ok(Self {
            needs_checksum: flags & 1 != 0,
            segments,
            head: number(0),
            segment_size: number(1),
            checksum_start: number(2),
            checksum_offset: number(3),
        })
    }

    pub(super) fn write(self) -> [u8; Self::LEN] {
        let kind = match self.segments {
            Segments::None => 0,
            Segments::Tcp4 => 1,
            Segments::Tcp6 => 4,
            Segments::Udp => 5,
        };
        let numbers = [
            self.head,
            self.segment_size,
            self.checksum_start,
            self.checksum_offset,
        ];
        let mut bytes = [0; Self::LEN];
        bytes[..2].copy_from_slice(&[u8::from(self.needs_checksum), kind]);
        let (places, _) = bytes[2..].as_chunks_mut();
        for (place, number) in places.iter_mut().zip(numbers) {
            *place = number.to_ne_bytes();
        }
        bytes
    }
}

/// The two bytes at `at`, in network order.
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// A length that is known to be that of a part of a packet.
#[expect(clippy::cast_possible_truncation, reason = "no packet is longer")]
const fn length(bytes: usize) -> u16 {
    debug_assert!(bytes <= LONGEST);
    bytes as u16
}

#[cfg(test)]
mod tests;
