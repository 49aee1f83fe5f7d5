//! Against packets that etherparse builds one by one.

#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes and places in packets of a few kilobytes"
)]

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, PacketBuilder};
use gotatun::packet::PacketBufPool;
use proptest::prelude::*;

use super::{
    Header, Segments,
    checksum::pseudo,
    merge::{Kinds, runs},
    split::Split,
};
use crate::blocks::Blocks;

const ALL: Kinds = Kinds {
    tcp: true,
    udp: true,
};
const A4: [u8; 4] = Ipv4Addr::new(10, 9, 0, 1).octets();
const B4: [u8; 4] = Ipv4Addr::new(10, 9, 0, 2).octets();
const A6: [u8; 16] = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1).octets();
const B6: [u8; 16] = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2).octets();

/// A packet, as it could come from anywhere.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a bit or a fact of a packet"
)]
#[derive(Clone, Debug)]
struct Spec {
    is_v6: bool,
    is_udp: bool,
    port: u16,
    sequence: u32,
    acknowledged: u32,
    /// ACK and PSH are set; these are added.
    odd_flags: u8,
    window: u16,
    /// Of a datagram over IPv4: its checksum is left out.
    is_unchecked: bool,
    push: bool,
    timestamp: Option<u32>,
    tos: u8,
    id: u16,
    dont_fragment: bool,
    /// Of IPv4: "router alert".
    has_option: bool,
    is_spoilt: bool,
    payload: Vec<u8>,
}

impl Spec {
    fn build(&self) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = if self.is_v6 {
            PacketBuilder::ipv6(A6, B6, 64)
        } else {
            let mut header = Ipv4Header::new(0, 64, IpNumber::TCP, A4, B4).unwrap();
            if self.has_option {
                header.options = [0x94, 4, 0, 0].into();
            }
            PacketBuilder::ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
        };
        if self.is_udp {
            let builder = builder.udp(self.port, 443);
            builder.write(&mut packet, &self.payload).unwrap();
        } else {
            let mut builder = builder
                .tcp(self.port, 443, self.sequence, self.window)
                .ack(self.acknowledged);
            if self.push {
                builder = builder.psh();
            }
            if self.odd_flags & 1 != 0 {
                builder = builder.fin();
            }
            if self.odd_flags & 2 != 0 {
                builder = builder.urg(3);
            }
            if self.odd_flags & 4 != 0 {
                builder = builder.ece();
            }
            if self.odd_flags & 8 != 0 {
                builder = builder.cwr();
            }
            if let Some(time) = self.timestamp {
                let mut option = vec![1, 1, 8, 10];
                option.extend(time.to_be_bytes());
                option.extend(7_u32.to_be_bytes());
                builder = builder.options_raw(&option).unwrap();
            }
            builder.write(&mut packet, &self.payload).unwrap();
        }
        self.finish(&mut packet);
        packet
    }

    /// What etherparse's builder has no words for.
    fn finish(&self, packet: &mut [u8]) {
        if self.is_v6 {
            packet[0] = 0x60 | self.tos >> 4;
            packet[1] = self.tos << 4;
        } else {
            packet[1] = self.tos;
            packet[4..6].copy_from_slice(&self.id.to_be_bytes());
            packet[6] = if self.dont_fragment { 0x40 } else { 0 };
            packet[10..12].fill(0);
            let ip = head(packet);
            let checksum = etherparse::checksum::Sum16BitWords::new()
                .add_slice(&packet[..ip])
                .ones_complement();
            packet[10..12].copy_from_slice(&checksum.to_ne_bytes());
        }
        if self.is_unchecked && self.is_udp && !self.is_v6 {
            let checksum = head(packet) + 6;
            packet[checksum..checksum + 2].fill(0);
        }
        if self.is_spoilt {
            *packet.last_mut().unwrap() ^= 1;
        }
    }
}

/// Bytes of the IP header.
fn head(packet: &[u8]) -> usize {
    match packet[0] >> 4 {
        4 => usize::from(packet[0] & 0xf) * 4,
        _ => 40,
    }
}

/// What the kernel's segmentation makes of a batch that is written as runs.
fn through_the_kernel(batch: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for run in runs(batch, ALL) {
        let Some((header, mut packet)) = run.head(batch) else {
            out.extend(run.packets.iter().map(|place| batch[*place].clone()));
            continue;
        };
        for place in &run.packets {
            packet.extend_from_slice(run.payload(&batch[*place]));
        }
        out.extend(cut(header, packet));
    }
    out
}

/// What is read of the device as `header` and `packet`.
fn cut(header: Header, packet: Vec<u8>) -> Vec<Vec<u8>> {
    let mut read = [header.write().to_vec(), packet].concat();
    let packets = crate::tun::cut(&mut read, &mut Blocks::default(), &PacketBufPool::new(0));
    let packets = packets.into_iter();
    packets.map(|packet| packet.into_bytes().to_vec()).collect()
}

/// Where nothing may be fragmented, the number of a packet means nothing (RFC 6864), and the kernel's differs.
fn without_idle_number(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// The packets of one flow, in their order.
fn flow(packets: &[Vec<u8>], is_v6: bool, is_udp: bool, port: u16) -> Vec<Vec<u8>> {
    let (version, protocol) = if is_v6 { (6, 6) } else { (4, 9) };
    let wanted = if is_udp { 17 } else { 6 };
    packets
        .iter()
        .filter(|packet| {
            let ip = head(packet);
            packet[0] >> 4 == version
                && packet[protocol] == wanted
                && packet[ip..ip + 2] == port.to_be_bytes()
        })
        .cloned()
        .map(without_idle_number)
        .collect()
}

/// Mostly what joins, and now and then something that must not.
fn batch() -> impl Strategy<Value = Vec<Spec>> {
    let step = (
        (any::<bool>(), any::<bool>(), 1_u16..4),
        prop_oneof![8 => Just(100_usize), 1 => 1_usize..100, 1 => 101_usize..1400],
        prop_oneof![12 => Just(0_u8), 1 => 1_u8..16],
        prop_oneof![9 => Just(0_u8), 1 => any::<u8>()],
        prop_oneof![9 => Just(0_u32), 1 => any::<u32>()],
        (
            prop::bool::weighted(0.1),
            prop::bool::weighted(0.5),
            prop::bool::weighted(0.05),
            prop::bool::weighted(0.05),
        ),
        (
            prop_oneof![9 => Just(0_u16), 1 => any::<u16>()],
            prop_oneof![9 => Just(1024_u16), 1 => any::<u16>()],
            prop::bool::weighted(0.1),
            prop::bool::weighted(0.05),
        ),
    );
    prop::collection::vec(step, 1..80).prop_map(|steps| {
        let mut next = std::collections::BTreeMap::new();
        let spec = |(flow, size, odd_flags, tos, gap, flags, more): (_, usize, _, _, u32, _, _)| {
            let (is_v6, is_udp, port) = flow;
            let (push, dont_fragment, other_ack, is_spoilt) = flags;
            let (sequence, id) = next.entry(flow).or_insert((u32::MAX - 500, u16::MAX - 3));
            let (id_gap, window, is_unchecked, has_option): (u16, _, _, _) = more;
            *sequence = sequence.wrapping_add(gap);
            *id = id.wrapping_add(id_gap);
            let spec = Spec {
                is_v6,
                is_udp,
                port,
                sequence: *sequence,
                acknowledged: if other_ack { 78 } else { 77 },
                odd_flags,
                window,
                is_unchecked,
                push,
                timestamp: (port == 2).then_some(5),
                tos,
                id: *id,
                dont_fragment,
                has_option,
                is_spoilt,
                payload: (0..size)
                    .map(|byte| (byte * 7 + usize::from(*id)) as u8)
                    .collect(),
            };
            *sequence = sequence.wrapping_add(size as u32);
            *id = id.wrapping_add(1);
            spec
        };
        steps.into_iter().map(spec).collect()
    })
}

proptest! {
    #[test]
    fn kernel_makes_the_same_packets_of_what_was_joined(specs in batch()) {
        let batch: Vec<_> = specs.iter().map(Spec::build).collect();

        let out = through_the_kernel(&batch);

        prop_assert_eq!(out.len(), batch.len());
        for is_v6 in [false, true] {
            for is_udp in [false, true] {
                for port in 1..4 {
                    let [before, after] =
                        [&batch, &out].map(|packets| flow(packets, is_v6, is_udp, port));
                    prop_assert_eq!(before, after);
                }
            }
        }
    }

    #[test]
    fn long_send_is_cut_into_the_packets_that_a_slow_device_would_see(
        is_v6: bool, is_udp: bool, push: bool, odd in 0_u8..64, size in 1_usize..1400,
        payload in prop::collection::vec(any::<u8>(), 1..20_000), id: u16, sequence: u32,
    ) {
        let long = Spec {
            is_v6, is_udp, port: 2, sequence, acknowledged: 9, odd_flags: odd & 15,
            window: 1024, is_unchecked: false, push,
            timestamp: (odd & 16 != 0).then_some(3), tos: 0xb9, id, dont_fragment: false,
            has_option: odd & 32 != 0, is_spoilt: false, payload: payload.clone(),
        };
        let last = payload.len().div_ceil(size) - 1;
        let expected: Vec<_> = payload.chunks(size).enumerate().map(|(index, part)| Spec {
            sequence: sequence.wrapping_add((index * size) as u32),
            id: id.wrapping_add(index as u16),
            push: push && index == last,
            // FIN is on the last one only, CWR on the first; URG and ECE are on all.
            odd_flags: long.odd_flags & (6 | u8::from(index == last) | u8::from(index == 0) << 3),
            payload: part.to_vec(),
            ..long.clone()
        }.build()).collect();
        let (header, packet) = as_the_kernel_gives_it(&long, size);

        prop_assert_eq!(cut(header, packet), expected);
    }

    #[test]
    fn no_packet_and_no_header_makes_it_panic(
        header: [u8; Header::LEN], mut packet in prop::collection::vec(any::<u8>(), 0..200),
        version in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()],
    ) {
        if let Some(first) = packet.first_mut() {
            *first = version;
        }
        let _ = runs(&[packet.clone(), packet.clone()], ALL);
        if let Ok(header) = Header::read(header)
            && let Ok(split) = Split::new(header, &mut packet)
        {
            for index in 0..split.count() {
                let mut packet = split.parts(index).concat();
                split.mend(index, &mut packet);
            }
        }
    }
}

/// `long` before segmentation, with the sum of the pseudo header in place of the checksum.
fn as_the_kernel_gives_it(long: &Spec, size: usize) -> (Header, Vec<u8>) {
    let mut packet = long.build();
    let ip = head(&packet);
    let (segments, protocol, offset) = match (long.is_udp, long.is_v6) {
        (true, _) => (Segments::Udp, 17, 6),
        (false, true) => (Segments::Tcp6, 6, 16),
        (false, false) => (Segments::Tcp4, 6, 16),
    };
    let addresses = if long.is_v6 { 8..40 } else { 12..20 };
    let len = (packet.len() - ip) as u16;
    let sum = pseudo(&packet[addresses], protocol, len).folded();
    packet[ip + offset..ip + offset + 2].copy_from_slice(&sum);
    let header = Header {
        needs_checksum: true,
        segments,
        head: 0,
        segment_size: size as u16,
        checksum_start: ip as u16,
        checksum_offset: offset as u16,
    };
    (header, packet)
}

fn plain(sequence: u32) -> Spec {
    Spec {
        is_v6: false,
        is_udp: false,
        port: 2,
        sequence,
        acknowledged: 9,
        odd_flags: 0,
        window: 1024,
        is_unchecked: false,
        push: false,
        timestamp: None,
        tos: 0,
        id: sequence as u16 / 100,
        dont_fragment: false,
        has_option: false,
        is_spoilt: false,
        payload: vec![5; 100],
    }
}

#[test]
fn segments_of_a_download_are_joined() {
    let batch: Vec<_> = (0..40).map(|index| plain(index * 100).build()).collect();

    let runs = runs(&batch, ALL);

    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].packets, (0..40).collect::<Vec<_>>());
}

#[test]
fn interleaved_flows_are_joined_each() {
    let flow = |port| {
        (0..10).map(move |index| Spec {
            port,
            ..plain(index * 100)
        })
    };
    let both = flow(2).zip(flow(3)).flat_map(|(a, b)| [a, b]);
    let batch: Vec<_> = both.map(|spec| spec.build()).collect();

    assert_eq!(runs(&batch, ALL).len(), 2);
}

#[test]
fn packet_with_a_wrong_checksum_goes_alone() {
    let spoilt = Spec {
        is_spoilt: true,
        ..plain(100)
    };
    let batch = [plain(0), spoilt, plain(200)].map(|spec| spec.build());

    assert!(runs(&batch, ALL).iter().all(|run| run.packets.len() == 1));
}

#[test]
fn device_that_takes_none_gets_none() {
    let batch: Vec<_> = (0..4).map(|index| plain(index * 100).build()).collect();
    let none = Kinds {
        tcp: false,
        udp: false,
    };

    assert_eq!(runs(&batch, none).len(), 4);
}

#[test]
fn checksum_that_is_left_to_us_is_filled_in() {
    let whole = plain(0).build();
    let (header, packet) = as_the_kernel_gives_it(&plain(0), 1);
    let header = Header {
        segments: Segments::None,
        ..header
    };

    assert_eq!(cut(header, packet), [whole]);
}

/// `spec` with a payload whose checksum is 0, as it is computed.
fn with_checksum_zero(mut spec: Spec) -> Spec {
    spec.payload[..2].fill(0);
    let packet = spec.build();
    let at = head(&packet) + if spec.is_udp { 6 } else { 16 };
    // It is what is missing to 0 here.
    spec.payload[..2].copy_from_slice(&packet[at..at + 2]);
    spec
}

#[test]
fn checksum_of_zero_is_told_from_none() {
    for is_v6 in [false, true] {
        for is_udp in [false, true] {
            let spec = |sequence: u32| {
                with_checksum_zero(Spec {
                    is_v6,
                    is_udp,
                    ..plain(sequence)
                })
            };
            let batch: Vec<_> = (0..3).map(|index| spec(index * 100).build()).collect();
            let at = head(&batch[0]) + if is_udp { 6 } else { 16 };
            let expected = if is_udp { [0xff; 2] } else { [0; 2] };
            assert!(batch.iter().all(|packet| packet[at..at + 2] == expected));

            assert_eq!(runs(&batch, ALL).len(), 1);
            assert_eq!(through_the_kernel(&batch), batch);
        }
    }
}
