//! Demo 06.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use crate::{
    run::{Demo, Ended},
    traffic::{alone, tracefs_mounts},
};

const PATH: &str = env!("CARGO_BIN_EXE_06-syscall-tracer");

crate::tests! {
    each_system_call_is_counted,
    other_processes_are_not_counted,
    its_time_ends_it_and_no_mount_is_left,
}

fn each_system_call_is_counted() {
    let ended = traced(12_345);

    assert_eq!(ended.count(" 12345 getppid"), 1, "{ended:#?}");
    // The histogram has all of them, and the few system calls around them.
    let in_bars: u64 = ended
        .out
        .iter()
        .filter(|line| line.contains('|'))
        .map(|line| {
            line.split('|')
                .next()
                .unwrap()
                .split_whitespace()
                .last()
                .unwrap()
        })
        .map(|count| count.parse::<u64>().unwrap())
        .sum();
    let sum: u64 = ended.out[0].rsplit(' ').nth(2).unwrap().parse().unwrap();
    assert_eq!(in_bars, sum, "{ended:#?}");
    assert!((12_345..12_400).contains(&sum), "{ended:#?}");
}

fn other_processes_are_not_counted() {
    let ended = traced(10);

    assert_eq!(ended.count("system calls"), 1, "{ended:#?}");
}

fn its_time_ends_it_and_no_mount_is_left() {
    let before = tracefs_mounts();

    let ended = Demo::start(&alone(), PATH, &["--duration", "300ms", "--top", "2"])
        .finish()
        .well();

    assert!(ended.count("system calls") <= 2, "{ended:#?}");
    assert_eq!(tracefs_mounts(), before);
}

/// Traces a process that makes so many system calls.
fn traced(calls: u32) -> Ended {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["syscalls", &calls.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let demo = Demo::start(&alone(), PATH, &["--pid", &child.id().to_string()]);

    child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let mut done = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut done)
        .unwrap();

    let ended = demo.interrupt().well();
    assert!(child.wait().unwrap().success());
    ended
}

/// Waits for a line, makes so many system calls, and says so.
#[expect(clippy::print_stdout, reason = "the answer")]
pub(crate) fn call(calls: &str) {
    let mut go = String::new();
    std::io::stdin().read_line(&mut go).unwrap();
    for _ in 0..calls.parse::<u32>().unwrap() {
        assert!(rustix::process::getppid().is_some());
    }
    println!("done");
}
