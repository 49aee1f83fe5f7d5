//! What the kernel's classifiers read of a packet's headers, against what `lockne_core::filter` reads of its bytes.
//! The first byte says whether there is an Ethernet header. The code is the kernel's own, compiled for this machine.
#![no_main]

extern crate self as aya_ebpf;

use libfuzzer_sys::fuzz_target;
use lockne_abi::observe::Packet;
use lockne_core::filter::{self, Link};

use programs::{Meta, Skb, TcContext};

#[expect(dead_code, reason = "the keys of pings and connections")]
#[path = "../../crates/lockne-ebpf/src/observe/headers.rs"]
mod headers;

/// The kernel's view of a packet, as far as headers are read by it.
pub mod programs {
    /// A packet, with what is known of it.
    pub struct TcContext {
        pub skb: Skb,
        pub bytes: Vec<u8>,
    }

    /// Points to what the kernel says.
    pub struct Skb {
        pub skb: *mut Meta,
    }

    /// What the kernel says, by its own names.
    #[derive(Default)]
    pub struct Meta {
        pub mark: u32,
        pub ifindex: u32,
        pub len: u32,
        pub vlan_present: u32,
        pub vlan_tci: u32,
        pub vlan_proto: u32,
    }

    /// What any bytes are.
    ///
    /// # Safety
    ///
    /// Every bit pattern must be valid.
    pub unsafe trait Plain: Copy {}

    // SAFETY: bytes.
    unsafe impl Plain for u8 {}
    // SAFETY: bytes.
    unsafe impl<const N: usize> Plain for [u8; N] {}

    impl TcContext {
        /// The bytes from `offset` on, if all are there.
        pub fn load<T: Plain>(&self, offset: usize) -> Result<T, i64> {
            let end = offset.checked_add(size_of::<T>()).ok_or(-14)?;
            let found = self.bytes.get(offset..end).ok_or(-14)?;
            // SAFETY: as long as `T`, and valid whatever the bytes.
            Ok(unsafe { found.as_ptr().cast::<T>().read_unaligned() })
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let mut meta = Meta {
        len: u32::try_from(bytes.len()).expect("a short input"),
        ..Meta::default()
    };
    let context = TcContext {
        skb: Skb { skb: &raw mut meta },
        bytes: bytes.to_vec(),
    };
    let mut packet = Packet::default();
    let link = if kind % 2 == 0 {
        headers::read::<true, false>(&context, &mut packet);
        Link::Ethernet
    } else {
        headers::read::<false, false>(&context, &mut packet);
        Link::Bare
    };
    assert_eq!(packet, filter::packet(bytes, link));
});
