//! What the parsing demos decide, without a kernel: their bytecode, interpreted.
//!
//! Packets in, verdicts and records out; no privileges. Cut-off packets are the point: a parser has to
//! stop where the packet does. The interpreter stops a program that reads beyond it, so "no error" is
//! part of each claim. With `LOCKNE_LCOV=FILE` the lines of the kernel code that the cases came to are
//! written there, in the format of lcov.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall panic")]

use std::{env, fs, net::Ipv4Addr, sync::Mutex};

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use demos_ebpf::{
    cgroup_skb::{EGRESS, INGRESS},
    packet_monitor::Packet as Seen,
    ping_monitor::Ping,
    xdp_filter::{DROPPED, PASSED, Rule},
};
use etherparse::PacketBuilder;
use lockne_interpreter::{
    Object, Packet, World,
    context::{self, Context},
    coverage::Coverage,
};

const NEAR: [u8; 4] = [192, 0, 2, 1];
const FAR: [u8; 4] = [192, 0, 2, 2];
const NEAR6: [u8; 16] = [0xfd; 16];
const FAR6: [u8; 16] = [0xfc; 16];
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// `TC_ACT_UNSPEC`: the next program decides.
const GO_ON: u32 = u32::MAX;
/// `TC_ACT_SHOT`.
const DROP: u32 = 2;

static COVERAGE: Mutex<Option<Coverage>> = Mutex::new(None);

/// Runs `program` of the object on `frame`, in a world that `prepare` sets up.
fn run<C: Context>(
    object: &Object,
    program: &str,
    frame: &[u8],
    context: fn(&Packet) -> C,
    prepare: impl Fn(&mut World),
) -> (u32, World) {
    let program = object.program(program).unwrap();
    let fresh = || {
        let packet = Packet::new(frame)?;
        let mut world = object.world();
        prepare(&mut world);
        Ok((world, context(&packet), packet))
    };
    let (mut world, mut context, mut packet) = fresh().unwrap();
    let verdict = program.run(&mut world, &mut context, &mut packet).unwrap();
    if let Some(path) = env::var_os("LOCKNE_LCOV") {
        let mut coverage = COVERAGE.lock().unwrap();
        let coverage = coverage.get_or_insert_default();
        coverage.add(&program, fresh).unwrap();
        fs::write(path, coverage.lcov("lockne").to_string()).unwrap();
    }
    (verdict, world)
}

/// A ping on Ethernet.
fn ping4(from: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC, MAC)
        .ipv4(from, NEAR, 64)
        .icmpv4_echo_request(7, 1)
        .write(&mut frame, &[0; 8])
        .unwrap();
    frame
}

fn ping6(from: [u8; 16]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC, MAC)
        .ipv6(from, NEAR6, 64)
        .icmpv6_echo_request(7, 1)
        .write(&mut frame, &[0; 8])
        .unwrap();
    frame
}

fn udp4(from: [u8; 4], to_port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC, MAC)
        .ipv4(from, NEAR, 64)
        .udp(4000, to_port)
        .write(&mut frame, b"hello")
        .unwrap();
    frame
}

fn tcp6(from: [u8; 16], to_port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC, MAC)
        .ipv6(from, NEAR6, 64)
        .tcp(4000, to_port, 1, 1000)
        .write(&mut frame, b"hello")
        .unwrap();
    frame
}

fn mapped(v4: [u8; 4]) -> [u8; 16] {
    Ipv4Addr::from(v4).to_ipv6_mapped().octets()
}

/// The verdict of the ping monitor that drops `drop_from`, and what it reported.
fn ping_monitor(frame: &[u8], drop_from: [u8; 16]) -> (u32, Option<Ping>) {
    let bytes = demos::object!("03-ping-monitor");
    let object = Object::parse_with(bytes, &[("DROP_FROM", &drop_from)], &[]).unwrap();
    let (verdict, world) = run(&object, "watch_pings", frame, context::skb, |_| {});
    assert!(world.records.len() <= 1);
    let ping = world.records.first().map(|record| {
        assert_eq!(record.len(), size_of::<Ping>());
        // SAFETY: a record is a `Ping`, and those take any bits.
        unsafe { record.as_ptr().cast::<Ping>().read_unaligned() }
    });
    (verdict, ping)
}

/// The verdict of the filter with `rules`, and how many it has passed and dropped.
fn xdp_filter(frame: &[u8], rules: &[Rule]) -> (u32, u64, u64) {
    let object = Object::parse(demos::object!("04-xdp-filter")).unwrap();
    let (verdict, mut world) = run(&object, "filter", frame, context::xdp, |world| {
        for rule in rules {
            let [high, low] = rule.port.to_ne_bytes();
            let key = [&rule.source[..], &[high, low]].concat();
            assert!(world.map("RULES").set(&key, &0_u64.to_ne_bytes()));
        }
    });
    let mut count = |index: u32| {
        let value = world.map("COUNTERS").get(&index.to_ne_bytes()).unwrap();
        u64::from_ne_bytes(value.try_into().unwrap())
    };
    (verdict, count(PASSED), count(DROPPED))
}

#[test]
fn ping_is_reported_and_goes_on() {
    let report = |source, destination| Ping {
        source,
        destination,
        id: 7,
        sequence: 1,
        dropped: 0,
    };
    let v4 = ping_monitor(&ping4(FAR), [0; 16]);
    let v6 = ping_monitor(&ping6(FAR6), [0; 16]);

    assert_eq!(v4, (GO_ON, Some(report(mapped(FAR), mapped(NEAR)))));
    assert_eq!(v6, (GO_ON, Some(report(FAR6, NEAR6))));
}

#[test]
fn pings_of_one_sender_are_dropped_and_reported() {
    let (verdict, ping) = ping_monitor(&ping4(FAR), mapped(FAR));
    assert_eq!((verdict, ping.unwrap().dropped), (DROP, 1));

    let (verdict, ping) = ping_monitor(&ping4(NEAR), mapped(FAR));
    assert_eq!((verdict, ping.unwrap().dropped), (GO_ON, 0));
}

#[test]
fn what_is_no_ping_goes_on_unreported() {
    let mut reply = ping4(FAR);
    reply[14 + 20] = 0;
    let mut later_fragment = ping4(FAR);
    later_fragment[14 + 7] = 1;
    let mut arp = ping4(FAR);
    arp[12..14].copy_from_slice(&[0x08, 0x06]);

    for frame in [udp4(FAR, 53), tcp6(FAR6, 53), reply, later_fragment, arp] {
        assert_eq!(ping_monitor(&frame, mapped(FAR)), (GO_ON, None));
    }
}

#[test]
fn ip_options_before_the_ping_are_stepped_over() {
    let mut frame = ping4(FAR);
    frame[14] = 0x46;
    frame.splice(14 + 20..14 + 20, [1; 4]);

    let (_, ping) = ping_monitor(&frame, [0; 16]);

    assert_eq!(ping.map(|ping| (ping.id, ping.sequence)), Some((7, 1)));
}

#[test]
fn ping_monitor_never_reads_beyond_a_packet_wherever_it_is_cut() {
    for whole in [ping4(FAR), ping6(FAR6)] {
        let header = whole.len() - 8;
        for len in 0..header {
            assert_eq!(ping_monitor(&whole[..len], mapped(FAR)), (GO_ON, None));
        }
        assert!(ping_monitor(&whole[..header], [0; 16]).1.is_some());
    }
}

#[test]
fn filter_without_rules_passes_and_counts_everything() {
    for frame in [udp4(FAR, 53), tcp6(FAR6, 443), ping4(FAR), vec![0; 60]] {
        assert_eq!(xdp_filter(&frame, &[]), (XDP_PASS, 1, 0));
    }
}

#[test]
fn rule_names_a_sender_a_port_or_both() {
    let sender = mapped(FAR);
    let rule = |source, port| [Rule { source, port }];
    let drops = |frame: &[u8], rules: &[Rule]| {
        let (verdict, _, dropped) = xdp_filter(frame, rules);
        assert_eq!(verdict == XDP_DROP, dropped == 1);
        verdict == XDP_DROP
    };

    assert!(drops(&udp4(FAR, 53), &rule(sender, 0)));
    assert!(drops(&ping4(FAR), &rule(sender, 0)));
    assert!(drops(&udp4(FAR, 53), &rule(sender, 53)));
    assert!(drops(&udp4(FAR, 53), &rule([0; 16], 53)));
    assert!(drops(&tcp6(FAR6, 443), &rule(FAR6, 443)));

    assert!(!drops(&udp4(NEAR, 53), &rule(sender, 0)));
    assert!(!drops(&udp4(FAR, 54), &rule(sender, 53)));
    assert!(!drops(&udp4(FAR, 54), &rule([0; 16], 53)));
    // No ports, so no rule about ports.
    assert!(!drops(&ping4(FAR), &rule([0; 16], 53)));
}

#[test]
fn filter_never_reads_beyond_a_packet_wherever_it_is_cut() {
    let rules = [Rule {
        source: mapped(FAR),
        port: 53,
    }];
    let whole = udp4(FAR, 53);
    let ports = 14 + 20 + 4;
    for len in 0..ports {
        assert_eq!(xdp_filter(&whole[..len], &rules).0, XDP_PASS);
    }
    assert_eq!(xdp_filter(&whole[..ports], &rules).0, XDP_DROP);
}

/// What the packet monitor says of a frame.
fn packet_monitor(frame: &[u8]) -> Seen {
    let object = Object::parse(demos::object!("01-packet-monitor")).unwrap();
    let (verdict, world) = run(&object, "monitor", frame, context::skb, |_| {});
    assert_eq!((verdict, world.records.len()), (GO_ON, 1));
    // SAFETY: a record is a `Seen`, and those take any bits.
    unsafe { world.records[0].as_ptr().cast::<Seen>().read_unaligned() }
}

#[test]
fn monitor_tells_of_each_packet_as_much_as_is_there() {
    let whole = tcp6(FAR6, 443);
    let ports = 14 + 40 + 4;
    for len in 0..=whole.len() {
        let seen = packet_monitor(&whole[..len]);

        assert_eq!(seen.len as usize, len);
        assert_eq!(seen.destination_port, if len < ports { 0 } else { 443 });
        let is_ip = len >= 14 + 40;
        assert_eq!(seen.source, if is_ip { FAR6 } else { [0; 16] });
    }
    let seen = packet_monitor(&udp4(FAR, 53));
    assert_eq!((seen.source, seen.destination), (mapped(FAR), mapped(NEAR)));
    assert_eq!((seen.protocol, seen.source_port), (17, 4000));
}

/// How many bytes the twin of the classic filter lets a socket have.
fn socket_filter(frame: &[u8], port: u16) -> u32 {
    let bytes = demos::object!("07-socket-filter");
    let object = Object::parse_with(bytes, &[("PORT", &port.to_ne_bytes())], &[]).unwrap();
    run(&object, "twin", frame, context::skb, |_| {}).0
}

#[test]
fn socket_gets_udp_for_its_port_and_nothing_else() {
    const ALL: u32 = 0xffff;
    let mut later_fragment = udp4(FAR, 53);
    later_fragment[14 + 7] = 1;
    let mut with_options = udp4(FAR, 53);
    with_options[14] = 0x46;
    with_options.splice(14 + 20..14 + 20, [1; 4]);

    assert_eq!(socket_filter(&udp4(FAR, 53), 53), ALL);
    assert_eq!(socket_filter(&with_options, 53), ALL);
    for frame in [udp4(FAR, 54), tcp6(FAR6, 53), ping4(FAR), later_fragment] {
        assert_eq!(socket_filter(&frame, 53), 0);
    }
    let whole = udp4(FAR, 53);
    for len in 0..14 + 20 + 4 {
        assert_eq!(socket_filter(&whole[..len], 53), 0);
    }
}

/// Whether the cgroup's `program` lets a packet pass, which has no Ethernet header there.
fn cgroup(program: &str, frame: &[u8], refused: &[(u32, [u8; 16])]) -> bool {
    let object = Object::parse(demos::object!("09-cgroup-skb")).unwrap();
    let (verdict, mut world) = run(&object, program, &frame[14..], context::skb, |world| {
        for (length, network) in refused {
            let key = [&length.to_ne_bytes()[..], network].concat();
            assert!(world.map("REFUSED").set(&key, &[1]));
        }
    });
    let index = if program == "leave" { EGRESS } else { INGRESS };
    let value = world.map("TRAFFIC").get(&index.to_ne_bytes()).unwrap();
    let numbers = value.chunks(8);
    let numbers: Vec<_> = numbers
        .map(|number| u64::from_ne_bytes(number.try_into().unwrap()))
        .collect();
    let len = (frame.len() - 14) as u64;
    let counted = if verdict == 1 { [1, len, 0] } else { [0, 0, 1] };
    assert_eq!(numbers, counted);
    verdict == 1
}

#[test]
fn cgroup_refuses_networks_by_whom_it_talks_to() {
    let to_near = [(120, mapped(NEAR))];
    let near = [(128, NEAR6)];

    // What leaves is judged by where it goes, what arrives by whence it comes.
    assert!(!cgroup("leave", &udp4(FAR, 53), &to_near));
    assert!(!cgroup("arrive", &udp4(FAR, 53), &to_near));
    assert!(!cgroup("leave", &tcp6(FAR6, 53), &near));
    assert!(cgroup("arrive", &tcp6(FAR6, 53), &near));
    assert!(cgroup("leave", &tcp6(FAR6, 53), &to_near));
    assert!(cgroup("leave", &ping4(FAR), &[]));
}
