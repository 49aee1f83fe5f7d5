//! The program that `lockne run` becomes finds everything as if lockne had not been there.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Command, Stdio},
};

use lockne_core::api::{DaemonStatus, Status};
use lockne_lab::program;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::{place::Place, tests};

tests! { ROOTED:
    exit_code_is_the_programs_own,
    death_by_a_signal_is_the_programs_own,
    program_that_only_looks_like_one_has_the_codes_of_env,
    failure_of_lockne_has_code_125,
    program_finds_everything_as_it_was,
    script_is_called_what_was_typed,
    ctrl_c_reaches_the_program_and_not_the_daemon,
    slow_resolver_keeps_nobody_else_waiting,
}

fn exit_code_is_the_programs_own() {
    let place = Place::new();
    for code in [0, 1, 2, 7, 125, 255] {
        let output = place.run(&["run", "--block", "sh", "-c", &format!("exit {code}")]);

        assert_eq!(output.status.code(), Some(code));
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

fn death_by_a_signal_is_the_programs_own() {
    let output = Place::new().run(&["run", "--block", "sh", "-c", "kill -TERM $$"]);

    assert_eq!(output.status.signal(), Some(15));
}

fn program_that_only_looks_like_one_has_the_codes_of_env() {
    let place = Place::new();
    program::write(&place.path().join("script"), b"#!/no/such/interpreter\n").unwrap();

    let ours = place.run(&["run", "--block", "--", "./script"]);
    let theirs = place.command("env").arg("./script").output().unwrap();

    assert_eq!(ours.status.code(), theirs.status.code(), "{ours:?}");
    let text = String::from_utf8(ours.stderr).unwrap();
    assert!(text.contains("interpreter"), "{text}");
}

fn failure_of_lockne_has_code_125() {
    let place = Place::new();

    let output = place.run(&["run", "--via", "nothing", "true"]);

    assert_eq!(output.status.code(), Some(125), "{output:?}");
}

/// Prints what a process inherits, in a form that can be compared.
const INVENTORY: &str = r#"
echo "$0" "$@"
grep -E '^(Sig(Ign|Blk|Cgt)|Umask|Uid|Gid|Groups|Cap|Seccomp|NoNewPrivs)' /proc/self/status
cat /proc/$$/limits /proc/$$/cgroup /proc/$$/oom_score_adj /proc/$$/coredump_filter
cut -d ' ' -f 6-8 /proc/$$/stat
for fd in /proc/$$/fd/*; do echo "${fd##*/}"; done
pwd
env | sort
readlink /proc/$$/ns/*
cat
"#;

fn program_finds_everything_as_it_was() {
    let place = Place::new();
    let _daemon = place.daemon();
    for signals in [
        &["--ignore-signal=PIPE,USR1", "--block-signal=USR2,INT"][..],
        &["--default-signal"],
    ] {
        let inventory = |prefix: &[&str]| {
            let mut child = place
                .command("env")
                .args(signals)
                .args(prefix)
                .args(["sh", "-c", INVENTORY, "name", "an argument", ""])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(b"what stdin has")
                .unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(
                output.status.success() && output.stderr.is_empty(),
                "{output:?}"
            );
            String::from_utf8(output.stdout).unwrap()
        };

        let without = inventory(&[]);
        let with = inventory(&[env!("CARGO_BIN_EXE_lockne"), "run", "--block", "--"]);

        assert!(
            without.contains("SigIgn") && without.ends_with("what stdin has"),
            "{without}"
        );
        pretty(&without, &with);
    }
}

/// Fails with the lines that differ.
fn pretty(without: &str, with: &str) {
    let missing: Vec<_> = without
        .lines()
        .filter(|line| !with.lines().any(|it| it == *line))
        .collect();
    let added: Vec<_> = with
        .lines()
        .filter(|line| !without.lines().any(|it| it == *line))
        .collect();
    assert_eq!(
        without, with,
        "without lockne {missing:#?}, with it {added:#?}"
    );
}

fn script_is_called_what_was_typed() {
    let place = Place::new();
    program::write(&place.path().join("script"), b"#!/bin/sh\necho \"$0\"\n").unwrap();

    assert_eq!(place.must(&["run", "--block", "./script"]), "./script\n");
}

fn daemon_pid(place: &Place) -> u32 {
    let status: Option<Status> = serde_json::from_str(&place.must(&["status", "--json"])).unwrap();
    match status.map(|status| status.daemon) {
        Some(DaemonStatus::Running { pid, .. }) => pid,
        other => panic!("no daemon runs: {other:?}"),
    }
}

fn ctrl_c_reaches_the_program_and_not_the_daemon() {
    let place = Place::new();
    // The daemon is started by this one, in its process group, as on a terminal.
    let script = "trap 'exit 42' INT; echo ready; while :; do read line; done";
    // What a shell starts in the background ignores the signal.
    let interruptible = ["env", "--default-signal=INT", "sh", "-c", script];
    let mut program = place
        .lockne(&["run", "--block"])
        .args(interruptible)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(program.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let mut other = place
        .lockne(&["run", "--block", "cat"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    crate::place::wait_until("the other runs", || {
        place.must(&["status", "--json"]).contains("\"cat\"")
    });
    let daemon = daemon_pid(&place);

    let group = Pid::from_raw(program.id().try_into().unwrap()).unwrap();
    kill_process_group(group, Signal::INT).unwrap();

    assert_eq!(program.wait().unwrap().code(), Some(42));
    assert_eq!(daemon_pid(&place), daemon);
    drop(other.stdin.take());
    assert!(other.wait().unwrap().success());
}

/// Makes a resolver that never answers that of a command, by a mount of its own.
fn with_silent_resolver(place: &Place, shell: &str) -> Command {
    place.write("resolv.conf", "nameserver 127.0.0.53\n");
    let mut command = place.command("unshare");
    let script = format!("mount --bind resolv.conf /etc/resolv.conf && {shell}");
    command.args(["--mount", "sh", "-c", &script]);
    command
}

fn slow_resolver_keeps_nobody_else_waiting() {
    let place = Place::new();
    // Takes what is asked and says nothing.
    let _resolver = place.silent_socket("127.0.0.53:53");
    let conf = crate::place::conf().replace("127.0.0.1:9", "vpn.example.org:51820");
    place.write("slow.conf", &conf);
    let lockne = env!("CARGO_BIN_EXE_lockne");
    let mut daemon = with_silent_resolver(&place, &format!("exec {lockne} daemon"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    crate::place::wait_until("the daemon serves", || {
        place.must(&["status", "--json"]).trim() != "null"
    });

    let mut up = place
        .lockne(&["tunnel", "up", "slow.conf"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It says what it waits for, after a second.
    let mut line = String::new();
    let mut stderr = BufReader::new(up.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    if line != "note: bringing tunnel `slow` up\n" {
        std::io::Read::read_to_string(&mut stderr, &mut line).unwrap();
        panic!("{line}");
    }
    assert!(up.try_wait().unwrap().is_none());
    let started = std::time::Instant::now();
    place.must(&["run", "--block", "true"]);
    assert!(started.elapsed().as_secs() < 2, "{:?}", started.elapsed());

    // Ctrl-C is the end of it.
    up.kill().unwrap();
    up.wait().unwrap();
    assert_eq!(place.must(&["tunnel", "list", "--json"]).trim(), "[]");
    place.must(&["down"]);
    daemon.wait().unwrap();
}
