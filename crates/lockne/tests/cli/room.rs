//! `kernel.pid_max` is raised while lockne is active: ids beyond its room.

use std::{
    fs::{self, File},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use aya::maps::{Array, MapData};
use serde_json::Value;

use crate::{place::Place, tests};

tests! { ROOTED:
    lost_child_has_no_network_and_is_told_once_in_the_log_and_in_status_and_doctor,
}

/// Ids in a page of the table.
const PAGE: u32 = 64;

/// How many ids there are between the daemon's and those beyond: other programs start meanwhile.
const MARGIN: u32 = 3000;

/// Forks until two children have ids beyond, which each say what came of a socket.
const FORK: &str = r"
import os, socket, sys
beyond, lost = int(sys.argv[1]), 0
while lost < 2:
    child = os.fork()
    if child == 0:
        if os.getpid() < beyond:
            os._exit(0)
        try:
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        except OSError as error:
            os._exit(error.errno)
        os._exit(100)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        print(code)
        lost += 1
";

fn lost_child_has_no_network_and_is_told_once_in_the_log_and_in_status_and_doctor() {
    let place = Place::new();
    let beyond = small_table(&place);
    let log = place.path().join("log");
    let mut daemon = place
        .lockne(&["daemon", "--mark-bit", "8"])
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    wait("the daemon serves", || {
        place.must(&["status", "--json"]).trim() != "null"
    });

    assert!(!room(&place)["exceeded"].as_bool().unwrap());
    assert_eq!(room(&place)["ids"], beyond);
    assert!(
        place.must(&["status"]).contains("will have no network"),
        "it is told before anything is lost"
    );

    let beyond = beyond.to_string();
    let lost = place.must(&["run", "--block", "--", "python3", "-c", FORK, &beyond]);

    assert_eq!(lost, "1\n1\n", "EPERM");
    assert!(room(&place)["exceeded"].as_bool().unwrap());
    assert!(place.must(&["status"]).contains("has got a child beyond"));
    let doctor: Value = serde_json::from_str(&place.must(&["doctor", "--json"])).unwrap();
    let findings = doctor["findings"].as_array().unwrap();
    let finding = findings.iter().find(|it| it["subject"] == "process-ids");
    assert_eq!(finding.unwrap()["level"], "warning", "{doctor}");
    let said = |what: &str| {
        let log = fs::read_to_string(&log).unwrap();
        log.lines().filter(|line| line.contains(what)).count()
    };
    wait("the log says so", || said("has got a child beyond") > 0);
    assert_eq!(said("has got a child beyond"), 1, "once, not for each");
    assert_eq!(said("will have no network"), 1);
    place.must(&["down"]);
    assert!(daemon.wait().unwrap().success());
}

fn room(place: &Place) -> Value {
    let status: Value = serde_json::from_str(&place.must(&["status", "--json"])).unwrap();
    status["room"].clone()
}

/// Leaves a table as an earlier daemon would have made it when there were fewer ids; returns the first beyond.
fn small_table(place: &Place) -> u32 {
    let pid_max = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    let pid_max: u32 = pid_max.trim().parse().unwrap();
    let room = loop {
        // Ids go up, and begin anew at the end.
        let mut next = Command::new("true").stdout(Stdio::null()).spawn().unwrap();
        let room = (next.id() + MARGIN) / PAGE * PAGE;
        next.wait().unwrap();
        if room + MARGIN < pid_max {
            break room;
        }
    };
    let pins = place.state_dir().join("bpf");
    fs::create_dir_all(&pins).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "bpf", "bpf"])
        .arg(&pins)
        .status();
    assert!(mounted.unwrap().success());
    let table = Array::<MapData, [u16; PAGE as usize]>::create(room / PAGE, 1024).unwrap();
    table.pin(pins.join("PROCESSES")).unwrap();
    room
}

/// Waits longer than the daemon does between two looks.
fn wait(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !is_true() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
