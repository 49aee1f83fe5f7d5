//! Demo 02.

use std::{collections::BTreeSet, fs, process::Command};

use crate::{
    run::Demo,
    traffic::{alone, tracefs_mounts},
};

const PATH: &str = env!("CARGO_BIN_EXE_02-process-tracker");

crate::tests! {
    each_command_is_shown_once_with_its_process,
    name_with_an_escape_sequence_stays_harmless,
    its_time_ends_it_and_no_mount_is_left,
}

fn each_command_is_shown_once_with_its_process() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("demo-command");
    fs::copy("/bin/true", &file).unwrap();
    let demo = Demo::start(&alone(), PATH, &[]);

    let mut children: Vec<_> = (0..20)
        .map(|_| Command::new(&file).spawn().unwrap())
        .collect();
    let pids: BTreeSet<_> = children
        .iter()
        .map(|child| child.id().to_string())
        .collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }

    let ended = demo.interrupt().well();
    let file = file.to_str().unwrap();
    let mut shown = Vec::new();
    for line in ended.out.iter().filter(|line| line.ends_with(file)) {
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words[1..], ["0", "demo-command", file]);
        shown.push(words[0].to_owned());
    }
    assert_eq!(shown.len(), 20, "{ended:#?}");
    assert_eq!(shown.into_iter().collect::<BTreeSet<_>>(), pids);
    assert!(
        ended
            .out
            .last()
            .unwrap()
            .ends_with(" commands, 0 not shown")
    );
}

fn name_with_an_escape_sequence_stays_harmless() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("\u{1b}[31mred");
    fs::copy("/bin/true", &file).unwrap();
    let demo = Demo::start(&alone(), PATH, &[]);

    assert!(Command::new(&file).status().unwrap().success());

    let ended = demo.interrupt().well();
    assert_eq!(ended.count("\\u{1b}[31mred"), 1);
    assert_eq!(ended.count("\u{1b}"), 0);
}

fn its_time_ends_it_and_no_mount_is_left() {
    let before = tracefs_mounts();

    let ended = Demo::start(&alone(), PATH, &["--duration", "300ms"])
        .finish()
        .well();

    assert_eq!(tracefs_mounts(), before);
    if before.is_empty() {
        ended.complains("mounting it at /sys/kernel/tracing, for this process alone");
    }
}
