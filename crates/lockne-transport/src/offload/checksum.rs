//! The checksum of IP, TCP and UDP (RFC 1071).

/// A sum on its way to a checksum, in the byte order of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even place of what is summed up.
    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        // Half as wide as the sum, so that no carry is lost before some 16 GiB.
        let (words, rest) = bytes.as_chunks::<4>();
        let sum = words
            .iter()
            .map(|word| u64::from(u32::from_ne_bytes(*word)))
            .sum::<u64>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        Self(self.0 + sum + u64::from(u32::from_ne_bytes(last)))
    }

    /// Adds a number that is in network order there.
    pub(super) const fn number(self, number: u16) -> Self {
        Self(self.0 + u16::from_ne_bytes(number.to_be_bytes()) as u64)
    }

    /// Takes away a number that was added.
    pub(super) const fn without(self, number: u16) -> Self {
        self.number(!number)
    }

    /// The sum in two bytes, as a packet holds it.
    pub(super) const fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
        let sum = sum as u16;
        sum.to_ne_bytes()
    }

    /// The checksum, as a packet holds it.
    pub(super) const fn checksum(self) -> [u8; 2] {
        let [a, b] = self.folded();
        [!a, !b]
    }

    /// The checksum of UDP: never 0, which means "none" there.
    pub(super) const fn datagram(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            checksum => checksum,
        }
    }

    /// Whether this is the sum over something and its right checksum.
    pub(super) const fn is_right(self) -> bool {
        matches!(self.folded(), [0xff, 0xff])
    }
}

/// The sum of the pseudo header: both addresses, the protocol and the length of what follows the IP header.
pub(super) fn pseudo(addresses: &[u8], protocol: u8, len: u16) -> Sum {
    Sum::default()
        .bytes(addresses)
        .number(u16::from(protocol))
        .number(len)
}
