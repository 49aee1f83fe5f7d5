//! Records from the kernel, as `lockne monitor`, `flows` and `trace` read them from the ring: whatever its bytes,
//! a record is read whole or not at all, a line of it has nothing that commands a terminal, and another program
//! reads the same packets out of the file that is written. The first byte says whose ring it is.
#![no_main]

extern crate self as aya;
extern crate self as lockne_daemon;

use std::{
    io::{Read as _, Seek as _},
    os::fd::AsRawFd as _,
};

use libfuzzer_sys::fuzz_target;
use lockne_abi::{
    flow::{Answer, Closed, Turn},
    observe::{Exec, Exit, Packet as Seen},
};
use pcap_file::pcapng::{Block, PcapNgReader};
use rustix::fs::{MemfdFlags, memfd_create};

use monitor::{file::File, show::Packet};
use record::{Connection, Run};
use stream::Clock;

#[path = "../../crates/lockne-daemon/src/observe/record.rs"]
mod record;

mod failure {
    #[derive(Debug)]
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

mod output {
    use anstyle::Style;

    pub(crate) const FAINT: Style = Style::new();
    pub(crate) const GOOD: Style = Style::new();
    pub(crate) const STRONG: Style = Style::new();
    pub(crate) const WARN: Style = Style::new();
}

#[path = "../../crates/lockne-cli/src/stream"]
mod stream {
    pub(crate) use self::{
        clock::Clock,
        text::{shown, until_zero},
    };

    mod clock;
    mod text;

    pub(crate) type Part = (anstyle::Style, String);
}

#[path = "../../crates/lockne-cli/src/cmd/monitor"]
mod monitor {
    pub(crate) mod file;
    pub(crate) mod show;
}

/// As the daemon has it.
pub mod observe {
    pub use lockne_abi::observe::Packet;
}

/// Plain data: the loader's own trait, which is all that is needed of it.
///
/// # Safety
///
/// Every byte must be initialized, and every bit pattern valid.
pub unsafe trait Pod: Copy + 'static {}

// SAFETY: integers that fill the struct, as the loader's implementations say.
unsafe impl Pod for Seen {}
// SAFETY: as above.
unsafe impl Pod for Exec {}
// SAFETY: as above.
unsafe impl Pod for Exit {}
// SAFETY: as above.
unsafe impl Pod for Turn {}
// SAFETY: as above.
unsafe impl Pod for Closed {}
// SAFETY: as above.
unsafe impl Pod for Answer {}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    match kind % 3 {
        0 => packets(rest),
        1 => runs(rest),
        _ => connections(rest),
    }
});

fn runs(record: &[u8]) {
    match (tag(record), Run::read(record)) {
        (Some(Exec::TAG), Some(Run::Starts(exec))) => {
            is_same(record, &exec);
            is_plain(&stream::shown(stream::until_zero(&exec.path)));
            exec.arguments
                .split(|byte| *byte == 0)
                .for_each(|argument| is_plain(&stream::shown(argument)));
        }
        (Some(Exit::TAG), Some(Run::Ends(exit))) => is_same(record, &exit),
        (Some(Exec::TAG), None) => assert!(record.len() < size_of::<Exec>()),
        (Some(Exit::TAG), None) => assert!(record.len() < size_of::<Exit>()),
        (_, read) => assert!(read.is_none(), "{read:?}"),
    }
}

fn connections(record: &[u8]) {
    match (tag(record), Connection::read(record)) {
        (Some(Turn::BEGUN), Some(Connection::Begun(turn)))
        | (Some(Turn::ENDED), Some(Connection::Ended(turn))) => is_same(record, &turn),
        (Some(Closed::TAG), Some(Connection::Closed(closed))) => is_same(record, &closed),
        (Some(Answer::TAG), Some(Connection::Answer(answer, packet))) => {
            is_same(record, &answer);
            if let Some(said) = lockne_core::answer::Answer::of_packet(packet) {
                is_plain(&said.name);
            }
        }
        (Some(Turn::BEGUN | Turn::ENDED), None) => assert!(record.len() < size_of::<Turn>()),
        (Some(Closed::TAG), None) => assert!(record.len() < size_of::<Closed>()),
        // It is cut, or its packet is.
        (Some(Answer::TAG), None) => {}
        (_, read) => assert!(read.is_none(), "{read:?}"),
    }
}

/// Records of packets, each behind a byte that says how many bytes of the packet there are.
fn packets(mut rest: &[u8]) {
    let mut memory =
        std::fs::File::from(memfd_create(c"pcapng", MemfdFlags::CLOEXEC).expect("memory"));
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let mut file = File::create(path.as_ref(), 65535).expect("memory can be written");
    let clock = Clock::now();
    let mut written = Vec::new();
    while let Some((length, more)) = rest.split_first() {
        let length = (size_of::<Seen>() + usize::from(*length)).min(more.len());
        let (record, more) = more.split_at(length);
        rest = more;
        let Some((seen, frame)) = record::split::<Seen>(record) else {
            assert!(record.len() < size_of::<Seen>());
            break;
        };
        is_same(record, &seen);
        // The kernel's clock starts with the machine.
        let seen = Seen {
            time: seen.time % (1 << 60),
            ..seen
        };
        let packet = Packet {
            seen: &seen,
            device: format!("eth{}", seen.ifindex),
            policy: None,
        };
        packet
            .parts(clock)
            .iter()
            .for_each(|(_, text)| is_plain(text));
        serde_json::to_string(&packet.json(clock)).expect("JSON");
        assert!(file.add(&packet, frame, clock), "memory can be written");
        written.push((
            clock.since_epoch(seen.time),
            seen.length,
            on_the_wire(&seen, frame),
        ));
    }
    file.end().expect("memory can be written");

    let mut text = Vec::new();
    memory.rewind().expect("memory");
    memory.read_to_end(&mut text).expect("memory");
    let mut reader = PcapNgReader::new(&text[..]).expect("a file");
    let mut read = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.expect("a block") {
            read.push((
                packet.timestamp,
                packet.original_len,
                packet.data.into_owned(),
            ));
        }
    }
    assert!(read == written, "{read:?} is read, {written:?} was written");
}

fn on_the_wire(seen: &Seen, frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    if seen.has(Seen::TAGGED) && frame.len() >= 12 {
        let kind: u16 = if seen.has(Seen::PROVIDER_TAG) {
            0x88a8
        } else {
            0x8100
        };
        bytes.splice(
            12..12,
            [kind.to_be_bytes(), seen.vlan.to_be_bytes()].concat(),
        );
    }
    bytes
}

fn tag(record: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(record.get(..4)?.try_into().ok()?))
}

fn is_same<T: Pod>(record: &[u8], value: &T) {
    // SAFETY: `Pod` has no padding.
    let bytes = unsafe {
        std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>())
    };
    assert_eq!(record.get(..bytes.len()), Some(bytes));
}

fn is_plain(text: &str) {
    assert!(!text.contains(char::is_control), "{text:?}");
}
