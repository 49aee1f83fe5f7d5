//! What other programs undo is done again, with a line in the log, and not without end.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lockne_lab::program::Killed;

use crate::{
    fault::Hammers,
    home::{Daemon, Home, wait_until},
    tests,
};

tests! {
    what_others_undo_is_done_again_with_a_line_in_the_log needs ["ip"],
    tool_that_undoes_all_the_time_floods_neither_log_nor_daemon needs ["ip", "sh"],
}

const UNDONE: &str = "another program undid this; it is done again";
const OVERTAKEN: &str = "rules of another program came before ours, or went; following";

fn what_others_undo_is_done_again_with_a_line_in_the_log() {
    let home = Home::new();
    let _daemon = home.daemon();
    home.tunnels_up();
    let hammers = Hammers::through_a(&home);
    // Of the last one, the two lines that move the rule that is written about.
    let changes = [
        ("route flush table 108001", UNDONE, "table 108001"),
        ("rule del pref 102", UNDONE, "rule add pref 102"),
        ("rule del pref 101", UNDONE, "rule add pref 101"),
        ("rule add table main", OVERTAKEN, "rule add pref"),
    ];

    for (change, why, step) in changes {
        let before = lines(&home, why, step);
        home.ip_both(change);
        wait_until(change, || lines(&home, why, step) >= before + 2);
        hammers.wait_until_they_arrive();
    }

    hammers.finish();
}

fn tool_that_undoes_all_the_time_floods_neither_log_nor_daemon() {
    const SECONDS: usize = 5;
    const STORM: Duration = Duration::from_secs(SECONDS as u64);
    /// As many as are written at once, and one in two seconds.
    const MOST: usize = 30 + 2 * SECONDS;
    let home = Home::new();
    let daemon = home.daemon();
    home.tunnels_up();
    let hammers = Hammers::through_a(&home);
    let busy_before = busy(&daemon);
    let start = Instant::now();
    let storm = Storm::start(&home);

    // It leaks nothing while it lasts, which the hammers tell at the end.
    std::thread::sleep(STORM);
    let busy = busy(&daemon).saturating_sub(busy_before);
    let length = start.elapsed();
    storm.end();

    let said = lines(&home, "", "ip -");
    assert!(said > 0, "it is told at all");
    assert!(said <= MOST, "{said} lines");
    assert!(
        busy < length / 3,
        "the daemon was busy for {busy:?} of {length:?}"
    );
    hammers.wait_until_they_arrive();
    hammers.end();
    home.assert_nothing_left();
}

/// A program that takes away our rules and routes again and again.
struct Storm(Killed);

impl Storm {
    fn start(home: &Home) -> Self {
        let mut command: Command = home.lab.home.command("sh");
        let script = "while :; do for i in 4 6; do ip -$i rule del pref 102; ip -$i route flush table 108001; done; done";
        let child = command
            .args(["-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(Killed(child.unwrap()))
    }

    fn end(self) {
        drop(self.0);
    }
}

/// How many lines of the log have both words.
fn lines(home: &Home, one: &str, other: &str) -> usize {
    let log = home.said();
    let lines = log.lines();
    lines
        .filter(|line| line.contains(one) && line.contains(other))
        .count()
}

/// How long the daemon has had a processor.
fn busy(daemon: &Daemon) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || fields.next().unwrap().parse::<u64>().unwrap();
    // In user space and in the kernel, in hundredths of a second.
    Duration::from_millis(10 * (next() + next()))
}
