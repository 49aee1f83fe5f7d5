//! The IP header of a packet, version 4 or 6, and the ports behind it.

use aya_ebpf::programs::{XdpContext, sk_buff::SkBuff};

/// Length of the Ethernet header, which comes before the IP header at TC hooks of Ethernet devices.
pub const ETHERNET: usize = 14;

/// A packet whose bytes can be read.
pub trait Bytes {
    /// Copies a `T` from `offset`, if the packet is that long.
    fn load<T: Copy>(&self, offset: usize) -> Option<T>;
}

impl Bytes for SkBuff {
    /// By a helper, which checks the bounds itself and finds the bytes wherever the kernel keeps them.
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        Self::load(self, offset).ok()
    }
}

impl Bytes for XdpContext {
    /// By pointer: the verifier insists on the comparison, and then the read costs one instruction.
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        let start = self.data() + offset;
        if start + size_of::<T>() > self.data_end() {
            return None;
        }
        // SAFETY: the bytes are inside the packet, and `T` is made of bytes.
        Some(unsafe { (start as *const T).read_unaligned() })
    }
}

/// The protocol numbers that the demos know by name.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// What the demos want of an IP header.
#[derive(Clone, Copy, Debug)]
pub struct Ip {
    /// Who sends. An IPv4 address is mapped into IPv6, so that the rest need not know the difference.
    pub source: [u8; 16],
    /// Who is to get it.
    pub destination: [u8; 16],
    /// What comes next; for IPv6 it may be an extension header.
    pub protocol: u8,
    /// Where the next header starts.
    pub payload: usize,
}

impl Ip {
    /// Reads the header at `offset` of the packet.
    #[inline(always)]
    #[must_use]
    pub fn read(packet: &impl Bytes, offset: usize) -> Option<Self> {
        let first: u8 = packet.load(offset)?;
        match first >> 4 {
            4 => Some(Self {
                source: mapped(packet.load(offset + 12)?),
                destination: mapped(packet.load(offset + 16)?),
                protocol: packet.load(offset + 9)?,
                payload: offset + usize::from(first & 0xf) * 4,
            }),
            6 => Some(Self {
                source: packet.load(offset + 8)?,
                destination: packet.load(offset + 24)?,
                protocol: packet.load(offset + 6)?,
                payload: offset + 40,
            }),
            _ => None,
        }
    }

    /// The source and destination port, if it is TCP or UDP.
    #[inline(always)]
    #[must_use]
    pub fn ports(&self, packet: &impl Bytes) -> Option<(u16, u16)> {
        if self.protocol != protocol::TCP && self.protocol != protocol::UDP {
            return None;
        }
        let [source, destination]: [[u8; 2]; 2] = packet.load(self.payload)?;
        Some((u16::from_be_bytes(source), u16::from_be_bytes(destination)))
    }
}

/// An IPv4 address as one of IPv6: `::ffff:a.b.c.d`.
#[inline(always)]
#[must_use]
pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
    ]
}

/// Whether an address is a mapped IPv4 one.
#[inline(always)]
#[must_use]
pub const fn is_v4(address: &[u8; 16]) -> bool {
    u128::from_be_bytes(*address) >> 32 == 0xffff
}
