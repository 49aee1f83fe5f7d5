//! A configuration in force: loaded, changed while programs run, broken, and taken over.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use lockne_core::api::{ConfigStatus, TunnelState};
use lockne_lab::{
    internet::{ORIGIN_V4, ORIGIN_V6},
    origin::HTTP_PORT,
    probe::{Action, Probe},
};

use crate::{
    fault::Hammers,
    home::{Daemon, Home, wait_until},
    tests,
    way::{assert_arrives, client},
};

tests! {
    tunnels_of_rules_come_up_and_the_names_of_the_file_can_be_used_by_hand,
    change_of_the_file_is_applied_and_disturbs_nobody_else,
    broken_file_changes_nothing_and_is_told_until_it_is_mended,
    broken_file_keeps_a_new_daemon_from_starting,
    rules_are_taken_over_and_a_change_in_the_meantime_is_applied,
    numbers_of_policies_that_nothing_uses_are_used_again,
    thousand_rules_are_in_force,
}

const ORIGINS: [IpAddr; 2] = [IpAddr::V4(ORIGIN_V4), IpAddr::V6(ORIGIN_V6)];

/// A home with a configuration of tunnels `a` and `b`.
struct Ruled {
    home: Home,
    file: PathBuf,
}

impl Ruled {
    fn new(rules: &str) -> Self {
        let home = Home::new();
        let mut tunnels = String::new();
        for (name, provider) in [("a", &home.lab.provider_a), ("b", &home.lab.provider_b)] {
            let conf = home.conf(name, provider);
            writeln!(tunnels, "[tunnels.{name}]\nconfig = \"{}\"", conf.display()).unwrap();
        }
        home.write("tunnels", &tunnels);
        let file = home.write("lockne.toml", "");
        let place = Self { home, file };
        place.write(rules);
        place
    }

    /// Writes the file anew, as an editor does: beside it, and then in its place.
    fn write(&self, rules: &str) {
        let tunnels = fs::read_to_string(self.file.with_file_name("tunnels")).unwrap();
        let next = self.home.write("next", &format!("{tunnels}\n{rules}"));
        fs::rename(next, &self.file).unwrap();
    }

    fn daemon(&self) -> Daemon {
        self.home
            .daemon_with(&["--config", self.file.to_str().unwrap()])
    }

    fn status(&self) -> ConfigStatus {
        self.home.status().unwrap().config.unwrap()
    }

    fn wait(&self, what: &str, is_true: impl Fn(&ConfigStatus) -> bool) -> ConfigStatus {
        wait_until(what, || is_true(&self.status()));
        self.status()
    }

    fn is_up(&self, name: &str) -> bool {
        let tunnels = self.home.status().unwrap().tunnels;
        tunnels
            .iter()
            .any(|it| it.name.as_str() == name && it.state == TunnelState::Up)
    }
}

fn rule(name: &str, via: &str) -> String {
    format!("[[rule]]\nname = \"{name}\"\nexe = \"/nowhere/{name}\"\nvia = {via}\n")
}

fn policies(status: &ConfigStatus) -> Vec<u8> {
    let rules = status.rules.iter();
    rules.map(|rule| rule.policy.unwrap().get()).collect()
}

fn tunnels_of_rules_come_up_and_the_names_of_the_file_can_be_used_by_hand() {
    let ruled = Ruled::new(&(rule("x", "\"a\"") + &rule("y", "\"direct\"") + &rule("z", "\"a\"")));
    let _daemon = ruled.daemon();

    wait_until("the tunnel is up", || ruled.is_up("a"));

    let status = ruled.status();
    assert_eq!(policies(&status), [1, 2, 1], "equal terms share a policy");
    assert!(!ruled.is_up("b"), "no rule names it");
    let home = &ruled.home;
    assert_arrives(home, ["--via", "a"], ORIGINS, client(&home.lab.provider_a));
    // One that no rule needs comes up when somebody asks for it.
    assert_arrives(home, ["--via", "b"], ORIGINS, client(&home.lab.provider_b));
    let shown = home.must(["status"]);
    assert!(shown.contains("exe /nowhere/x"), "{shown}");
    home.assert_no_leak();
}

fn change_of_the_file_is_applied_and_disturbs_nobody_else() {
    let ruled = Ruled::new(&rule("x", "\"a\""));
    let daemon = ruled.daemon();
    let home = &ruled.home;
    wait_until("the tunnel is up", || ruled.is_up("a"));
    let hammers = Hammers::through_a(home);
    let probe = Probe::new(Action::Hold, SocketAddr::new(ORIGINS[0], HTTP_PORT));
    let mut download = home.start(["--via", "a"], &probe);
    download.wait_until_ready().unwrap();

    ruled.write(&rule("x", "\"b\""));
    let status = ruled.wait("the rule has moved", |it| {
        it.rules[0].terms.action.to_string() == "via b"
    });
    // In its place: every program under it moves at once.
    assert_eq!(policies(&status), [1]);
    wait_until("the other tunnel is up", || ruled.is_up("b"));
    // By the directory, by a file that is written in its place, and by a signal.
    let more = ruled.file.with_extension("d");
    fs::create_dir(&more).unwrap();
    fs::write(more.join("more.toml"), rule("y", "\"block\"")).unwrap();
    daemon.hang_up();
    ruled.wait("the second rule is there", |it| it.rules.len() == 2);
    fs::write(more.join("more.toml"), rule("z", "\"direct\"")).unwrap();
    ruled.wait("the second rule is another", |it| {
        it.rules
            .get(1)
            .is_some_and(|rule| rule.name.as_str() == "z")
    });
    fs::remove_file(more.join("more.toml")).unwrap();
    ruled.wait("the second rule is gone", |it| it.rules.len() == 1);
    ruled.write("");
    ruled.wait("no rule is left", |it| it.rules.is_empty());
    wait_until("the tunnel that nobody uses is down", || !ruled.is_up("b"));

    // Those who asked by hand never noticed.
    hammers.wait_until_they_arrive();
    hammers.finish();
    download.go().unwrap();
    let report = download.finish().unwrap();
    assert!(
        !format!("{report:?}").contains("abort"),
        "the connection was cut: {report:?}"
    );
    home.assert_no_leak();
}

fn broken_file_changes_nothing_and_is_told_until_it_is_mended() {
    let ruled = Ruled::new(&rule("x", "\"a\""));
    let _daemon = ruled.daemon();
    wait_until("the tunnel is up", || ruled.is_up("a"));
    let before = ruled.status();

    for broken in [
        rule("x", "\"nowhere\""),
        rule("x", "\"b\"").replace("via", "vai"),
        "[[rule".to_owned(),
        rule("x", "\"bad\"") + "[tunnels.bad]\nconfig = \"/dev/null\"\n",
        rule("x", "\"bad\"") + "[tunnels.bad]\nconfig = \"/nowhere/bad.conf\"\n",
    ] {
        ruled.write(&broken);
        let status = ruled.wait("the mistake is told", |it| it.problem.is_some());

        assert_eq!(status.rules, before.rules, "{broken}");
        assert!(ruled.is_up("a") && !ruled.is_up("b"));
        let shown = ruled.home.must(["status"]);
        assert!(shown.contains("not in force"), "{shown}");
        ruled.write(&rule("x", "\"a\""));
        ruled.wait("all is well", |it| it.problem.is_none());
    }

    assert_eq!(policies(&ruled.status()), [1]);
}

fn broken_file_keeps_a_new_daemon_from_starting() {
    let ruled = Ruled::new(&rule("x", "\"nowhere\""));
    let config = ruled.file.to_str().unwrap().to_owned();

    let output = ruled.home.lockne(["daemon", "--config", &config]).output();

    let output = output.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("there is no tunnel `nowhere`"), "{said}");
    assert!(ruled.home.status().is_none(), "something was left");
}

fn rules_are_taken_over_and_a_change_in_the_meantime_is_applied() {
    let ruled = Ruled::new(&(rule("x", "\"a\"") + &rule("y", "\"block\"")));
    let daemon = ruled.daemon();
    let before = policies(&ruled.status());
    daemon.kill();
    ruled.write(&(rule("y", "\"block\"") + &rule("x", "\"b\"")));

    let daemon = ruled.daemon();

    let mut after = policies(&ruled.status());
    after.reverse();
    assert_eq!(after, before, "each keeps its policy");
    assert_eq!(ruled.status().rules[1].terms.action.to_string(), "via b");
    // What is broken by then does not count, and does not keep it from starting.
    daemon.kill();
    ruled.write("[[rule");
    let daemon = ruled.daemon();
    let status = ruled.status();
    assert!(status.problem.is_some());
    assert_eq!(status.rules.len(), 2);
    // Rules hold while no daemon runs.
    daemon.terminate();
    assert!(ruled.home.status().is_some());
}

fn numbers_of_policies_that_nothing_uses_are_used_again() {
    let home = Home::new();
    let _daemon = home.daemon();
    let mut seen = BTreeSet::new();

    for number in 0..260_u16 {
        let lan = format!("10.{}.{}.0/24", number / 256, number % 256);
        let output = home
            .lockne(["run", "--block", "--lan", &lan, "true"])
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{number}: {output:?}");
        seen.insert(number);
    }

    assert_eq!(seen.len(), 260);
    assert!(home.status().unwrap().policies.len() <= 255);
}

fn thousand_rules_are_in_force() {
    let ruled = Ruled::new("");
    let _daemon = ruled.daemon();
    let mut text = String::new();
    for number in 0..1000 {
        text += &rule(
            &format!("r{number}"),
            ["\"a\"", "\"b\"", "\"direct\""][number % 3],
        );
    }

    ruled.write(&text);
    let status = ruled.wait("all are there", |it| it.rules.len() == 1000);

    let ids: BTreeSet<u8> = policies(&status).into_iter().collect();
    assert_eq!(ids.len(), 3);
    assert_arrives(
        &ruled.home,
        ["--via", "a"],
        [ORIGIN_V4.into(), ORIGIN_V6.into()],
        client(&ruled.home.lab.provider_a),
    );
}
