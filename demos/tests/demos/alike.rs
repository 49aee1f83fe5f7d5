//! What all demos do alike: options, logs, and two ways to end that leave no program in the kernel.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use aya::programs::loaded_programs;

use crate::{
    run::{Demo, Ended, command},
    traffic::Pair,
};

/// Each demo, with what it cannot do without.
const DEMOS: &[(&str, &[&str])] = &[
    (env!("CARGO_BIN_EXE_01-packet-monitor"), &[]),
    (env!("CARGO_BIN_EXE_02-process-tracker"), &[]),
    (env!("CARGO_BIN_EXE_03-ping-monitor"), &[]),
    (env!("CARGO_BIN_EXE_04-xdp-filter"), &[]),
    (
        env!("CARGO_BIN_EXE_04-xdp-balancer"),
        &[
            "--service=192.0.2.1:80",
            "--backend=192.0.2.2",
            "--backend=192.0.2.3",
        ],
    ),
    (env!("CARGO_BIN_EXE_05-tc-shaper"), &[]),
    (env!("CARGO_BIN_EXE_06-syscall-tracer"), &[]),
    (env!("CARGO_BIN_EXE_07-socket-filter"), &[]),
    (env!("CARGO_BIN_EXE_08-kprobe-uprobe"), &["libc"]),
    (
        env!("CARGO_BIN_EXE_09-cgroup-skb"),
        &["--", "sleep", "1000"],
    ),
    (env!("CARGO_BIN_EXE_10-maps"), &["--packets", "4000000000"]),
    (
        env!("CARGO_BIN_EXE_11-socket-cookie"),
        &["--", "sleep", "1000"],
    ),
];

/// Those that look at a device.
const AT_A_DEVICE: [&str; 6] = [
    "01-packet-monitor",
    "03-ping-monitor",
    "04-xdp-filter",
    "04-xdp-balancer",
    "05-tc-shaper",
    "07-socket-filter",
];

crate::tests! {
    each_ends_by_its_time_and_leaves_no_program,
    each_ends_by_ctrl_c_and_leaves_no_program,
    each_that_looks_at_a_device_is_told_which_in_the_same_way,
}

fn each_ends_by_its_time_and_leaves_no_program() {
    for (path, arguments) in DEMOS {
        let ended = start(path, arguments, &["--duration", "200ms"])
            .finish()
            .well();

        assert!(
            !ended.loaded().is_empty(),
            "{path} does not log: {ended:#?}"
        );
        leaves_nothing(path, &ended);
    }
}

fn each_ends_by_ctrl_c_and_leaves_no_program() {
    for (path, arguments) in DEMOS {
        let ended = start(path, arguments, &[]).interrupt().well();

        leaves_nothing(path, &ended);
    }
}

fn each_that_looks_at_a_device_is_told_which_in_the_same_way() {
    for (path, arguments) in DEMOS {
        let (_, name) = path.rsplit_once('/').unwrap();
        // A subcommand has its own; behind `--` it would be the command's.
        let place = arguments
            .iter()
            .take_while(|argument| !argument.starts_with('-'));
        let help = Command::new(path)
            .args(place)
            .arg("--help")
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();

        assert_eq!(
            help.contains("--iface <NAME>"),
            AT_A_DEVICE.contains(&name),
            "{name}: {help}"
        );
        assert!(help.contains("--duration <TIME>"), "{name}: {help}");
    }
}

/// Starts a demo with its logs on, where it finds what it needs.
fn start(path: &str, arguments: &[&str], more: &[&str]) -> Demo {
    let pair = Pair::new();
    let (own, theirs) = match arguments.iter().position(|argument| *argument == "--") {
        Some(at) => arguments.split_at(at),
        None => (arguments, &[][..]),
    };
    let all: Vec<_> = own.iter().chain(more).chain(theirs).copied().collect();
    let mut command = command(&pair.near, path, &all);
    command.env("RUST_LOG", "demos=debug");
    Demo::spawn(command).ready()
}

/// Fails if the kernel still has a program that this demo says to have loaded.
fn leaves_nothing(path: &str, ended: &Ended) {
    let ids = ended.loaded();
    // The kernel frees them a moment later.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left: Vec<_> = loaded_programs()
            .filter_map(Result::ok)
            .map(|program| program.id())
            .filter(|id| ids.contains(id))
            .collect();
        if left.is_empty() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{path} leaves the programs {left:?}"
        );
        thread::sleep(Duration::from_millis(10));
    }
}
