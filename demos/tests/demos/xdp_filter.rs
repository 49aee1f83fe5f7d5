//! Demo 04, the filter.

use std::net::UdpSocket;

use crate::{
    run::{Demo, command},
    traffic::{
        FAR, FAR6, NEAR, NEAR6, Pair, alone, assert_untouched, ping, received, send, socket, tool,
    },
};

const PATH: &str = env!("CARGO_BIN_EXE_04-xdp-filter");

crate::tests! {
    rules_are_changed_while_it_runs,
    rules_are_changed_by_a_script_that_ends,
    rules_are_changed_from_another_terminal,
    background_of_a_terminal_does_not_stop_it,
    rule_names_a_sender_a_port_or_both,
    nonsense_is_answered_and_changes_nothing,
    rule_of_the_command_line_must_be_one,
    its_time_ends_it,
}

fn rules_are_changed_while_it_runs() {
    let pair = Pair::new();
    let receiver = socket(&pair.near, &format!("{NEAR}:53"));
    let mut demo = Demo::start(&pair.near, PATH, &["--iface", "near0"]);

    assert_eq!(arrive(&pair, &receiver, 10), 10);
    demo.say("drop 192.0.2.2 53");
    demo.wait_for("that it drops", |line| line == "dropping 192.0.2.2 53");
    assert_eq!(arrive(&pair, &receiver, 10), 0);
    demo.say("list");
    demo.wait_for("how many", |line| line == "192.0.2.2 53: 10 dropped");
    demo.say("allow 192.0.2.2 53");
    demo.wait_for("that it allows", |line| line == "allowing 192.0.2.2 53");
    assert_eq!(arrive(&pair, &receiver, 10), 10);

    let ended = demo.interrupt().well();
    assert!(
        ended.out.last().unwrap().ends_with(" passed, 10 dropped"),
        "{ended:#?}"
    );
    assert_untouched(&pair.near, "near0");
}

fn rules_are_changed_by_a_script_that_ends() {
    let pair = Pair::new();
    let receiver = socket(&pair.near, &format!("{NEAR}:53"));
    let mut demo = Demo::start(&pair.near, PATH, &["--iface", "near0"]);

    demo.say("drop 192.0.2.2");
    demo.say("drop any 54");
    demo.say("allow any 54");
    demo.hang_up();
    demo.wait_for("the last one", |line| line == "allowing any 54");
    assert_eq!(arrive(&pair, &receiver, 10), 0);

    // The pings behind the datagrams were dropped, too.
    demo.interrupt().well().says("192.0.2.2: 11 dropped");
    assert_untouched(&pair.near, "near0");
}

fn rules_are_changed_from_another_terminal() {
    let pair = Pair::new();
    let receiver = socket(&pair.near, &format!("{NEAR}:53"));
    let arguments = ["--iface", "near0", "--drop", FAR];
    let mut command = command(&pair.near, PATH, &arguments);
    command.env("RUST_LOG", "demos=debug");
    let demo = Demo::spawn(command).ready();
    assert_eq!(arrive(&pair, &receiver, 1), 0);

    // As the page tells, but by number: other tests have maps of this name at the same time.
    let maps = tool(
        &pair.near,
        "bpftool",
        &format!("--json prog show id {}", demo.loaded()[0]),
    );
    let maps: serde_json::Value = serde_json::from_str(&maps).unwrap();
    let is_rules = |id: &&serde_json::Value| {
        let map = tool(&pair.near, "bpftool", &format!("map show id {id}"));
        map.contains("name RULES")
    };
    let rules = maps["map_ids"].as_array().unwrap().iter().find(is_rules);
    let key = "0 0 0 0 0 0 0 0 0 0 255 255 192 0 2 2 0 0";
    tool(
        &pair.near,
        "bpftool",
        &format!("map delete id {} key {key}", rules.unwrap()),
    );

    assert_eq!(arrive(&pair, &receiver, 1), 1);
    drop(demo.interrupt().well());
}

fn background_of_a_terminal_does_not_stop_it() {
    let script = format!("set -m; {PATH} --duration 500ms & wait");
    let mut command = command(&alone(), "script", &["-qec", &script, "/dev/null"]);
    command.env("SHELL", "/bin/sh");

    let ended = Demo::spawn(command).finish().well();

    ended.says("0 passed, 0 dropped");
}

fn rule_names_a_sender_a_port_or_both() {
    let pair = Pair::new();
    let v4 = [53, 54].map(|port| socket(&pair.near, &format!("{NEAR}:{port}")));
    let v6 = [53, 54].map(|port| socket(&pair.near, &format!("[{NEAR6}]:{port}")));
    for (rules, expected) in [
        (vec![FAR], [0, 0, 3, 3]),
        (vec!["any 53"], [0, 3, 0, 3]),
        (vec!["2001:db8::2 54"], [3, 3, 3, 0]),
        (vec![FAR6, "192.0.2.2 54"], [3, 0, 0, 0]),
        (vec!["192.0.2.3"], [3, 3, 3, 3]),
    ] {
        let mut arguments = vec!["--iface", "near0"];
        for rule in &rules {
            arguments.extend(["--drop", rule]);
        }
        let demo = Demo::start(&pair.near, PATH, &arguments);

        let got = [&v4[0], &v4[1], &v6[0], &v6[1]].map(|receiver| arrive(&pair, receiver, 3));

        drop(demo.interrupt().well());
        assert_eq!(got, expected, "{rules:?}");
    }
}

fn nonsense_is_answered_and_changes_nothing() {
    let mut demo = Demo::start(&alone(), PATH, &[]);

    demo.say("drop somebody");
    demo.wait_for("why not", |line| {
        line.starts_with("`somebody` is not an address")
    });
    demo.say("allow 192.0.2.1");
    demo.wait_for("why not", |line| line == "there is no rule `192.0.2.1`");
    demo.say("jump");
    demo.wait_for("why not", |line| {
        line == "`jump` is none of drop, allow, list"
    });

    demo.interrupt().well().says("0 passed, 0 dropped");
}

fn rule_of_the_command_line_must_be_one() {
    let alone = alone();

    let ended = Demo::spawn(command(&alone, PATH, &["--drop", "any"])).finish();

    assert!(!ended.status.success());
    ended.complains("error: `any` is everything");
    assert_untouched(&alone, "lo");
}

fn its_time_ends_it() {
    let alone = alone();

    let ended = Demo::start(&alone, PATH, &["--duration", "200ms"])
        .finish()
        .well();

    ended.says("0 passed, 0 dropped");
    assert_untouched(&alone, "lo");
}

/// Sends so many datagrams and says how many the receiver got.
fn arrive(pair: &Pair, receiver: &UdpSocket, count: usize) -> usize {
    send(&pair.far, receiver.local_addr().unwrap(), count, 32);
    // The answer to a ping comes behind the datagrams, if it comes at all.
    ping(&pair.far, receiver.local_addr().unwrap().ip(), 1, 1);
    received(receiver)
}
