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
