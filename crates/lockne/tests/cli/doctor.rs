//! `lockne doctor` in a namespace where others have planted their rules.

use std::process::Output;

use serde_json::Value;

use crate::{place::Place, tests};

tests! { ROOTED:
    rules_of_others_are_told_and_nothing_is_changed,
    rule_that_takes_our_bits_keeps_lockne_from_working,
    ordinary_user_gets_the_same_but_what_only_root_sees,
    colours_are_for_those_who_insist,
}

fn ip(place: &Place, arguments: &str) -> String {
    let output = place.command("ip").args(arguments.split(' ')).output();
    let output = output.unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn findings(output: &Output) -> Vec<Value> {
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    document["findings"].as_array().unwrap().clone()
}

fn about(findings: &[Value], subject: &str) -> Vec<String> {
    let texts = findings.iter().filter(|it| it["subject"] == subject);
    texts
        .map(|it| format!("{} {}", it["level"], it["found"]))
        .collect()
}

fn rules_of_others_are_told_and_nothing_is_changed() {
    let place = Place::new();
    ip(
        &place,
        "rule add pref 5210 fwmark 0x80000/0xff0000 lookup main",
    );
    ip(
        &place,
        "-6 rule add pref 32764 not fwmark 0xca6c lookup 51820",
    );
    let before = ip(&place, "rule") + &ip(&place, "-6 rule") + &ip(&place, "link");

    let output = place.run(&["doctor", "--json"]);

    assert!(output.status.success(), "{output:?}");
    let findings = findings(&output);
    let marks = about(&findings, "mark");
    assert_eq!(marks.len(), 3, "{marks:?}");
    assert!(marks[0].contains("nobody else uses"), "{marks:?}");
    assert!(
        marks[1].contains("Tailscale (by its mark) has the IPv4 rule"),
        "{marks:?}"
    );
    assert!(
        marks[2].contains("wg-quick (by its mark) has the IPv6 rule"),
        "{marks:?}"
    );
    assert!(about(&findings, "priority").is_empty());
    assert!(about(&findings, "cgroup-programs")[0].contains("good"));
    let after = ip(&place, "rule") + &ip(&place, "-6 rule") + &ip(&place, "link");
    assert_eq!(before, after);
    assert!(!place.state_dir().exists());
}

fn rule_that_takes_our_bits_keeps_lockne_from_working() {
    let place = Place::new();
    ip(
        &place,
        "rule add pref 100 fwmark 0x42000000/0xff000000 lookup main",
    );

    let output = place.run(&["doctor"]);

    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("fail  somebody has the IPv4 rule"), "{text}");
    assert!(text.contains("lockne daemon --mark-bit 17"), "{text}");
    assert!(text.ends_with("lockne cannot work here\n"), "{text}");
    // The advice is right: the daemon refuses these bits, and takes those.
    assert!(!place.run(&["run", "--block", "true"]).status.success());
    assert!(place.run(&["doctor", "--mark-bit", "17"]).status.success());
}

fn ordinary_user_gets_the_same_but_what_only_root_sees() {
    let place = Place::new();
    let script = format!(
        "exec 7<'{}'; exec setpriv --reuid 4242 --regid 4242 --clear-groups -- /proc/self/fd/7 doctor --json",
        env!("CARGO_BIN_EXE_lockne"),
    );

    let user = place.command("sh").args(["-c", &script]).output().unwrap();

    assert!(user.status.success(), "{user:?}");
    let user = findings(&user);
    let root = findings(&place.run(&["doctor", "--json"]));
    let differ: Vec<&Value> = user.iter().filter(|it| !root.contains(it)).collect();
    let subjects: Vec<&Value> = differ.iter().map(|it| &it["subject"]).collect();
    assert_eq!(subjects, ["cgroup-programs"]);
}

fn colours_are_for_those_who_insist() {
    let place = Place::new();
    let escapes = |variable: &str| {
        let mut command = place.lockne(&["doctor"]);
        let output = command.env(variable, "1").output().unwrap();
        output.stdout.contains(&0x1b)
    };

    assert!(escapes("CLICOLOR_FORCE"));
    assert!(!escapes("NO_COLOR"));
}
