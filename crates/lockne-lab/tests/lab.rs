//! The small internet itself does what tests and the demo take for granted.
//!
//! Needs root; without it, each test counts as ignored.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test, which clippy does not see without the usual harness"
)]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use libtest_mimic::{Arguments, Trial};
use lockne_lab::{
    Internet, Namespace,
    device::Device,
    internet::{
        HOME_V4, HOME_V6, LAN_V4, LAN_V6, ORIGIN_V4, ORIGIN_V6, PLAIN_V4, PLAIN_V6,
        ReversePathFilter, SECOND_V4,
    },
    origin::{ADDRESS_PORT, HTTP_PORT, Service},
    packet::{Content, Direction, Packet, Transport},
    probe::{self, Action, Actor, Form, Options, Outcome, Probe, SocketFrom},
};

/// Makes this program build a lab, say so and wait, for the test that kills it.
const BUILD_AND_WAIT: &str = "__build-and-wait";

/// How long to wait for what does not come.
const SHORT: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    if let Some(code) = probe::run_if_asked() {
        return code;
    }
    if std::env::args().nth(1).as_deref() == Some(BUILD_AND_WAIT) {
        return build_and_wait();
    }

    let missing = Namespace::create("trial").err();
    if let Some(error) = &missing {
        eprintln!("the lab's tests are ignored: {}", with_causes(error));
    }
    let trial = |name: &str, test: fn()| {
        let run = move || {
            test();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    };
    let trials = TESTS.iter().map(|(name, test)| trial(name, *test));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        const TESTS: &[(&str, fn())] = &[$((stringify!($name), $name as fn())),*];
    };
}

tests! {
    every_probe_arrives_with_the_address_of_home,
    mapped_form_arrives_as_ipv4,
    neighbour_on_the_lan_answers,
    child_orphan_and_thread_arrive_too,
    socket_made_before_go_works_after_it,
    socket_of_another_process_works_in_the_probe,
    refusal_has_its_call_and_name,
    bound_device_takes_another_uplink,
    packet_info_and_unicast_device_take_another_uplink,
    mark_options_reach_the_kernel,
    sniffer_counts_each_datagram_once,
    leaks_are_what_is_not_of_the_tunnel,
    sniffer_sees_what_a_cut_link_still_sends,
    cut_link_is_silent_and_whole_again_after_it,
    unplugged_link_settles_and_is_whole_again_after_it,
    download_notices_the_cut,
    plain_tunnel_comes_out_at_the_provider,
    strict_filter_drops_what_comes_back_by_the_tunnel,
    wireguard_comes_out_at_each_provider,
    killed_or_cut_provider_is_silence_and_no_leak,
    devices_can_be_renamed_and_deleted,
    sniffer_outlives_its_device,
    service_that_cannot_start_says_why,
    several_labs_live_side_by_side,
    dropped_lab_leaves_nothing_behind,
    killed_lab_leaves_nothing_behind,
}

fn every_probe_arrives_with_the_address_of_home() {
    let lab = lab();
    let stream = [(Action::Tcp, Service::Tcp), (Action::Mptcp, Service::Tcp)];
    let datagram = [
        (Action::UdpConnected, Service::Udp),
        (Action::UdpUnconnected, Service::Udp),
    ];
    let ping = [
        (Action::Ping, Service::Ping),
        (Action::RawPing, Service::Ping),
    ];

    for (action, service) in stream.into_iter().chain(datagram).chain(ping) {
        for (to, home) in [(v4(), IpAddr::from(HOME_V4)), (v6(), IpAddr::from(HOME_V6))] {
            lab.origin.clear();

            let report = Probe::new(action, to).run(&lab.home).unwrap();

            let Outcome::Answered { saw } = report.outcome else {
                panic!("{action:?} to {to}: {report:?}");
            };
            assert_eq!(
                saw.map(|saw| saw.ip()),
                (service != Service::Ping).then_some(home)
            );
            assert_eq!(lab.origin.times(service, home), 1, "{action:?} to {to}");
            assert_eq!(lab.origin.seen().len(), 1, "{action:?} to {to}");
        }
    }
}

fn mapped_form_arrives_as_ipv4() {
    let lab = lab();
    let mapped = Options {
        form: Form::V4Mapped,
        ..Options::default()
    };

    for action in [Action::Tcp, Action::UdpConnected, Action::UdpUnconnected] {
        let probe = Probe::new(action, v4()).with(mapped.clone());
        let report = probe.run(&lab.home).unwrap();

        assert_eq!(saw(&report.outcome), HOME_V4, "{action:?}");
        assert!(report.local.unwrap().is_ipv6(), "{report:?}");
    }
}

fn neighbour_on_the_lan_answers() {
    let lab = lab();

    for (neighbour, home) in [
        (IpAddr::from(LAN_V4), IpAddr::from(HOME_V4)),
        (IpAddr::from(LAN_V6), IpAddr::from(HOME_V6)),
    ] {
        for action in [Action::Tcp, Action::UdpConnected] {
            let probe = Probe::new(action, (neighbour, ADDRESS_PORT));
            let report = probe.run(&lab.home).unwrap();

            assert_eq!(saw(&report.outcome), home, "{action:?} to {neighbour}");
        }
    }
}

fn child_orphan_and_thread_arrive_too() {
    let lab = lab();

    let mut pids = BTreeSet::new();
    for actor in [Actor::Itself, Actor::Thread, Actor::Child, Actor::Orphan] {
        let probe = Probe::new(Action::UdpUnconnected, v4()).by(actor);
        let running = probe.start(&lab.home).unwrap();
        let started = running.pid();
        let report = running.finish().unwrap();

        assert_eq!(saw(&report.outcome), HOME_V4, "{actor:?}");
        let is_itself = matches!(actor, Actor::Itself | Actor::Thread);
        assert_eq!(report.pid == started, is_itself, "{actor:?}");
        pids.insert(report.pid);
    }
    assert_eq!(pids.len(), 4);
}

fn socket_made_before_go_works_after_it() {
    let lab = lab();

    for action in [Action::Tcp, Action::UdpConnected, Action::UdpUnconnected] {
        for from in [SocketFrom::BeforeGo, SocketFrom::ConnectedBeforeGo] {
            lab.origin.clear();
            let probe = Probe::new(action, v6()).on(from);

            let mut running = probe.start(&lab.home).unwrap();
            running.wait_until_ready().unwrap();
            let udp = lab.origin.times(Service::Udp, HOME_V6);
            assert_eq!(udp, 0, "{action:?} acts only after go");
            running.go().unwrap();

            let report = running.finish().unwrap();
            assert_eq!(saw(&report.outcome), HOME_V6, "{action:?} {from:?}");
        }
    }
}

fn socket_of_another_process_works_in_the_probe() {
    let lab = lab();
    let socket = lab
        .home
        .run(|| UdpSocket::bind((HOME_V4, 4567)).unwrap())
        .unwrap();
    let probe = Probe::new(Action::UdpUnconnected, v4()).on(SocketFrom::Received);

    let mut running = probe.start(&lab.home).unwrap();
    running.wait_until_ready().unwrap();
    running.hand_over(&socket).unwrap();

    let report = running.finish().unwrap();
    let seen = SocketAddr::from((HOME_V4, 4567));
    assert_eq!(report.outcome, Outcome::Answered { saw: Some(seen) });
}

fn refusal_has_its_call_and_name() {
    let lab = lab();
    let refused = |probe: Probe| probe.run(&lab.home).unwrap().outcome;
    let refusal = |call: &str, errno: &str| Outcome::Refused {
        call: call.to_owned(),
        errno: errno.to_owned(),
    };

    let closed = refused(Probe::new(Action::Tcp, (ORIGIN_V4, 9)));
    let unreachable: SocketAddr = "[fd00:dead::1]:9".parse().unwrap();
    lab.home_link.near().down().unwrap();
    let no_route = refused(Probe::new(Action::UdpUnconnected, unreachable));

    assert_eq!(closed, refusal("connect", "ECONNREFUSED"));
    assert_eq!(no_route, refusal("sendmsg", "ENETUNREACH"));
}

fn bound_device_takes_another_uplink() {
    let lab = lab();
    let second = lab.add_second_uplink().unwrap();
    let (on_first, on_second) = (lab.home_link.sniffer().unwrap(), second.sniffer().unwrap());
    let bound = Options {
        bind_device: Some("eth1".to_owned()),
        ..Options::default()
    };

    for action in [
        Action::Tcp,
        Action::UdpUnconnected,
        Action::Ping,
        Action::RawPing,
    ] {
        let report = Probe::new(action, v4()).with(bound.clone()).run(&lab.home);

        let outcome = report.unwrap().outcome;
        assert!(
            matches!(outcome, Outcome::Answered { .. }),
            "{action:?}: {outcome:?}"
        );
    }

    assert_eq!(lab.origin.times(Service::Tcp, SECOND_V4), 1);
    assert_eq!(lab.origin.times(Service::Udp, SECOND_V4), 1);
    assert_eq!(lab.origin.times(Service::Ping, SECOND_V4), 2);
    on_first.settle().unwrap();
    on_second.settle().unwrap();
    assert_eq!(lab.leaks(&on_first), [], "nothing took the first");
    assert!(on_second.count(is_udp_to_origin) == 1);
}

fn packet_info_and_unicast_device_take_another_uplink() {
    let lab = lab();
    let second = lab.add_second_uplink().unwrap();
    let packet = Options {
        packet_device: Some("eth1".to_owned()),
        ..Options::default()
    };
    let unicast = Options {
        unicast_device: Some("eth1".to_owned()),
        ..Options::default()
    };
    let mapped = |options: &Options| Options {
        form: Form::V4Mapped,
        ..options.clone()
    };

    for options in [mapped(&packet), mapped(&unicast), packet, unicast] {
        let sniffer = second.sniffer().unwrap();
        let probe = Probe::new(Action::UdpUnconnected, v4()).with(options.clone());
        let report = probe.run(&lab.home).unwrap();

        sniffer.settle().unwrap();
        assert_eq!(saw(&report.outcome), SECOND_V4, "{options:?}");
        assert_eq!(sniffer.count(is_udp_to_origin), 1, "{options:?}");
    }
}

fn mark_options_reach_the_kernel() {
    let lab = lab();
    // A mark shows on the wire only by what the kernel reflects, so the syscall's success must do.
    let options = Options {
        mark: Some(7),
        packet_mark: Some(9),
        source: Some(HOME_V6.into()),
        ..Options::default()
    };

    for action in [Action::UdpConnected, Action::UdpUnconnected] {
        let probe = Probe::new(action, v6()).with(options.clone());
        let report = probe.run(&lab.home).unwrap();

        assert_eq!(saw(&report.outcome), HOME_V6, "{action:?}");
    }
}

fn sniffer_counts_each_datagram_once() {
    const DATAGRAMS: u32 = 300;
    let lab = lab();
    let sniffer = lab.home_link.sniffer().unwrap();

    for to in [v4(), v6()] {
        let report = Probe::new(Action::Forks(DATAGRAMS), to).run(&lab.home);

        let all = Outcome::Sent {
            sent: DATAGRAMS,
            refused: 0,
        };
        assert_eq!(report.unwrap().outcome, all);
        sniffer.settle().unwrap();
        assert_eq!(sniffer.count(is_udp_to_origin), u64::from(DATAGRAMS));
        sniffer.clear();
    }
    assert_eq!(
        lab.origin.times(Service::Udp, HOME_V4),
        u64::from(DATAGRAMS)
    );
    assert_eq!(
        lab.origin.times(Service::Udp, HOME_V6),
        u64::from(DATAGRAMS)
    );
}

fn leaks_are_what_is_not_of_the_tunnel() {
    let lab = lab();
    let sniffer = lab.home_link.sniffer().unwrap();
    let to_provider = |port| {
        let mut provider = lab.provider_a.endpoints()[0];
        provider.set_port(port);
        // Nobody listens there, so that the provider refuses it by ICMP.
        let probe = Probe::new(Action::UdpConnected, provider);
        probe.run(&lab.home).unwrap();
        sniffer.settle().unwrap();
        lab.leaks(&sniffer)
    };

    assert_eq!(to_provider(51820), []);
    let leaks = to_provider(53);

    assert_eq!(leaks.len(), 2, "{leaks:?}");
    assert!(
        leaks[0].to_string().contains("198.51.100.11:53"),
        "{}",
        leaks[0]
    );
    assert!(leaks[1].to_string().contains("ICMP 3/3"), "{}", leaks[1]);
}

fn sniffer_sees_what_a_cut_link_still_sends() {
    let lab = lab();
    let warm_up = Probe::new(Action::UdpUnconnected, v4()).run(&lab.home);
    assert_eq!(saw(&warm_up.unwrap().outcome), HOME_V4);
    let sniffer = lab.home_link.sniffer().unwrap();

    lab.home_link.cut().unwrap();
    let report = Probe::new(Action::Forks(10), v4()).run(&lab.home).unwrap();

    let all = Outcome::Sent {
        sent: 10,
        refused: 0,
    };
    assert_eq!(report.outcome, all);
    sniffer.settle().unwrap();
    assert_eq!(sniffer.count(is_udp_to_origin), 10);
    assert_eq!(lab.origin.times(Service::Udp, HOME_V4), 1, "the warm-up");
}

fn cut_link_is_silent_and_whole_again_after_it() {
    let lab = lab();
    let ask = |probe: &Probe| probe.run(&lab.home).unwrap().outcome;

    // Or the first datagrams would wait at home for a link address, and come when the link is whole.
    for to in [v4(), v6()] {
        let outcome = ask(&Probe::new(Action::Tcp, to));
        assert!(matches!(outcome, Outcome::Answered { .. }));
    }

    lab.home_link.cut().unwrap();
    for action in [Action::Tcp, Action::UdpConnected, Action::Ping] {
        for to in [v4(), v6()] {
            let outcome = ask(&Probe::new(action, to).waiting(SHORT));
            assert_eq!(outcome, Outcome::Silence, "{action:?} to {to}");
        }
    }
    lab.home_link.restore().unwrap();

    for to in [v4(), v6()] {
        let outcome = ask(&Probe::new(Action::Tcp, to));
        assert!(matches!(outcome, Outcome::Answered { .. }));
    }
    assert_eq!(lab.origin.times(Service::Udp, HOME_V4), 0);
}

fn unplugged_link_settles_and_is_whole_again_after_it() {
    let lab = lab();
    let sniffer = lab.home_link.sniffer().unwrap();
    let ping = || {
        let probe = Probe::new(Action::Ping, v4());
        probe.run(&lab.home).unwrap().outcome
    };
    let answered = Outcome::Answered { saw: None };
    assert_eq!(ping(), answered);

    lab.home_link.unplug().unwrap();
    // No ping meanwhile: it would leave a question for a link address, asked again only a second later.
    assert!(!lab.home_link.near().is_running().unwrap());
    sniffer.settle().unwrap();
    assert_eq!(sniffer.count(is_ping), 1);

    lab.home_link.replug().unwrap();
    assert_eq!(ping(), answered);
    sniffer.settle().unwrap();
    assert_eq!(sniffer.count(is_ping), 2, "the sniffer watches on");
}

fn download_notices_the_cut() {
    let lab = lab();
    let probe = Probe::new(Action::Hold, (ORIGIN_V6, HTTP_PORT));
    let probe = probe.waiting(Duration::from_millis(200));
    let mut running = probe.start(&lab.home).unwrap();
    running.wait_until_ready().unwrap();

    lab.home_link.cut().unwrap();

    let Outcome::Ended { bytes, why } = running.finish().unwrap().outcome else {
        panic!("a download only ends");
    };
    assert_eq!(why, "silence");
    assert!(bytes > 0);
    assert_eq!(lab.origin.times(Service::Http, HOME_V6), 1);
}

fn plain_tunnel_comes_out_at_the_provider() {
    let lab = lab();
    let tunnel = lab
        .add_plain_tunnel("tun9", ReversePathFilter::Off)
        .unwrap();
    tunnel
        .near()
        .add_route(IpAddr::from(ORIGIN_V6).into())
        .unwrap();
    let (outside, inside) = (lab.home_link.sniffer().unwrap(), tunnel.sniffer().unwrap());
    let bound = Options {
        bind_device: Some("tun9".to_owned()),
        ..Options::default()
    };

    let udp = Probe::new(Action::UdpUnconnected, v4()).with(bound);
    let report = udp.run(&lab.home).unwrap();
    let routed = Probe::new(Action::Tcp, v6()).run(&lab.home).unwrap();

    assert_eq!(saw(&report.outcome), PLAIN_V4);
    assert_eq!(saw(&routed.outcome), PLAIN_V6);
    outside.settle().unwrap();
    inside.settle().unwrap();
    assert_eq!(lab.leaks(&outside), []);
    assert_eq!(inside.count(is_udp_to_origin), 1);
}

fn strict_filter_drops_what_comes_back_by_the_tunnel() {
    let lab = lab();
    lab.add_plain_tunnel("tun9", ReversePathFilter::Strict)
        .unwrap();
    let bound = Options {
        bind_device: Some("tun9".to_owned()),
        ..Options::default()
    };

    let probe = Probe::new(Action::UdpUnconnected, v4()).with(bound);
    let report = probe.waiting(SHORT).run(&lab.home);

    assert_eq!(report.unwrap().outcome, Outcome::Silence);
    assert_eq!(lab.origin.times(Service::Udp, PLAIN_V4), 1);
}

fn wireguard_comes_out_at_each_provider() {
    let lab = lab();
    let outside = lab.home_link.sniffer().unwrap();

    for (provider, device) in [(&lab.provider_a, "wg0"), (&lab.provider_b, "wg1")] {
        provider.start().unwrap();
        let _client = provider.connect(&lab.home, device).unwrap();
        let bound = Options {
            bind_device: Some(device.to_owned()),
            ..Options::default()
        };
        for action in [Action::Tcp, Action::UdpConnected] {
            let probe = Probe::new(action, v4()).with(bound.clone());
            let report = probe.run(&lab.home).unwrap();

            assert_eq!(saw(&report.outcome), provider.client_v4(), "{action:?}");
        }
    }
    outside.settle().unwrap();
    assert_eq!(lab.leaks(&outside), []);
    assert!(!outside.flows().is_empty(), "the tunnels' own packets");
}

fn killed_or_cut_provider_is_silence_and_no_leak() {
    let lab = lab();
    let provider = &lab.provider_a;
    provider.start().unwrap();
    let _client = provider.connect(&lab.home, "wg0").unwrap();
    let outside = lab.home_link.sniffer().unwrap();
    let probe = Probe::new(Action::UdpUnconnected, v4()).with(Options {
        bind_device: Some("wg0".to_owned()),
        ..Options::default()
    });
    let short = probe.clone().waiting(SHORT);
    let ask = |probe: &Probe| probe.run(&lab.home).unwrap().outcome;
    assert_eq!(saw(&ask(&probe)), provider.client_v4());

    provider.cut().unwrap();
    assert_eq!(ask(&short), Outcome::Silence);
    provider.restore().unwrap();
    assert_eq!(saw(&ask(&probe)), provider.client_v4());
    provider.stop_wireguard();
    assert_eq!(ask(&short), Outcome::Silence);

    outside.settle().unwrap();
    assert_eq!(lab.leaks(&outside), []);
}

fn devices_can_be_renamed_and_deleted() {
    let lab = lab();
    lab.add_plain_tunnel("tun9", ReversePathFilter::Off)
        .unwrap();
    let find = |name| Device::find(&lab.home, name).unwrap();
    let device = find("tun9").unwrap();

    device.rename("tun10").unwrap();
    assert!(find("tun9").is_none());
    assert_eq!(find("tun10").unwrap().index(), device.index());
    device.delete().unwrap();

    assert!(find("tun10").is_none());
    assert!(device.up().is_err());
}

fn sniffer_outlives_its_device() {
    let lab = lab();
    let sniffer = lab.home_link.sniffer().unwrap();
    let sent = Probe::new(Action::Forks(5), v4()).run(&lab.home).unwrap();
    assert!(matches!(sent.outcome, Outcome::Sent { sent: 5, .. }));

    lab.home_link.near().delete().unwrap();

    sniffer.settle().unwrap();
    assert_eq!(sniffer.count(is_udp_to_origin), 5);
}

fn service_that_cannot_start_says_why() {
    let lab = lab();

    let refused = lab
        .provider_a
        .start_wireguard(async |_| Err::<(), _>("no such thing"));

    let text = with_causes(&refused.unwrap_err());
    assert!(text.ends_with(": no such thing"), "{text}");
}

fn several_labs_live_side_by_side() {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let lab = lab();
                let sniffer = lab.home_link.sniffer().unwrap();
                for to in [v4(), v6()] {
                    let probe = Probe::new(Action::Forks(20), to).run(&lab.home);
                    assert!(matches!(
                        probe.unwrap().outcome,
                        Outcome::Sent { sent: 20, .. }
                    ));
                }
                sniffer.settle().unwrap();
                assert_eq!(sniffer.count(is_udp_to_origin), 40);
            });
        }
    });
}

fn dropped_lab_leaves_nothing_behind() {
    let lab = lab();
    let sniffer = lab.home_link.sniffer().unwrap();
    lab.provider_a
        .start_wireguard(async |_| Ok::<_, String>(()))
        .unwrap();
    let inodes = inodes(&lab);
    assert!(!holders(&inodes).is_empty(), "the lab itself holds them");

    drop(sniffer);
    drop(lab);

    assert_eq!(holders(&inodes), BTreeSet::new());
}

fn killed_lab_leaves_nothing_behind() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg(BUILD_AND_WAIT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let devices = || {
        let table = fs::read_to_string("/proc/self/net/dev").unwrap();
        let names = table
            .lines()
            .skip(2)
            .filter_map(|line| line.split(':').next());
        names.map(|name| name.trim().to_owned()).collect::<Vec<_>>()
    };
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    let inodes = line
        .split_ascii_whitespace()
        .map(|inode| inode.parse().unwrap())
        .collect();
    let devices_before = devices();
    assert!(!holders(&inodes).is_empty(), "the lab itself holds them");

    child.kill().unwrap();
    child.wait().unwrap();

    assert_eq!(holders(&inodes), BTreeSet::new());
    assert_eq!(devices(), devices_before);
}

fn build_and_wait() -> ExitCode {
    let lab = lab();
    let list: Vec<_> = inodes(&lab).iter().map(u64::to_string).collect();
    println!("{}", list.join(" "));
    // Ends with the test, should that fail to kill it.
    let _ = std::io::stdin().read_line(&mut String::new());
    ExitCode::SUCCESS
}

fn lab() -> Internet {
    Internet::build().unwrap_or_else(|error| panic!("{}", with_causes(&error)))
}

fn v4() -> SocketAddr {
    SocketAddr::from((ORIGIN_V4, ADDRESS_PORT))
}

fn v6() -> SocketAddr {
    SocketAddr::from((ORIGIN_V6, ADDRESS_PORT))
}

fn saw(outcome: &Outcome) -> IpAddr {
    match outcome {
        Outcome::Answered { saw: Some(saw) } => saw.ip(),
        other => panic!("no answer but {other:?}"),
    }
}

fn is_udp_to_origin(packet: &Packet) -> bool {
    matches!(
        &packet.content,
        Content::Ip(ip) if matches!(ip.transport, Transport::Udp { destination: ADDRESS_PORT, .. })
    ) && packet.direction == Direction::Received
}

fn is_ping(packet: &Packet) -> bool {
    matches!(
        &packet.content,
        Content::Ip(ip) if matches!(ip.transport, Transport::Icmp { kind: 8, .. })
    ) && packet.direction == Direction::Received
}

fn inodes(lab: &Internet) -> BTreeSet<u64> {
    let providers = [lab.provider_a.namespace(), lab.provider_b.namespace()];
    [&lab.home, &lab.internet]
        .into_iter()
        .chain(providers)
        .map(|namespace| namespace.inode().unwrap())
        .collect()
}

/// Threads and descriptors of any process that hold one of these namespaces.
fn holders(inodes: &BTreeSet<u64>) -> BTreeSet<PathBuf> {
    let is_held = |path: &PathBuf| {
        let target = fs::read_link(path).unwrap_or_default();
        let target = target.to_string_lossy();
        let inode = target
            .strip_prefix("net:[")
            .and_then(|rest| rest.strip_suffix(']'));
        inode.is_some_and(|inode| inodes.contains(&inode.parse().unwrap()))
    };
    let list = |path: PathBuf| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let threads = list("/proc".into())
        .into_iter()
        .flat_map(|process| list(process.join("task")));
    threads
        .flat_map(|thread| {
            let mut paths = list(thread.join("fd"));
            paths.push(thread.join("ns/net"));
            paths
        })
        .filter(is_held)
        .collect()
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
