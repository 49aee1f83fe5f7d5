//! What is known of a connection while somebody watches.
//!
//! The flows are an array that user space maps, so that looking costs no call. A flow is in one of the
//! [`WAYS`] places that its key leads to; a free place is all zeros.

/// How many flows there is room for.
pub const SLOTS: u32 = 1 << 16;
/// In how many places a flow can be: in some that its socket leads to, and as many that its key does.
pub const WAYS: u32 = 2 * NEAR;
/// Sockets that were made one after another have their flows side by side, in few pages of memory.
const NEAR: u32 = 4;

/// Names under which maps and programs are found in the object.
pub mod name {
    /// Array of [`Flow`](super::Flow).
    pub const FLOWS: &str = "FLOWS";
    /// Program on `cgroup_skb/egress`.
    pub const METER_OUT: &str = "meter_out";
    /// Program on `cgroup_skb/ingress`.
    pub const METER_IN: &str = "meter_in";
    /// Program on `tp_btf/inet_sock_set_state`.
    pub const SEE_STATE: &str = "see_state";
    /// Program on `cgroup/sock_release`.
    pub const SEE_RELEASE: &str = "see_release";
}

/// A connection: for TCP a socket, for all else a socket and whom it speaks with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// [`key`] of it; 0 in a free place.
    pub key: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent, from the IP header on.
    pub tx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received, from the IP header on.
    pub rx_bytes: u64,
    /// The mark of the last packet sent.
    pub mark: u32,
    /// The device of the last packet sent, or of the first one received.
    pub ifindex: u32,
    /// The process that made the socket, or 0.
    pub pid: u32,
    /// The user that made the socket.
    pub uid: u32,
    /// The cookie of the socket.
    pub cookie: u64,
    /// When it was first seen, in nanoseconds of `CLOCK_MONOTONIC`. Not 0 once all of this is written.
    pub started: u64,
    /// Its own address, in network order; IPv4 addresses are v4-mapped.
    pub local: [u8; 16],
    /// The other one's address.
    pub remote: [u8; 16],
    /// Its own port, or 0.
    pub local_port: u16,
    /// The other one's port, or 0.
    pub remote_port: u16,
    /// The protocol in the IP header.
    pub protocol: u8,
    /// The state of a TCP socket, as the kernel counts them; else 0.
    pub state: u8,
    /// [`EXISTING`](Self::EXISTING).
    pub flags: u8,
    /// Fills up the struct.
    pub unused: u8,
    /// The name of the process, filled up with zeros.
    pub name: [u8; 16],
}

impl Flow {
    /// The connection was there before somebody watched.
    pub const EXISTING: u8 = 1;
}

/// What a flow is found by: the cookie of a TCP socket, else a number made of cookie and remote address.
#[inline(always)]
#[must_use]
pub const fn key(cookie: u64, remote: Option<([u64; 2], u16)>) -> u64 {
    /// Cookies count up from 1 and do not come here.
    const MIXED: u64 = 1 << 63;
    let Some(([high, low], port)) = remote else {
        return cookie;
    };
    // None waits for another. An IPv4 address is in the upper half of `low`, and goes into the lower one here.
    let low = low.wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(32);
    let high = (high ^ port as u64).wrapping_mul(0x94d0_49bb_1331_11eb);
    let sum = cookie.wrapping_mul(FACTOR) ^ low ^ high;
    let sum = (sum ^ sum >> 32).wrapping_mul(FACTOR);
    (sum ^ sum >> 31) | MIXED
}

/// Mixes the bits of a number when multiplied.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The place where a flow is looked for in the `way`th try.
#[expect(clippy::inline_always, reason = "called for each packet")]
#[expect(clippy::cast_possible_truncation, reason = "there are fewer places")]
#[inline(always)]
#[must_use]
pub const fn place(cookie: u64, key: u64, way: u32) -> u32 {
    // The key of TCP is its cookie: where many sockets that were made together live long, the next ones which
    // lead there find a place elsewhere.
    let from = if way < NEAR {
        cookie
    } else {
        key.wrapping_mul(FACTOR) >> 32
    };
    let first = (from & (SLOTS - 1) as u64) as u32;
    (first & !(NEAR - 1)) | ((first + way) & (NEAR - 1))
}

/// A connection that began or ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// [`BEGUN`](Self::BEGUN) or [`ENDED`](Self::ENDED).
    pub tag: u32,
    /// Its place.
    pub slot: u32,
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// What is known of it.
    pub flow: Flow,
}

impl Turn {
    /// The first packet was seen.
    pub const BEGUN: u32 = 11;
    /// The connection is over; its place is free.
    pub const ENDED: u32 = 12;
}

/// A socket other than TCP that was closed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// [`Self::TAG`].
    pub tag: u32,
    /// Fills up the struct.
    pub unused: u32,
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The cookie of the socket.
    pub cookie: u64,
}

impl Closed {
    /// What a record of this kind starts with.
    pub const TAG: u32 = 13;
}

/// An answer of a name server, as it came to the process that asked. Behind it is the packet, from the IP
/// header on, and more, which means nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// [`Self::TAG`].
    pub tag: u32,
    /// The bytes of the packet.
    pub length: u32,
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The process that made the socket, or 0.
    pub pid: u32,
    /// The mark of the question.
    pub mark: u32,
}

impl Answer {
    /// What a record of this kind starts with.
    pub const TAG: u32 = 14;
}

const _: () = assert!(size_of::<Answer>() == 24);
const _: () = assert!(size_of::<Flow>() == 128);
const _: () = assert!(size_of::<Turn>() == 144);
const _: () = assert!(size_of::<Closed>() == 24);

#[cfg(feature = "user")]
mod user {
    use super::{Answer, Closed, Flow, Turn};

    // SAFETY: integers that fill the struct, so no padding; every bit pattern is valid.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Turn {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Closed {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Answer {}
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    #[test]
    fn cookies_in_a_row_have_places_of_their_own() {
        assert_eq!(key(7, None), 7);
        for cookie in 1..SLOTS {
            let number = cookie.into();
            assert_eq!(place(number, number, 0), cookie);
            let remote = Some(([0, 1 << 32], 443));
            assert_eq!(place(number, key(number, remote), 0), cookie);
        }
    }

    #[test]
    fn ways_are_different_places() {
        let key = key(7, Some(([1, 2], 53)));

        let mut places: Vec<u32> = (0..WAYS).map(|way| place(7, key, way)).collect();

        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), WAYS as usize);
    }

    #[test]
    fn crowd_that_lives_long_leaves_places_for_later_sockets() {
        let mut taken = std::collections::BTreeSet::new();
        let mut find = |cookie: u64| {
            let place = (0..WAYS).map(|way| place(cookie, cookie, way));
            place.into_iter().any(|place| taken.insert(place))
        };

        assert!((0..2000).all(&mut find));
        // Counted around once. Some are led into the crowd again.
        let later = (1..=2000).filter(|cookie| find(cookie + u64::from(SLOTS)));
        assert!(later.count() > 1800);
    }

    #[test]
    fn keys_of_remotes_differ_and_are_no_cookies() {
        let one = key(7, Some(([1, 2], 53)));
        for other in [
            key(8, Some(([1, 2], 53))),
            key(7, Some(([2, 1], 53))),
            key(7, Some(([1, 2], 54))),
        ] {
            assert_ne!(one, other);
            assert!(other > u64::from(u32::MAX) << 31);
        }
    }

    #[test]
    fn remotes_of_a_server_have_keys_of_their_own() {
        let mut keys: Vec<u64> = (0..1_u32 << 18)
            .map(|client| {
                let address = [0, u64::from(client) << 32 | 0xffff_0000];
                key(7, Some((address, 443)))
            })
            .collect();

        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 1 << 18);
    }
}
