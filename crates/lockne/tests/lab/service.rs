//! lockne as a service of systemd, which is the first process: the units as they are, and the machine as the home.
//!
//! `cargo xtask kernels` boots machines that are alone with it, and is alone in asking for these tests.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use lockne_lab::{
    probe::{Action, Probe},
    program,
};

use crate::{
    fault::Hammers,
    home::{Home, text, wait_until},
    tests,
    way::{self, HOME, ORIGIN, assert_answered, probe},
};

tests! {
    clients_are_told_of_a_broken_configuration_and_served_when_it_is_mended needs ["systemctl"],
    service_starts_when_it_is_asked_and_tunnels_programs_of_users needs ["systemctl", "setpriv"],
    rules_mean_the_units_and_scopes_of_systemd needs ["systemctl", "systemd-run", "sh"],
    service_that_restarts_stops_crashes_and_is_reloaded_leaks_nothing needs ["systemctl"],
    exposure_of_the_service_that_runs_is_low needs ["systemctl", "systemd-analyze"],
}

const LOCKNE: &str = "/usr/bin/lockne";
const UNIT: &str = "lockne.service";
/// What a package installs beside the program.
const FILES: [(&str, &str); 4] = [
    (
        "/usr/lib/systemd/system/lockne.service",
        include_str!("../../../../packaging/systemd/lockne.service"),
    ),
    (
        "/usr/lib/systemd/system/lockne.socket",
        include_str!("../../../../packaging/systemd/lockne.socket"),
    ),
    (
        "/usr/lib/systemd/system/run-lockne-bpf.mount",
        include_str!("../../../../packaging/systemd/run-lockne-bpf.mount"),
    ),
    (
        "/usr/lib/sysusers.d/lockne.conf",
        include_str!("../../../../packaging/systemd/lockne.sysusers"),
    ),
];

/// This machine with lockne installed and its socket open, and a configuration with tunnels `a` and `b`.
struct Installed {
    home: Home,
}

impl Installed {
    fn new(rules: &str) -> Self {
        // Modules and the test before leave devices.
        for device in fs::read_dir("/sys/class/net").unwrap() {
            let device = device.unwrap().file_name();
            if device != "lo" {
                // It may be on its way.
                let mut ip = Command::new("ip");
                drop(ip.args(["link", "delete"]).arg(&device).output().unwrap());
            }
        }
        wait_until("the devices are gone", || {
            fs::read_dir("/sys/class/net").unwrap().count() == 1
        });
        let home = Home::of_this_machine();
        for (path, text) in FILES {
            fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        program::copy(Path::new(env!("CARGO_BIN_EXE_lockne")), Path::new(LOCKNE)).unwrap();
        must("systemd-sysusers", &["lockne.conf"]);
        let mut config = String::new();
        fs::create_dir_all("/etc/lockne").unwrap();
        for (name, provider) in [("a", &home.lab.provider_a), ("b", &home.lab.provider_b)] {
            let path = format!("/etc/lockne/{name}.conf");
            fs::write(&path, provider.client_conf().as_bytes()).unwrap();
            write!(config, "[tunnels.{name}]\nconfig = \"{path}\"\n").unwrap();
            config += "users = [4242]\n";
        }
        fs::write("/etc/lockne/lockne.toml", config + rules).unwrap();
        systemctl(&["daemon-reload"]);
        systemctl(&["enable", "--now", "lockne.socket"]);
        Self { home }
    }

    /// Has the service at work.
    fn started(rules: &str) -> Self {
        let installed = Self::new(rules);
        systemctl(&["start", UNIT]);
        installed
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if thread::panicking() {
            let mut journal = Command::new("journalctl");
            let output = journal.args(["--no-pager", "--lines=150", "--unit=lockne*"]);
            eprintln!("{}", text(&output.output().unwrap()));
        }
    }
}

fn must(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        text(&output)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn systemctl(arguments: &[&str]) -> String {
    must("systemctl", arguments)
}

/// What systemd says of the service.
fn property(name: &str) -> String {
    let said = systemctl(&["show", "--value", "--property", name, UNIT]);
    said.trim().to_owned()
}

/// Runs the probe behind a program with arguments of its own.
fn behind(words: &[&str], probe: &Probe) -> lockne_lab::probe::Report {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir("/");
    probe.start_behind(command).unwrap().finish().unwrap()
}

fn service_starts_when_it_is_asked_and_tunnels_programs_of_users() {
    let machine = Installed::new("");
    let home = &machine.home;
    assert_eq!(property("ActiveState"), "inactive");
    let user = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups"];
    let run = [LOCKNE, "run", "--via", "a", "--"];
    let tunnel = way::client(&home.lab.provider_a);

    for to in ORIGIN {
        for action in [Action::Tcp, Action::UdpUnconnected, Action::Ping] {
            let probe = probe(action, to);
            assert_answered(
                &behind(&[&user[..], &run].concat(), &probe),
                to,
                tunnel,
                &probe,
            );
        }
    }

    assert_eq!(property("ActiveState"), "active");
    // It is not root, and says what it does.
    let status = fs::read_to_string(format!("/proc/{}/status", property("MainPID"))).unwrap();
    assert!(!status.contains("\nUid:\t0"), "{status}");
    let line = property("StatusText");
    assert!(line.contains("tunnels"), "{line}");
    home.assert_no_leak();
    // Who has no policy is not tunnelled, so that the tests could see it.
    let probe = probe(Action::Tcp, ORIGIN[0]);
    assert_answered(&behind(&user, &probe), ORIGIN[0], HOME, &probe);
}

fn clients_are_told_of_a_broken_configuration_and_served_when_it_is_mended() {
    const CONFIG: &str = "/etc/lockne/lockne.toml";
    let machine = Installed::new("");
    let home = &machine.home;
    let good = fs::read_to_string(CONFIG).unwrap();
    fs::write(CONFIG, "[[rule]]\nvia = 7\n").unwrap();

    for _ in 0..2 {
        let output = home.lockne(["run", "--via", "a", "true"]).output().unwrap();
        let said = text(&output);
        assert!(said.contains("the configuration has mistakes"), "{said}");
    }
    wait_until("it is at rest", || property("ActiveState") == "failed");
    assert_eq!(property("NRestarts"), "0");

    fs::write(CONFIG, good).unwrap();
    let probe = probe(Action::Tcp, ORIGIN[0]);
    let tunnel = way::client(&home.lab.provider_a);
    assert_answered(&home.run(["--via", "a"], &probe), ORIGIN[0], tunnel, &probe);
    home.assert_no_leak();
}

fn rules_mean_the_units_and_scopes_of_systemd() {
    let mut rules = String::new();
    for (name, what) in [
        ("file", "exe = \"/usr/bin/ruled\""),
        ("unit", "unit = \"ruled.service\""),
        ("scope", "unit = \"ruled.scope\""),
    ] {
        write!(rules, "[[rule]]\nname = \"{name}\"\n{what}\nvia = \"b\"\n").unwrap();
    }
    // As a package that is there before the rules are read.
    program::copy(
        &std::env::current_exe().unwrap(),
        Path::new("/usr/bin/ruled"),
    )
    .unwrap();
    let machine = Installed::started(&rules);
    let home = &machine.home;
    let tunnel = way::client(&home.lab.provider_b);
    // Where there is no bus, it takes no streams along.
    let script = "out=/tmp/ruled-$$; systemd-run --quiet --collect --property=Type=oneshot \
                  --property=StandardOutput=file:$out \"$@\" && cat \"$out\" && rm \"$out\"";
    let service = ["sh", "-c", script, "sh"];
    let scope = ["systemd-run", "--quiet", "--scope", "--collect"];

    for to in ORIGIN {
        let probe = probe(Action::UdpUnconnected, to);
        for words in [
            &[&service[..], &["--unit=ruled.service", "--"]].concat(),
            // In namespaces of its own, as systemd makes them.
            &[
                &service[..],
                &["--unit=ruled.service", "--property=PrivateTmp=yes"],
                &[
                    "--property=DynamicUser=yes",
                    "--property=ProtectSystem=strict",
                    "--",
                ],
            ]
            .concat(),
            &[&scope[..], &["--unit=ruled.scope", "--"]].concat(),
        ] {
            assert_answered(&behind(words, &probe), to, tunnel, &probe);
        }
        let named = Command::new("/usr/bin/ruled");
        let report = probe.start_as(named).unwrap().finish().unwrap();
        assert_answered(&report, to, tunnel, &probe);
    }

    home.assert_no_leak();
    let probe = probe(Action::UdpUnconnected, ORIGIN[0]);
    let other = [&service[..], &["--unit=other.service", "--"]].concat();
    assert_answered(&behind(&other, &probe), ORIGIN[0], HOME, &probe);
}

fn service_that_restarts_stops_crashes_and_is_reloaded_leaks_nothing() {
    let machine = Installed::started("");
    let home = &machine.home;
    let hammers = Hammers::through_a(home);

    systemctl(&["restart", UNIT]);
    hammers.wait_until_they_arrive();

    let before = property("MainPID");
    systemctl(&["kill", "--signal=KILL", UNIT]);
    wait_until("systemd has started it again", || {
        property("MainPID") != before && property("ActiveState") == "active"
    });
    hammers.wait_until_they_arrive();

    for word in ["daemon-reload", "daemon-reexec"] {
        let before = property("MainPID");
        systemctl(&[word]);
        hammers.wait_until_they_arrive();
        assert_eq!(property("MainPID"), before, "{word}");
    }

    systemctl(&["stop", "lockne.socket", UNIT]);
    assert_eq!(property("ActiveState"), "inactive");
    // The kernel's WireGuard goes on without it.
    hammers.wait_until_they_arrive();
    systemctl(&["start", "lockne.socket", UNIT]);
    hammers.wait_until_they_arrive();

    hammers.finish();
}

fn exposure_of_the_service_that_runs_is_low() {
    let _machine = Installed::started("");

    let said = must(
        "systemd-analyze",
        &["security", "--threshold=24", "--no-pager", UNIT],
    );

    assert!(said.contains("Overall exposure level"), "{said}");
}
