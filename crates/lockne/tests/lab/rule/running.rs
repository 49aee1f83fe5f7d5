//! Rules that come, change and go while their programs run, and what is chosen by hand meanwhile.

use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path};

use lockne_lab::{
    origin::HTTP_PORT,
    probe::{Action, Actor, Outcome, Probe, Running, SocketFrom},
    program,
};

use super::{ORIGINS, Ruled, assert_alive, keeping, names, rule};
use crate::{
    home::wait_until,
    way::{self, assert_answered, client, of_family, probe},
};

/// A program with a download, one with an unconnected socket, and one with none yet, all by a rule.
struct Trio {
    download: Running,
    older: Running,
    newer: Running,
}

impl Trio {
    fn start(ruled: &Ruled, program: &Path) -> Self {
        let hold = Probe::new(Action::Hold, SocketAddr::new(ORIGINS[0], HTTP_PORT));
        let udp = probe(Action::UdpUnconnected, ORIGINS[0]);
        let tcp = probe(Action::Tcp, ORIGINS[1]);
        let [download, older, newer] = [
            hold,
            udp.on(SocketFrom::BeforeGo),
            tcp.on(SocketFrom::AfterGo),
        ]
        .map(|probe| {
            let mut running = ruled.start(program, &probe);
            running.wait_until_ready().unwrap();
            running
        });
        Self {
            download,
            older,
            newer,
        }
    }

    /// The download may end by it.
    fn wait_until_goes(&self, ruled: &Ruled, way: &str) {
        for running in [&self.older, &self.newer] {
            ruled.wait_until_goes(running.pid(), way);
        }
    }

    /// Whoever has no connection yet comes from there now; gives the download.
    fn assert_from(self, from: way::Pair) -> Running {
        let both = [
            (self.older, probe(Action::UdpUnconnected, ORIGINS[0])),
            (self.newer, probe(Action::Tcp, ORIGINS[1])),
        ];
        for (mut running, probe) in both {
            running.go().unwrap();
            let report = running.finish().unwrap();
            assert_answered(&report, probe.to.ip(), from, &probe);
        }
        self.download
    }
}

fn assert_cut(download: Running) {
    let report = download.finish().unwrap();
    let Outcome::Ended { why, .. } = &report.outcome else {
        panic!("{report:?}");
    };
    assert!(
        ["ECONNABORTED", "ECONNRESET", "EPIPE"].contains(&why.as_str()),
        "{why}"
    );
}

pub(super) fn changed_rule_takes_the_running_program_and_its_connections_along() {
    let ruled = Ruled::new("");
    let app = ruled.program("app");
    let other = rule("other", "\"a\"");
    // Alone under its policy, which moves as a whole; and beside a rule that stays.
    for beside in ["", &other] {
        ruled.write(&(names(&app, "a") + beside));
        let daemon = ruled.daemon();
        wait_until("the tunnel is up", || ruled.is_up("a"));
        let trio = Trio::start(&ruled, &app);
        trio.wait_until_goes(&ruled, "via a");

        ruled.write(&(names(&app, "b") + beside));

        trio.wait_until_goes(&ruled, "via b");
        wait_until("the other tunnel is up", || ruled.is_up("b"));
        assert_cut(trio.assert_from(client(&ruled.home.lab.provider_b)));
        ruled.home.assert_no_leak();
        ruled.home.must(["down"]);
        daemon.wait();
    }
}

pub(super) fn changed_rule_that_keeps_connections_leaves_them_in_the_tunnel_before() {
    let ruled = Ruled::new("");
    let app = ruled.program("app");
    ruled.write(&keeping(&names(&app, "a")));
    let _daemon = ruled.daemon();
    wait_until("the tunnel is up", || ruled.is_up("a"));
    let trio = Trio::start(&ruled, &app);
    trio.wait_until_goes(&ruled, "via a");

    ruled.write(&keeping(&names(&app, "b")));

    trio.wait_until_goes(&ruled, "via b");
    wait_until("the other tunnel is up", || ruled.is_up("b"));
    let download = trio.assert_from(client(&ruled.home.lab.provider_b));
    assert!(ruled.is_up("a"), "a connection is in it");
    let received = || {
        let policies = ruled.home.status().unwrap().policies;
        let before = policies
            .iter()
            .find(|it| it.terms.action.to_string() == "via a");
        before.unwrap().traffic.rx_bytes
    };
    let before = received();
    wait_until("the download goes on", || received() > before);
    assert_alive(download);
    ruled.home.assert_no_leak();
}

pub(super) fn new_rule_reaches_the_program_that_runs_and_what_it_has_open() {
    let ruled = Ruled::new(&rule("other", "\"a\""));
    let app = ruled.program("app");
    let _daemon = ruled.daemon();
    wait_until("the tunnel is up", || ruled.is_up("a"));
    let trio = Trio::start(&ruled, &app);
    let child = probe(Action::UdpUnconnected, ORIGINS[1]);
    let child = child.by(Actor::Child).on(SocketFrom::AfterGo);
    let mut child_running = ruled.start(&app, &child);
    child_running.wait_until_ready().unwrap();
    assert_eq!(ruled.way_of(trio.older.pid()), None);
    assert!(!ruled.home.leaks().is_empty(), "the download is direct");

    ruled.write(&(rule("other", "\"a\"") + &names(&app, "a")));

    trio.wait_until_goes(&ruled, "via a");
    ruled.wait_until_goes(child_running.pid(), "via a");
    // Those who were cut may have said so to nobody but themselves.
    let a = client(&ruled.home.lab.provider_a);
    let Trio {
        download,
        older,
        newer,
    } = trio;
    assert_cut(download);
    ruled.forget();
    child_running.go().unwrap();
    assert_answered(&child_running.finish().unwrap(), ORIGINS[1], a, &child);
    for (mut running, probe) in [
        (older, probe(Action::UdpUnconnected, ORIGINS[0])),
        (newer, probe(Action::Tcp, ORIGINS[1])),
    ] {
        running.go().unwrap();
        let report = running.finish().unwrap();
        assert_answered(&report, probe.to.ip(), a, &probe);
    }
    ruled.home.assert_no_leak();
}

pub(super) fn removed_rule_leaves_its_program_where_it_is() {
    let ruled = Ruled::new("");
    let app = ruled.program("app");
    ruled.write(&names(&app, "a"));
    let _daemon = ruled.daemon();
    wait_until("the tunnel is up", || ruled.is_up("a"));
    let trio = Trio::start(&ruled, &app);
    let a = client(&ruled.home.lab.provider_a);

    ruled.write("");

    ruled.wait("no rule is left", |it| it.rules.is_empty());
    trio.wait_until_goes(&ruled, "via a");
    assert_alive(trio.assert_from(a));
    ruled.home.assert_no_leak();
    // Who starts from now on is free.
    let probe = probe(Action::Tcp, ORIGINS[0]);
    let report = ruled.start(&app, &probe).finish().unwrap();
    assert_answered(&report, ORIGINS[0], way::HOME, &probe);
}

pub(super) fn choice_by_hand_is_stronger_than_a_rule() {
    let ruled = Ruled::new("");
    let app = ruled.program("app");
    ruled.write(&names(&app, "a"));
    let _daemon = ruled.daemon();
    let home = &ruled.home;
    wait_until("the tunnel is up", || ruled.is_up("a"));
    let b = client(&home.lab.provider_b);
    let probe = probe(Action::Tcp, ORIGINS[0]);
    let start = |probe: &Probe| {
        let mut command = home.lockne(["run", "--via", "b", "--"]);
        command.arg(&app);
        probe.start_as(command).unwrap()
    };

    let report = start(&probe).finish().unwrap();
    assert_answered(&report, ORIGINS[0], b, &probe);
    // Nor does a change of the rules reach it.
    let waiting = probe.clone().on(SocketFrom::AfterGo);
    let mut running = start(&waiting);
    running.wait_until_ready().unwrap();
    ruled.write(&names(&app, "block"));
    ruled.wait("the rule is another", |it| {
        it.rules[0].terms.action.to_string() == "block"
    });
    running.go().unwrap();
    assert_answered(&running.finish().unwrap(), ORIGINS[0], b, &probe);
    home.assert_no_leak();
}

pub(super) fn detached_program_is_left_alone_by_rules_over_fork_and_exec() {
    let ruled = Ruled::new("");
    let [shell, app] = ["shell", "app"].map(|name| ruled.home.beside(name));
    program::copy("/bin/sh".as_ref(), &shell).unwrap();
    ruled.program("app");
    let text = names(&shell, "a") + &names(&app, "a");
    ruled.write(&text);
    let _daemon = ruled.daemon();
    wait_until("the tunnel is up", || ruled.is_up("a"));
    let probe = probe(Action::Tcp, ORIGINS[0]);
    for (detach, actor, from) in [
        (false, Actor::Itself, client(&ruled.home.lab.provider_a)),
        (true, Actor::Itself, way::HOME),
        (true, Actor::Child, way::HOME),
    ] {
        let mut command = ruled.home.lab.home.command(&shell);
        command
            .args(["-c", "echo ready; head -c1 >/dev/null; exec \"$@\"", "sh"])
            .arg(&app);
        let probe = probe.clone().by(actor);
        let mut running = probe.start_as(command).unwrap();
        running.wait_until_ready().unwrap();
        let pid = running.pid();
        ruled.wait_until_goes(pid, "via a");

        if detach {
            ruled.home.must(["detach", "--pid", &pid.to_string()]);
            assert_eq!(ruled.way_of(pid), None);
            // A change of the rules looks at all programs.
            ruled.write(&(text.clone() + &rule(&format!("more{pid}"), "\"block\"")));
            ruled.wait("another rule is there", |it| it.rules.len() == 3);
            assert_eq!(ruled.way_of(pid), None);
            ruled.write(&text);
            ruled.wait("it is gone", |it| it.rules.len() == 2);
        }

        running.go().unwrap();
        let report = running.finish().unwrap();
        assert_answered(&report, ORIGINS[0], from, &probe);
    }
}

pub(super) fn rule_test_says_what_the_kernel_does() {
    let ruled = Ruled::new("");
    let app = ruled.program("app");
    let place = |name: &str| ruled.home.beside(name);
    ruled.program("namesake-of-none");
    std::os::unix::fs::symlink(&app, place("link")).unwrap();
    fs::hard_link(&app, place("hard")).unwrap();
    std::os::unix::fs::symlink(&app, place("named")).unwrap();
    std::os::unix::fs::symlink(place("script"), place("alias")).unwrap();
    let script = |name: &str| {
        let path = place(name);
        let text = format!(
            "#!/bin/bash\nexec \"{}\" \"$@\"\n",
            place("plain").display()
        );
        program::write(&path, text.as_bytes()).unwrap();
        path
    };
    ruled.program("plain");
    let (ruled_script, _) = (script("script"), script("script2"));
    ruled.write(&format!(
        "{}[[rule]]\nname = \"user\"\nexe = \"{}\"\nuser = 65534\nvia = \"block\"\n{}script = true\n",
        names(&place("named"), "a"),
        place("namesake-of-none").display(),
        names(&ruled_script, "b"),
    ));
    let _daemon = ruled.daemon();
    wait_until("the tunnels are up", || {
        ruled.is_up("a") && ruled.is_up("b")
    });
    let config = ruled.file.to_str().unwrap();
    let probe = probe(Action::UdpUnconnected, ORIGINS[0]);

    let programs = [
        "app",
        "link",
        "hard",
        "named",
        "namesake-of-none",
        "plain",
        "script",
        "script2",
        "alias",
    ];
    let mut ways = BTreeSet::new();
    for name in programs {
        let path = place(name);
        let said = ruled.home.must([
            "rule",
            "test",
            "--json",
            "--config",
            config,
            path.to_str().unwrap(),
        ]);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let expected = match said["rule"]["name"].as_str() {
            Some("named") => client(&ruled.home.lab.provider_a),
            Some("script") => client(&ruled.home.lab.provider_b),
            None => way::HOME,
            other => panic!("{other:?}"),
        };
        ways.insert(expected);

        let report = ruled.start(&path, &probe).finish().unwrap();

        let Outcome::Answered { saw: Some(saw) } = report.outcome else {
            panic!("{name}: {report:?}");
        };
        assert_eq!(saw.ip(), of_family(expected, ORIGINS[0]), "{name}: {said}");
    }
    assert_eq!(ways.len(), 3);
}
