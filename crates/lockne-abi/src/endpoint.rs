//! Addresses, and where questions for names go.

use core::net::IpAddr;

/// The words of an IPv6 address, each as it lies in memory. IPv4 addresses are v4-mapped.
pub type Words = [u32; 4];

/// The third word of every v4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

/// An address and a port, in the form that `bpf_sock_addr` has them. Port 0 means none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: Words,
    /// The port in network order, in the lower half.
    pub port: u32,
}

impl Endpoint {
    /// The port of resolvers, as [`Self::port`] has it.
    pub const DNS: u32 = 53_u16.to_be() as u32;

    /// The form of an address and a port.
    #[must_use]
    pub fn new(address: IpAddr, port: u16) -> Self {
        Self {
            address: words(address),
            port: u32::from(port.to_be()),
        }
    }

    /// The address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        let mut octets = [0; 16];
        for (part, word) in octets.chunks_exact_mut(4).zip(self.address) {
            part.copy_from_slice(&word.to_ne_bytes());
        }
        IpAddr::from(octets).to_canonical()
    }
}

/// The form of an address.
#[must_use]
pub fn words(address: IpAddr) -> Words {
    let octets = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let word = |i: usize| {
        u32::from_ne_bytes([
            octets[4 * i],
            octets[4 * i + 1],
            octets[4 * i + 2],
            octets[4 * i + 3],
        ])
    };
    [word(0), word(1), word(2), word(3)]
}

/// Whether it stands for an IPv4 address.
#[inline]
#[must_use]
pub const fn is_mapped(address: &Words) -> bool {
    address[0] == 0 && address[1] == 0 && address[2] == MAPPED
}

/// Whether it is an address of the loopback device, or none, which the kernel takes for one.
#[inline]
#[must_use]
pub const fn is_loopback(address: &Words) -> bool {
    if is_mapped(address) {
        return address[3].to_ne_bytes()[0] == 127 || address[3] == 0;
    }
    let last = u32::from_be(address[3]);
    address[0] == 0 && address[1] == 0 && address[2] == 0 && last <= 1
}

/// Whether it is the unspecified address of either family.
#[inline]
#[must_use]
pub const fn is_unspecified(address: &Words) -> bool {
    address[0] == 0
        && address[1] == 0
        && (address[2] == 0 || address[2] == MAPPED)
        && address[3] == 0
}

/// Where a policy's questions for names go, of one IP version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Behind the tunnel.
    pub far: Endpoint,
    /// On this machine, for sockets that cannot ask `far`; it asks in their place.
    pub stub: Endpoint,
    /// The tunnel's own address: a socket that has it can ask `far`.
    pub own: Words,
}

/// Where a policy's questions for names go. Zeroed memory means that the policy has no resolver.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resolvers {
    /// For what is asked by IPv4.
    pub v4: Resolver,
    /// For what is asked by IPv6.
    pub v6: Resolver,
}

impl Resolvers {
    /// Whether there is one, of either IP version.
    #[inline]
    #[must_use]
    pub const fn exist(&self) -> bool {
        self.v4.far.port != 0 || self.v6.far.port != 0
    }
}

/// Whom a socket asked, and whom it asks in truth.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rename {
    /// Whom the program named.
    pub asked: Endpoint,
    /// Who got the question.
    pub given: Endpoint,
}

/// What a socket's questions were renamed to; an IPv6 socket can ask by both IP versions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renames {
    /// By IPv4.
    pub v4: Rename,
    /// By IPv6.
    pub v6: Rename,
}

const _: () = assert!(size_of::<Resolvers>() == 112);
const _: () = assert!(size_of::<Renames>() == 80);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_this_machine_is_known_as_one() {
        let is = |text: &str| is_loopback(&words(text.parse().unwrap()));

        for address in [
            "127.0.0.1",
            "127.255.0.53",
            "0.0.0.0",
            "::1",
            "::",
            "::ffff:127.0.0.53",
        ] {
            assert!(is(address), "{address}");
        }
        for address in [
            "128.0.0.1",
            "1.2.3.127",
            "::2",
            "::127.0.0.1",
            "fe80::1",
            "1::1",
        ] {
            assert!(!is(address), "{address}");
        }
    }

    #[test]
    fn endpoint_has_the_form_of_the_kernel() {
        let endpoint = Endpoint::new("1.2.3.4".parse().unwrap(), 53);

        assert_eq!(endpoint.port, Endpoint::DNS);
        assert_eq!(endpoint.ip(), IpAddr::from([1, 2, 3, 4]));
        assert!(is_mapped(&endpoint.address));
        assert_eq!(endpoint.address[3].to_ne_bytes(), [1, 2, 3, 4]);
        assert!(!is_mapped(&words("fd00::53".parse().unwrap())));
    }
}
