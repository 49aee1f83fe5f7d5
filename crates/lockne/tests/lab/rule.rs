//! A configuration in force: loaded, changed while programs run, broken, and taken over.

use std::{
    collections::BTreeSet,
    env,
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use lockne_core::api::{ConfigStatus, TunnelState};
use lockne_lab::{
    internet::{ORIGIN_V4, ORIGIN_V6},
    origin::HTTP_PORT,
    probe::{Action, Actor, Outcome, Probe, Running, SocketFrom},
    program,
};

use self::running::{
    changed_rule_takes_the_running_program_and_its_connections_along,
    changed_rule_that_keeps_connections_leaves_them_in_the_tunnel_before,
    choice_by_hand_is_stronger_than_a_rule,
    detached_program_is_left_alone_by_rules_over_fork_and_exec,
    new_rule_reaches_the_program_that_runs_and_what_it_has_open,
    removed_rule_leaves_its_program_where_it_is, rule_test_says_what_the_kernel_does,
};
use crate::{
    fault::Hammers,
    home::{Daemon, Home, wait_until},
    tests,
    way::{self, assert_answered, assert_arrives, client, every_kind, probe},
};

mod running;

tests! {
    tunnels_of_rules_come_up_and_the_names_of_the_file_can_be_used_by_hand,
    change_of_the_file_is_applied_and_disturbs_nobody_else,
    wg_quick_file_that_changes_is_read_again_and_its_programs_follow,
    broken_file_changes_nothing_and_is_told_until_it_is_mended,
    broken_file_keeps_a_new_daemon_from_starting,
    rules_are_taken_over_and_a_change_in_the_meantime_is_applied,
    numbers_of_policies_that_nothing_uses_are_used_again,
    thousand_rules_are_in_force,
    program_of_a_rule_sends_nothing_past_its_tunnel_from_its_first_packet_on,
    changed_rule_takes_the_running_program_and_its_connections_along,
    changed_rule_that_keeps_connections_leaves_them_in_the_tunnel_before,
    new_rule_reaches_the_program_that_runs_and_what_it_has_open,
    removed_rule_leaves_its_program_where_it_is,
    choice_by_hand_is_stronger_than_a_rule,
    detached_program_is_left_alone_by_rules_over_fork_and_exec needs ["sh", "head"],
    rule_test_says_what_the_kernel_does needs ["bash", "ln"],
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

    /// A copy of this program, which rules can name.
    fn program(&self, name: &str) -> PathBuf {
        let path = self.home.beside(name);
        program::copy(&env::current_exe().unwrap(), &path).unwrap();
        path
    }

    /// Starts the probe as `program` at home, without lockne's help.
    fn start(&self, program: &Path, probe: &Probe) -> Running {
        probe.start_as(self.home.lab.home.command(program)).unwrap()
    }

    /// The action of the policy that a process stands under.
    fn way_of(&self, pid: u32) -> Option<String> {
        let policies = self.home.status().unwrap().policies;
        let mut policies = policies.iter();
        let policy = policies.find(|it| it.processes.iter().any(|it| it.pid == pid));
        policy.map(|it| it.terms.action.to_string())
    }

    fn wait_until_goes(&self, pid: u32, way: &str) {
        wait_until(&format!("process {pid} goes {way}"), || {
            self.way_of(pid).as_deref() == Some(way)
        });
    }

    /// What has left so far does not count any more.
    fn forget(&self) {
        self.home.wire.settle().unwrap();
        self.home.wire.clear();
        self.home.lab.origin.clear();
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

/// A rule for a program that is there.
fn names(program: &Path, via: &str) -> String {
    let name = program.file_name().unwrap().to_str().unwrap();
    let exe = program.display();
    format!("[[rule]]\nname = \"{name}\"\nexe = \"{exe}\"\nvia = \"{via}\"\n")
}

fn keeping(rule: &str) -> String {
    format!("{rule}existing = \"keep\"\n")
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

fn assert_alive(mut download: Running) {
    download.go().unwrap();
    let report = download.finish().unwrap();
    assert!(
        matches!(&report.outcome, Outcome::Ended { why, .. } if why == "alive"),
        "{report:?}"
    );
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
    assert_alive(download);
    home.assert_no_leak();
}

fn wg_quick_file_that_changes_is_read_again_and_its_programs_follow() {
    let ruled = Ruled::new("");
    let app = ruled.program("app");
    ruled.write(&names(&app, "a"));
    let _daemon = ruled.daemon();
    wait_until("the tunnel is up", || ruled.is_up("a"));
    // One by its rule, the other by hand; `b` is named by no rule.
    let waits = probe(Action::UdpUnconnected, ORIGINS[0]).on(SocketFrom::BeforeGo);
    let mut by_rule = ruled.start(&app, &waits);
    let mut by_hand = ruled.home.start(["--via", "b"], &waits);
    for running in [&mut by_rule, &mut by_hand] {
        running.wait_until_ready().unwrap();
    }
    let (a, b) = (&ruled.home.lab.provider_a, &ruled.home.lab.provider_b);
    // What is no wg-quick file changes nothing, and is told.
    ruled.home.write("a.conf", "[Interface]\n");
    ruled.wait("the file is refused", |it| it.problem.is_some());
    assert!(ruled.is_up("a"));

    // First beside it, and then in its place.
    for (name, provider) in [("b", a), ("a", b)] {
        let next = ruled.home.write("next.conf", &provider.client_conf());
        fs::rename(next, ruled.file.with_file_name(format!("{name}.conf"))).unwrap();
    }

    let has = |name: &str, address: IpAddr| {
        let tunnels = ruled.home.status().unwrap().tunnels;
        let tunnel = tunnels.iter().find(|it| it.name.as_str() == name);
        tunnel.is_some_and(|it| it.addresses.iter().any(|net| net.addr() == address))
    };
    wait_until("both are other tunnels now", || {
        has("a", client(b)[0]) && has("b", client(a)[0])
    });
    for (mut running, provider) in [(by_rule, b), (by_hand, a)] {
        running.go().unwrap();
        assert_answered(
            &running.finish().unwrap(),
            ORIGINS[0],
            client(provider),
            &waits,
        );
    }
    ruled.home.assert_no_leak();
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
    assert_eq!(output.status.code(), Some(78), "{said}");
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

fn program_of_a_rule_sends_nothing_past_its_tunnel_from_its_first_packet_on() {
    let ruled = Ruled::new("");
    let [one, two, none, free] = ["one", "two", "none", "free"].map(|name| ruled.program(name));
    ruled.write(&(names(&one, "a") + &names(&two, "b") + &names(&none, "block")));
    let _daemon = ruled.daemon();
    let home = &ruled.home;
    wait_until("the tunnels are up", || {
        ruled.is_up("a") && ruled.is_up("b")
    });
    let (a, b) = (client(&home.lab.provider_a), client(&home.lab.provider_b));

    for (program, from) in [(&one, a), (&two, b)] {
        for (probe, _) in every_kind(ORIGINS) {
            for actor in [Actor::Itself, Actor::Child, Actor::Thread] {
                let probe = probe.clone().by(actor);
                let report = ruled.start(program, &probe).finish().unwrap();
                assert_answered(&report, probe.to.ip(), from, &probe);
            }
        }
    }
    for (probe, _) in every_kind(ORIGINS) {
        let probe = probe.waiting(Duration::from_millis(50));
        let report = ruled.start(&none, &probe).finish().unwrap();
        assert!(
            !matches!(report.outcome, Outcome::Answered { .. }),
            "{report:?}"
        );
    }
    home.assert_no_leak();

    // The rest of the machine is as it was, and the cable is watched.
    for (probe, _) in every_kind(ORIGINS) {
        let report = ruled.start(&free, &probe).finish().unwrap();
        assert_answered(&report, probe.to.ip(), way::HOME, &probe);
    }
    assert!(!home.leaks().is_empty());
    let shown = home.must(["status"]);
    assert!(
        shown.contains("via a") && shown.contains("block"),
        "{shown}"
    );
}
