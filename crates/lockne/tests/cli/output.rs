//! What the reading commands print.

use std::process::Output;

use insta::assert_snapshot;
use serde_json::Value;

use crate::{
    place::{Place, wait_until},
    tests,
};

tests! { ROOTED:
    everything_at_rest_is_told,
    everything_at_work_is_told,
    dead_daemon_is_told,
    json_is_one_document_with_agreed_fields,
    colours_are_for_terminals_and_those_who_insist,
    reader_that_goes_away_is_no_failure,
}

/// A daemon with a tunnel, a blocked program and one that uses the tunnel.
struct Busy {
    place: Place,
    daemon: Option<crate::place::Daemon>,
    programs: Vec<std::process::Child>,
}

impl Busy {
    fn new() -> Self {
        let place = Place::new();
        let daemon = place.daemon();
        place.must(&["tunnel", "up", place.conf("work.conf").to_str().unwrap()]);
        let mut programs = Vec::new();
        for (number, arguments) in [["--via", "work"], ["--lan=10.1.0.0/16", "--block"]]
            .iter()
            .enumerate()
        {
            let mut command = place.lockne(&["run"]);
            programs.push(
                command
                    .args(arguments)
                    .args(["sleep", "1000"])
                    .spawn()
                    .unwrap(),
            );
            wait_until("the program runs", || {
                place
                    .must(&["status", "--json"])
                    .matches("\"sleep\"")
                    .count()
                    == number + 1
            });
        }
        Self {
            place,
            daemon: Some(daemon),
            programs,
        }
    }

    /// What the commands print, without what differs from run to run.
    fn transcript(&self, commands: &[&[&str]]) -> String {
        let mut text = self.place.transcript(commands);
        let mut numbers = vec![];
        numbers.extend(self.daemon.as_ref().map(crate::place::Daemon::pid));
        numbers.extend(self.programs.iter().map(std::process::Child::id));
        for number in numbers {
            text = text.replace(&number.to_string(), "N");
        }
        // A table is as wide as its numbers.
        while text.contains("   ") {
            text = text.replace("   ", "  ");
        }
        for seconds in 0..10 {
            text = text.replace(&format!("for {seconds}s"), "for Ns");
        }
        text
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for program in &mut self.programs {
            drop(program.kill());
            drop(program.wait());
        }
    }
}

fn everything_at_rest_is_told() {
    let place = Place::new();

    assert_snapshot!(
        "at-rest",
        place.transcript(&[
            &["status"],
            &["status", "--json"],
            &["tunnel", "list"],
            &["tunnel", "list", "--json"],
            &["tunnel", "show", "work"],
            &["tunnel", "down", "work"],
            &["down"],
            &["down", "--json"],
        ])
    );
}

fn everything_at_work_is_told() {
    let busy = Busy::new();

    assert_snapshot!(
        "at-work",
        busy.transcript(&[
            &["status"],
            &["tunnel", "list"],
            &["tunnel", "show", "work"],
            &["tunnel", "down", "work"],
            &["status"],
            &["down"],
        ])
    );
}

fn dead_daemon_is_told() {
    let mut busy = Busy::new();
    busy.daemon.take().unwrap().kill();

    assert_snapshot!(
        "dead-daemon",
        busy.transcript(&[
            &["status"],
            &["tunnel", "list"],
            &["tunnel", "show", "work"],
            &["down"],
        ])
    );
}

/// Replaces what differs from run to run.
fn redact(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(fields) => {
            for (name, value) in fields {
                let volatile = ["pid", "uptime_seconds", "state_dir", "version"];
                if volatile.contains(&name.as_str()) {
                    *value = Value::from("...");
                } else {
                    redact(value);
                }
            }
        }
        _ => {}
    }
}

fn json_is_one_document_with_agreed_fields() {
    let busy = Busy::new();
    let commands: [&[&str]; 4] = [
        &["status", "--json"],
        &["tunnel", "list", "--json"],
        &["tunnel", "show", "work", "--json"],
        &["down", "--json"],
    ];

    let mut text = String::new();
    for command in commands {
        let mut document: Value = serde_json::from_str(&busy.place.must(command)).unwrap();
        redact(&mut document);
        text += &format!("$ lockne {}\n{document:#}\n\n", command.join(" "));
    }

    assert_snapshot!("json", text);
}

fn colours_are_for_terminals_and_those_who_insist() {
    let busy = Busy::new();
    let escapes = |output: Output| {
        assert!(output.status.success(), "{output:?}");
        output.stdout.contains(&0x1b)
    };
    let status = || busy.place.lockne(&["status"]);

    assert!(!escapes(status().output().unwrap()));
    assert!(escapes(
        status().env("CLICOLOR_FORCE", "1").output().unwrap()
    ));
}

fn reader_that_goes_away_is_no_failure() {
    let busy = Busy::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);

    let output = busy
        .place
        .lockne(&["status"])
        .stdout(writer)
        .output()
        .unwrap();

    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}
