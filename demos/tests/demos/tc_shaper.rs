//! Demo 05.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crate::{
    run::{Demo, Ended, command},
    traffic::{FAR, FAR6, Pair, alone, assert_untouched, cgroups, socket, tool},
};
use lockne_lab::Namespace;

const PATH: &str = env!("CARGO_BIN_EXE_05-tc-shaper");

crate::tests! {
    address_is_limited_to_its_rate,
    other_addresses_are_not_limited,
    command_is_limited_and_nobody_else,
    interrupt_ends_the_command_and_its_cgroup,
    impossible_rate_is_refused,
}

fn address_is_limited_to_its_rate() {
    let pair = Pair::new();
    let _receiver = socket(&pair.far, &format!("{FAR}:9"));

    let ended = shaped(&pair, &format!("{FAR}:9"), &["--to", FAR]);

    let (before, after) = rates(&ended);
    assert!(before > 24.0, "{ended:#?}");
    assert!((7.5..8.5).contains(&after), "{ended:#?}");
    assert_untouched(&pair.near, "near0");
}

/// Tests of this need a kernel with the queueing discipline fq.
pub(crate) fn has_fq() -> bool {
    let Ok(trial) = Namespace::create("trial") else {
        return false;
    };
    let add = trial
        .command("tc")
        .args(["qdisc", "add", "dev", "lo", "root", "fq"])
        .output();
    add.is_ok_and(|output| output.status.success())
}

/// Those that need a kernel with fq.
pub(crate) const FQ_TESTS: &[(&str, fn())] = &[(
    "packets_wait_for_their_time_where_there_is_fq",
    packets_wait_for_their_time_where_there_is_fq,
)];

fn packets_wait_for_their_time_where_there_is_fq() {
    let pair = Pair::new();
    let _receiver = socket(&pair.far, &format!("{FAR}:9"));
    tool(&pair.near, "tc", "qdisc replace dev near0 root fq");

    let ended = shaped(&pair, &format!("{FAR}:9"), &["--to", FAR]);

    ended.says("near0 has the queueing discipline fq, which will hold back what is too early");
    let (before, after) = rates(&ended);
    // A packet counts when its time is written on it, which may be a second ahead.
    assert!(after < before, "{ended:#?}");
    let queue = tool(&pair.near, "tc", "-statistics qdisc show dev near0");
    assert!(queue.contains("qdisc fq"), "{queue}");
    assert!(throttled(&queue) > 0, "{queue}");
}

/// How often fq has held back a flow.
fn throttled(queue: &str) -> u64 {
    let words: Vec<_> = queue.split_whitespace().collect();
    // The first says how many flows it holds back right now.
    let at = words.iter().rposition(|word| *word == "throttled").unwrap();
    words[at + 1].parse().unwrap()
}

fn other_addresses_are_not_limited() {
    let pair = Pair::new();
    let receiver = socket(&pair.far, &format!("[{FAR6}]:9"));

    // Measures the other address, while the limit is for this one.
    let ended = shaped(&pair, &format!("[{FAR6}]:9"), &["--to", FAR]);

    assert_eq!(
        ended.out.last().unwrap(),
        "before 0.00 Mbit/s, after 0.00 Mbit/s, 0 packets dropped"
    );
    drop(receiver);
}

fn command_is_limited_and_nobody_else() {
    let pair = Pair::new();
    let _receiver = socket(&pair.far, &format!("{FAR}:9"));
    let this = std::env::current_exe().unwrap();
    let to = format!("{FAR}:9");

    let demo = Demo::start(
        &pair.near,
        PATH,
        &[
            "--iface",
            "near0",
            "--rate",
            "8mbit",
            "--before",
            "1s",
            "--duration",
            "3s",
            "--",
            this.to_str().unwrap(),
            "flood",
            &to,
        ],
    );
    let mine = format!("tc-shaper-{}", demo.pid());
    // As much again, from outside.
    let ended = flood_during(&pair, &to, demo);

    let (unlimited, limited) = rates(&ended);
    assert!(unlimited > 24.0, "{ended:#?}");
    assert!((7.5..8.5).contains(&limited), "{ended:#?}");
    assert!(cgroups(&mine).is_empty());
}

fn interrupt_ends_the_command_and_its_cgroup() {
    let alone = alone();
    let demo = Demo::start(&alone, PATH, &["--", "sleep", "1000"]);
    let mine = format!("tc-shaper-{}", demo.pid());
    assert_eq!(cgroups(&mine).len(), 1);

    let ended = demo.interrupt().well();

    assert!(cgroups(&mine).is_empty(), "{ended:#?}");
    assert_untouched(&alone, "lo");
}

fn impossible_rate_is_refused() {
    let ended = Demo::spawn(command(&alone(), PATH, &["--rate", "8mb"])).finish();

    assert!(!ended.status.success());
    ended.complains("the unit must be bit, kbit, mbit or gbit");
}

/// Floods an address through a demo that limits to 8 Mbit/s after a second, and ends after three.
fn shaped(pair: &Pair, to: &str, more: &[&str]) -> Ended {
    let mut arguments = vec![
        "--iface",
        "near0",
        "--rate",
        "8mbit",
        "--before",
        "1s",
        "--duration",
        "3s",
    ];
    arguments.extend(more);
    let demo = Demo::start(&pair.near, PATH, &arguments);
    flood_during(pair, to, demo)
}

fn flood_during(pair: &Pair, to: &str, demo: Demo) -> Ended {
    let has_ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            pair.near
                .run(|| flood(to, || !has_ended.load(Ordering::Relaxed)))
                .unwrap();
        });
        let ended = demo.finish();
        has_ended.store(true, Ordering::Relaxed);
        ended.well()
    })
}

/// Sends about 80 Mbit/s to an address, or what the machine can.
pub(crate) fn flood(to: &str, goes_on: impl Fn() -> bool) {
    let to: SocketAddr = to.parse().unwrap();
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    while goes_on() {
        for _ in 0..10 {
            // What the shaper drops is an error for the sender.
            drop(socket.send_to(&[0; 1000], to));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The two rates of the last line, in Mbit/s.
fn rates(ended: &Ended) -> (f64, f64) {
    let line = ended.out.last().unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!((words[0], words[3]), ("before", "after"), "{line}");
    (words[1].parse().unwrap(), words[4].parse().unwrap())
}
