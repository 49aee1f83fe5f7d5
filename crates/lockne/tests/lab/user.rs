//! Users other than root: what they start through the daemon is bound like what root starts, and stays so.

use std::process::Command;

use lockne_lab::probe::{Action, Outcome, Probe, Report};

use crate::{
    home::{Daemon, Home, text},
    tests,
    way::{self, HOME, ORIGIN, assert_answered, probe},
};

tests! {
    program_that_a_user_starts_is_tunnelled needs ["setpriv"],
    policed_program_of_a_user_cannot_free_itself needs ["setpriv"],
    tunnels_of_others_are_not_for_everybody needs ["setpriv"],
    daemon_with_what_the_unit_gives_it_does_the_main_job needs ["setpriv", "mount", "unshare"],
}

/// A home with both tunnels up, of which user 4242 may use `a`, and everything else but another policy in place of
/// one.
fn home() -> (Home, Daemon) {
    let home = Home::new();
    let grants =
        r#"[{"users":[4242],"via":["a"],"direct":true,"block":true,"lan":["0.0.0.0/0","::/0"]}]"#;
    let grants = home.write("grants.json", grants);
    home.open();
    let daemon = home.daemon_with(&["--grants", grants.to_str().unwrap()]);
    home.tunnels_up();
    (home, daemon)
}

/// A lockne command of a user whom no machine knows. The executables may lie where he cannot look, so descriptor 7
/// leads to lockne, and 8 to the probe.
fn lockne(home: &Home, arguments: &[&str]) -> Command {
    let probe = std::env::current_exe().unwrap();
    let script = format!(
        "exec 7<'{}' 8<'{}'; \
         exec setpriv --reuid 4242 --regid 4242 --clear-groups -- /proc/self/fd/7 \"$@\"",
        env!("CARGO_BIN_EXE_lockne"),
        probe.display(),
    );
    let mut command = home.lab.home.command("sh");
    command
        .args(["-c", &script, "sh"])
        .args(arguments)
        .env_remove("LOCKNE_SOCKET")
        .env("LOCKNE_STATE_DIR", home.state_dir())
        .current_dir("/");
    command
}

/// Starts a probe by a script of the user, with the probe in `"$@"`, and hears how it went.
fn run(home: &Home, via: &[&str], script: &str, probe: &Probe) -> Report {
    let script = format!("shift; set -- /proc/self/fd/8 \"$@\"; {script}");
    let mut arguments = vec!["run"];
    arguments.extend(via);
    arguments.extend(["--", "sh", "-c", &script, "sh"]);
    let running = probe.start_behind(lockne(home, &arguments)).unwrap();
    running.finish().unwrap()
}

fn program_that_a_user_starts_is_tunnelled() {
    let (home, _daemon) = home();
    let tunnel = way::client(&home.lab.provider_a);

    for to in ORIGIN {
        for action in [Action::Tcp, Action::UdpUnconnected] {
            let probe = probe(action, to);
            let report = run(&home, &["--via", "a"], "exec \"$@\"", &probe);
            assert_answered(&report, to, tunnel, &probe);
        }
    }

    home.assert_no_leak();
}

fn policed_program_of_a_user_cannot_free_itself() {
    let (home, _daemon) = home();
    let tunnel = way::client(&home.lab.provider_a);
    let probe = probe(Action::Tcp, ORIGIN[0]);

    for other in ["--direct", "--via a --lan 0.0.0.0/1 --lan 128.0.0.0/1"] {
        // It asks first, and then goes on as it can.
        let script = format!(
            "/proc/self/fd/7 run {other} -- \"$@\"; \
             test $? = 125 || exit 1; exec \"$@\""
        );
        let report = run(&home, &["--via", "a"], &script, &probe);
        assert_answered(&report, ORIGIN[0], tunnel, &probe);
    }
    home.assert_no_leak();

    // Where nothing binds it, the same request is granted.
    let report = run(&home, &["--direct"], "exec \"$@\"", &probe);
    assert_answered(&report, ORIGIN[0], HOME, &probe);
    // And what has the network may lose it.
    let silenced = "exec /proc/self/fd/7 run --block -- \"$@\"";
    let report = run(&home, &["--via", "a"], silenced, &probe);
    assert!(
        !matches!(report.outcome, Outcome::Answered { .. }),
        "{report:?}"
    );
}

fn tunnels_of_others_are_not_for_everybody() {
    let (home, _daemon) = home();

    let output = lockne(&home, &["run", "--via", "b", "--", "true"]).output();
    let output = output.unwrap();

    assert_eq!(output.status.code(), Some(125), "{}", text(&output));
    assert!(
        text(&output).contains("user 4242 may not use tunnel `b`"),
        "{}",
        text(&output)
    );
    let root = home.status().unwrap();
    assert!(
        root.policies.is_empty(),
        "a refusal takes no policy: {root:?}"
    );
}

/// As `packaging/systemd/lockne.service` starts it: not root, with these capabilities and no others, and with a
/// file system for its pins that it may not mount itself.
fn daemon_with_what_the_unit_gives_it_does_the_main_job() {
    let home = Home::new();
    home.open();
    let grants = home.write("grants.json", r#"[{"all":true,"via":["a"]}]"#);
    let state = home.state_dir();
    let capabilities = capabilities_of_the_unit();
    // In a mount namespace of its own, as the unit makes one; with the mode that udev gives the device of tunnels.
    let script = format!(
        "mkdir -p '{state}/bpf' && mount -t bpf bpf '{state}/bpf' -o mode=0700 && \
         chown 4299:4299 '{state}' '{state}/bpf' && mkdir '{tun}' && \
         exec 7<'{program}' && exec unshare --mount sh -c \"mount -t tmpfs tmpfs '{tun}' && mknod -m 666 '{tun}/tun' c 10 200 && \
         mount --bind '{tun}/tun' /dev/net/tun && \
         exec setpriv --reuid 4299 --regid 4299 --clear-groups --no-new-privs \
         --bounding-set=-all,{capabilities} --inh-caps=-all,{capabilities} --ambient-caps=-all,{capabilities} \
         /proc/self/fd/7 --state-dir '{state}' daemon --grants '{grants}'\"",
        state = state.display(),
        tun = state.with_file_name("tun").display(),
        program = env!("CARGO_BIN_EXE_lockne"),
        grants = grants.display(),
    );
    let mut command = home.lab.home.command("sh");
    command.args(["-c", &script]);
    let daemon = Daemon::start(&home, command);
    home.tunnels_up();
    let tunnel = way::client(&home.lab.provider_a);

    for to in ORIGIN {
        let probe = probe(Action::Tcp, to);
        let report = run(&home, &["--via", "a"], "exec \"$@\"", &probe);
        assert_answered(&report, to, tunnel, &probe);
        // Root's programs too, and the sockets that others of this machine have.
        let report = home.run(["--via", "b"], &probe);
        assert_answered(&report, to, way::client(&home.lab.provider_b), &probe);
    }
    home.assert_no_leak();

    home.must(["down"]);
    drop(daemon);
    let pins = state.join("bpf");
    let output = Command::new("umount").arg(&pins).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    std::fs::remove_dir(&pins).unwrap();
    std::fs::remove_dir(&state).expect("nothing but the pins' file system is left");
}

/// The capabilities of the unit as setpriv(1) takes them.
fn capabilities_of_the_unit() -> String {
    let unit = include_str!("../../../../packaging/systemd/lockne.service");
    let line = |key: &str| {
        let mut lines = unit.lines();
        lines.find_map(|line| line.strip_prefix(key)).unwrap()
    };
    let bounding = line("CapabilityBoundingSet=");
    assert_eq!(bounding, line("AmbientCapabilities="));
    let names = bounding.split(' ').map(|name| {
        let name = name.strip_prefix("CAP_").unwrap();
        format!("+{}", name.to_lowercase())
    });
    names.collect::<Vec<_>>().join(",")
}
