//! What `lockne monitor` writes to a file: whatever the kernel reports of a packet, and whatever its bytes, another
//! program reads the same bytes out of the file.
#![no_main]

extern crate self as lockne_daemon;

use std::{io::Read, os::fd::{AsRawFd, FromRawFd}};

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use lockne_abi::observe::Packet as Seen;
use pcap_file::pcapng::{Block, PcapNgReader};

/// What the file takes from its crate.
pub mod observe {
    pub use lockne_abi::observe::Packet;
}

mod failure {
    pub(crate) struct Failure;

    pub(crate) type Result<T> = std::result::Result<T, Failure>;

    impl Failure {
        pub(crate) fn new(_: String) -> Self {
            Self
        }

        pub(crate) fn because(self, _: &(dyn std::error::Error + 'static)) -> Self {
            self
        }
    }
}

mod stream {
    #[derive(Clone, Copy)]
    pub(crate) struct Clock;

    impl Clock {
        pub(crate) fn since_epoch(self, monotonic: u64) -> std::time::Duration {
            std::time::Duration::from_nanos(monotonic)
        }
    }
}

mod monitor {
    pub(crate) mod show {
        pub(crate) struct Packet<'a> {
            pub(crate) seen: &'a lockne_abi::observe::Packet,
            pub(crate) device: String,
            pub(crate) comment: Option<String>,
        }

        impl Packet<'_> {
            pub(crate) fn direction(&self) -> &'static str {
                if self.seen.has(lockne_abi::observe::Packet::INCOMING) { "in" } else { "out" }
            }

            pub(crate) fn comment(&self) -> Option<String> {
                self.comment.clone()
            }
        }
    }

    #[path = "../../../crates/lockne/src/cmd/monitor/file.rs"]
    pub(crate) mod file;
}

use monitor::{file::File, show::Packet};

fuzz_target!(|bytes: &[u8]| {
    let _short = write_and_read(&mut Unstructured::new(bytes));
});

fn write_and_read(input: &mut Unstructured<'_>) -> libfuzzer_sys::arbitrary::Result<()> {
    // SAFETY: makes a descriptor.
    let memory = unsafe { libc::memfd_create(c"pcapng".as_ptr(), 0) };
    // SAFETY: the kernel has just made it for us.
    let memory = unsafe { std::fs::File::from_raw_fd(memory) };
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let Ok(mut file) = File::create(path.as_ref(), 65535) else {
        panic!("memory can be written");
    };
    let mut written = Vec::new();
    while !input.is_empty() && written.len() < 8 {
        let seen = Seen {
            time: input.arbitrary::<u64>()? >> 1,
            ifindex: u32::from(input.arbitrary::<u8>()? % 3),
            length: input.arbitrary()?,
            flags: input.arbitrary()?,
            vlan: input.arbitrary()?,
            ..Seen::default()
        };
        let device: String = input.arbitrary()?;
        let comment: Option<String> = input.arbitrary()?;
        let frame: Vec<u8> = input.arbitrary()?;
        let packet = Packet { seen: &seen, device, comment };
        assert!(file.add(&packet, &frame, stream::Clock), "memory can be written");
        let tagged = seen.has(Seen::TAGGED) && frame.len() >= 12;
        written.push(frame.len() + if tagged { 4 } else { 0 });
    }
    assert!(file.end().is_ok());

    let mut text = Vec::new();
    std::fs::File::open(&path).and_then(|mut file| file.read_to_end(&mut text)).expect("memory can be read");
    let mut reader = PcapNgReader::new(&text[..]).expect("a file");
    let mut read = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.expect("a block") {
            read.push(packet.data.len());
        }
    }
    assert_eq!(read, written);
    Ok(())
}
