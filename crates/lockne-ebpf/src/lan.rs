//! Which destinations a policy reaches past its tunnel.

use aya_ebpf::{maps::lpm_trie::Key, programs::SkBuffContext};
use lockne_abi::{LanKey, Words};

use crate::map::LAN;

const FULL: u32 = (size_of::<LanKey>() * 8) as u32;

/// Whether policy `id` lets `address` be reached past its tunnel.
#[inline(always)]
pub(crate) fn has(id: u8, address: [u8; 16]) -> bool {
    let key = LanKey {
        policy: id,
        address,
    };
    LAN.get(Key::new(FULL, key)).is_some()
}

/// An IPv4 address, as it lies in memory, in the form of an IPv6 one.
#[inline(always)]
pub(crate) fn mapped(v4: u32) -> Words {
    [0, 0, 0xffff_u32.to_be(), v4]
}

/// An address as [`LanKey`] has it.
#[inline(always)]
pub(crate) fn bytes(words: &Words) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (part, word) in bytes.chunks_exact_mut(4).zip(words) {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// The destination in the IP header of a packet.
#[inline(always)]
pub(crate) fn destination(ctx: &SkBuffContext) -> Option<[u8; 16]> {
    match ctx.load::<u8>(0).ok()? >> 4 {
        4 => Some(bytes(&mapped(ctx.load(16).ok()?))),
        6 => ctx.load(24).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;

    #[test]
    fn mapped_address_is_the_one_the_standard_library_makes() {
        let address = Ipv4Addr::new(192, 0, 2, 77);

        let v4 = u32::from_ne_bytes(address.octets());

        assert_eq!(bytes(&mapped(v4)), address.to_ipv6_mapped().octets());
    }
}
