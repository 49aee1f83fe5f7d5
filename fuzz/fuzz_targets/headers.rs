//! What the kernel's classifiers read of a packet, against what `lockne_core::filter` reads of its bytes. The first
//! byte says whether there is an Ethernet header.
#![no_main]

extern crate self as aya_ebpf;

use libfuzzer_sys::fuzz_target;
use lockne_core::filter::{self, Link};

#[expect(dead_code, reason = "the keys of pings and connections")]
#[path = "../../crates/lockne-ebpf/src/observe/headers.rs"]
mod headers;

/// The kernel's view of a packet, as far as headers are read by it.
pub mod programs {
    /// A packet, with what is known of it.
    pub struct TcContext {
        /// What the kernel says.
        pub skb: Skb,
        /// What is on the wire.
        pub bytes: Vec<u8>,
    }

    /// Points to what the kernel says.
    pub struct Skb {
        /// To this.
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

    impl TcContext {
        /// The bytes from `offset` on, if all are there.
        pub fn load<T: zerocopy::FromBytes>(&self, offset: usize) -> Result<T, i64> {
            let rest = self.bytes.get(offset..).ok_or(-14)?;
            T::read_from_prefix(rest).map(|it| it.0).map_err(|_| -14)
        }
    }
}

use programs::{Meta, Skb, TcContext};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let mut meta = Meta {
        len: bytes.len() as u32,
        ..Meta::default()
    };
    let context = TcContext {
        skb: Skb { skb: &mut meta },
        bytes: bytes.to_vec(),
    };
    let mut packet = lockne_abi::observe::Packet::default();
    let link = if kind % 2 == 0 {
        headers::read::<true, false>(&context, &mut packet);
        Link::Ethernet
    } else {
        headers::read::<false, false>(&context, &mut packet);
        Link::Bare
    };
    assert_eq!(packet, filter::packet(bytes, link));
});
