//! `lockne leaktest` tells the truth: nothing where nothing leaks, and the leak where one is made.

use std::{
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    process::{Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    home::{Home, text, wait_until},
    tests,
};

tests! {
    leaktest_finds_nothing_where_the_guard_and_the_routes_hold,
    leaktest_finds_nothing_past_a_block,
    leaktest_finds_the_leak_of_a_guard_that_is_gone,
    leaktest_without_a_network_is_an_error,
    leaktest_of_no_tunnel_sends_nothing,
    leaktest_of_a_tunnel_that_is_down_says_so,
    leaktest_that_is_interrupted_leaves_nothing,
}

fn leaktest<const N: usize>(home: &Home, arguments: [&str; N]) -> Output {
    let mut command = home.lockne(["leaktest"]);
    command.args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(output)))
}

/// The ways with this verdict, each with its family.
fn with_verdict(report: &Value, verdict: &str) -> Vec<String> {
    let ways = report["ways"].as_array().unwrap().iter();
    let mine = ways.filter(|way| way["verdict"] == verdict);
    mine.map(|way| {
        format!(
            "{} {}",
            way["way"].as_str().unwrap(),
            way["family"].as_str().unwrap()
        )
    })
    .collect()
}

fn leaktest_finds_nothing_where_the_guard_and_the_routes_hold() {
    let home = Home::with_tunnels();

    let output = leaktest(&home, ["--via", "a", "--json"]);

    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let report = json(&output);
    assert_eq!(
        (&report["leaks"], &report["device"]),
        (&0.into(), &"eth0".into())
    );
    let tunnelled = with_verdict(&report, "tunnelled");
    for way in ["plain v4", "plain v6", "fork-storm v4", "io-uring v6"] {
        assert!(tunnelled.iter().any(|it| it == way), "{way}: {tunnelled:?}");
    }
    assert!(with_verdict(&report, "closed").len() > 30, "{report:#}");

    let output = leaktest(&home, ["--via", "a"]);
    assert!(text(&output).contains("no leak"), "{}", text(&output));
}

fn leaktest_finds_nothing_past_a_block() {
    let home = Home::new();
    let _daemon = home.daemon();

    let output = leaktest(&home, ["--json"]);

    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(with_verdict(&json(&output), "tunnelled"), [""; 0]);
}

fn leaktest_finds_the_leak_of_a_guard_that_is_gone() {
    let home = Home::new();
    let _link = home.add_corp0();
    let _daemon = home.daemon();
    detach(&home.state_dir().join("bpf/guard_egress"));

    let output = leaktest(&home, ["--via", "corp0", "--json"]);

    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let report = json(&output);
    let leaks = with_verdict(&report, "leak");
    assert_eq!(report["leaks"], leaks.len());
    assert!(
        leaks.iter().any(|way| way == "multicast-if v4"),
        "{leaks:?}"
    );
    // The routes hold without the guard, but for groups.
    assert!(
        !leaks.iter().any(|way| way.starts_with("plain ")),
        "{leaks:?}"
    );
}

fn leaktest_without_a_network_is_an_error() {
    let home = Home::new();
    home.ip_both("route flush dev eth0");

    let output = leaktest(&home, []);

    assert_eq!(output.status.code(), Some(125));
    assert!(
        text(&output).contains("no way to the internet"),
        "{}",
        text(&output)
    );
}

fn leaktest_of_no_tunnel_sends_nothing() {
    let home = Home::with_tunnels();

    let output = leaktest(&home, ["--via", "none", "--json"]);

    assert_eq!(output.status.code(), Some(125), "{}", text(&output));
    assert!(text(&output).contains("`none`"), "{}", text(&output));
    assert!(output.stdout.is_empty());
    home.assert_no_leak();
}

fn leaktest_of_a_tunnel_that_is_down_says_so() {
    let home = Home::with_tunnels();
    let _daemon = home.daemon();
    let mut ip = home.lab.home.command("ip");
    let output = ip
        .args(["link", "set", "dev", "a", "down"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));

    let output = leaktest(&home, ["--via", "a"]);

    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("nothing went through the tunnel"), "{said}");
}

fn leaktest_that_is_interrupted_leaves_nothing() {
    let home = Home::with_tunnels();
    let private = home.beside("private");
    std::fs::create_dir(&private).unwrap();
    let mut command = home.lockne(["leaktest", "--via", "a"]);
    command.env("TMPDIR", &private).stderr(Stdio::piped());
    let child = command.stdout(Stdio::piped()).spawn().unwrap();
    // It has made its directory, so it listens for signals.
    let is_empty = || std::fs::read_dir(&private).unwrap().next().is_none();
    wait_until("it has begun", || !is_empty());

    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();

    assert_eq!(output.status.code(), Some(125), "{}", text(&output));
    assert!(text(&output).contains("interrupted"), "{}", text(&output));
    assert!(is_empty());
}

/// Takes the program of a pinned link off its hook, as `bpftool link detach` does.
pub(crate) fn detach(pin: &Path) {
    const OBJ_GET: i64 = 7;
    const LINK_DETACH: i64 = 34;
    let path = std::ffi::CString::new(pin.to_str().unwrap()).unwrap();
    let mut attributes = [path.as_ptr() as u64, 0];
    let call = |command: i64, attributes: &mut [u64]| {
        let length = size_of_val(attributes);
        // SAFETY: the attributes are valid for their length, and so is the path in them.
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), length) }
    };
    let link = call(OBJ_GET, &mut attributes);
    assert!(
        link >= 0,
        "{}: {}",
        pin.display(),
        std::io::Error::last_os_error()
    );
    // SAFETY: the kernel has just made this descriptor for us.
    let link = unsafe { OwnedFd::from_raw_fd(link.try_into().unwrap()) };
    let mut attributes = [u64::try_from(link.as_raw_fd()).unwrap()];
    assert_eq!(call(LINK_DETACH, &mut attributes), 0);
}
