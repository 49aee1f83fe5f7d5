//! What a user reads when something is wrong: what failed, why, and what to do; and the exit codes.

use std::{fs, os::unix::fs::PermissionsExt as _};

use insta::assert_snapshot;
use lockne_lab::program;

use crate::{
    place::{Place, conf},
    tests,
};

tests! { TESTS:
    wrong_usage_is_told_with_code_2,
    program_that_cannot_be_found_or_executed_has_the_codes_of_env,
    broken_file_is_told_by_line,
    socket_path_that_is_too_long_is_told,
}

tests! { ROOTED:
    name_that_there_is_not_gets_a_suggestion,
    user_is_told_to_use_sudo,
    daemons_that_cannot_start_leave_nothing,
    foreign_file_in_place_of_the_socket_survives,
    two_that_take_down_at_once_both_succeed,
}

fn wrong_usage_is_told_with_code_2() {
    let place = Place::anywhere();
    let commands: [&[&str]; 13] = [
        &["frobnicate"],
        &["stauts"],
        &["status", "--jsn"],
        &["run"],
        &["run", "ls"],
        &["run", "--via"],
        &["run", "--via", "tun0"],
        &["run", "--via", "tun0", "--block", "ls"],
        &["run", "--block", "--lan", "10.0.0.0/33", "ls"],
        &["run", "--direct", "--lan", "10.0.0.0/8", "ls"],
        &["tunnel", "up"],
        &["daemon", "--mark-bit", "30"],
        &["completions", "tcsh"],
    ];

    let text = place.transcript(&commands);

    assert_eq!(text.matches("[exit status: 2]").count(), commands.len());
    assert!(!place.state_dir().exists());
    assert_snapshot!("wrong-usage", text);
}

fn program_that_cannot_be_found_or_executed_has_the_codes_of_env() {
    let place = Place::anywhere();
    fs::create_dir(place.path().join("directory")).unwrap();
    place.write("file", "");

    let text = place.transcript(&[
        &["run", "--block", "no-such-program"],
        &["run", "--block", "./no-such-program"],
        &["run", "--block", ""],
        &["run", "--block", "./directory"],
        &["run", "--block", "directory/"],
        &["run", "--block", "./file"],
        // The program comes first: a mistyped one changes nothing.
        &["run", "--via", "./no-such.conf", "no-such-program"],
        &["run", "--via", "./no-such.conf", "true"],
    ]);

    assert!(!place.state_dir().exists());
    assert_snapshot!("no-program", text);
}

fn broken_file_is_told_by_line() {
    let place = Place::anywhere();
    place.write("empty.conf", "");
    place.write("text.conf", "hello\n");
    fs::write(place.path().join("bytes.conf"), [0x5b, 0xff, 0xfe]).unwrap();
    place.write("typo.conf", &conf().replace("AllowedIPs", "AllowdIPs"));
    place.write("prefix.conf", &conf().replace("0.0.0.0/0", "10.0.0.0/33"));
    place.conf("a-name-that-is-long.conf");
    place.conf("with blank.conf");

    let text = place.transcript(&[
        &["tunnel", "up", "no-such.conf"],
        &["tunnel", "up", "."],
        &["tunnel", "up", "empty.conf"],
        &["tunnel", "up", "text.conf"],
        &["tunnel", "up", "bytes.conf"],
        &["tunnel", "up", "typo.conf"],
        &["tunnel", "up", "prefix.conf"],
        &["tunnel", "up", "a-name-that-is-long.conf"],
        &["tunnel", "up", "with blank.conf"],
        &["run", "--via", "./typo.conf", "true"],
        &["run", "--via", "with blank", "true"],
        &["tunnel", "show", "block"],
    ]);

    assert!(!place.state_dir().exists());
    assert_snapshot!("broken-file", text);
}

fn socket_path_that_is_too_long_is_told() {
    let place = Place::anywhere();
    let long = format!("/tmp/{}", "x".repeat(120));

    let text = place.transcript(&[
        &["--state-dir", &long, "run", "--block", "true"],
        &["--state-dir", &long, "status"],
        &["--socket", &long, "daemon"],
    ]);

    assert_snapshot!("long-socket", text);
}

fn name_that_there_is_not_gets_a_suggestion() {
    let place = Place::new();
    place.conf("home.conf");
    let _daemon = place.daemon();
    place.must(&["tunnel", "up", place.conf("work.conf").to_str().unwrap()]);

    assert_snapshot!(
        "suggestion",
        place.transcript(&[
            &["run", "--via", "wrok", "true"],
            &["run", "--via", "nothing", "true"],
            &["run", "--via", "home", "true"],
            &["tunnel", "show", "wok"],
            &["tunnel", "down", "wok"],
        ])
    );
}

fn user_is_told_to_use_sudo() {
    let place = Place::new();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The build may lie where nobody else may look.
    let program = place.path().join("lockne");
    program::copy(env!("CARGO_BIN_EXE_lockne").as_ref(), &program).unwrap();
    let conf = place.conf("work.conf");
    fs::set_permissions(&conf, fs::Permissions::from_mode(0o600)).unwrap();
    let ask = |arguments: &[&str]| {
        let output = place
            .command("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .args(arguments)
            .output()
            .unwrap();
        format!(
            "$ lockne {}\n{}{}[{}]\n\n",
            arguments.join(" "),
            // It is another process each time, and may be slow.
            match String::from_utf8(output.stdout).unwrap() {
                running if running.starts_with("running lockne") => "running lockne\n".to_owned(),
                other => other,
            },
            String::from_utf8(output.stderr).unwrap(),
            output.status
        )
        .replace(place.path().to_str().unwrap(), "DIR")
    };
    let all = |text: &mut String| {
        let commands: [&[&str]; 6] = [
            &["status"],
            &["run", "--block", "true"],
            &["tunnel", "list"],
            &["tunnel", "up", "work.conf"],
            &["down"],
            &["daemon"],
        ];
        for command in commands {
            *text += &ask(command);
        }
    };

    let mut text = "# no daemon\n".to_owned();
    all(&mut text);
    text += "# a daemon\n";
    let daemon = place.daemon();
    all(&mut text);
    text += "# a dead daemon\n";
    daemon.kill();
    all(&mut text);

    assert_snapshot!("without-root", text);
}

fn daemons_that_cannot_start_leave_nothing() {
    let place = Place::new();
    fs::create_dir_all(place.socket()).unwrap();

    let output = place.run(&["run", "--block", "true"]);

    assert_eq!(output.status.code(), Some(125), "{output:?}");
    fs::remove_dir(place.socket()).unwrap();
    assert_eq!(
        place.must(&["down", "--json"]).matches(": 0").count(),
        4,
        "something was left in the kernel"
    );
}

fn foreign_file_in_place_of_the_socket_survives() {
    let place = Place::new();
    let precious = place.write("precious", "data");
    let path = precious.to_str().unwrap();

    let text = place.transcript(&[
        &["--socket", path, "run", "--block", "true"],
        &["--socket", path, "daemon"],
        &["--socket", path, "down"],
    ]);

    assert_eq!(fs::read_to_string(&precious).unwrap(), "data");
    assert_snapshot!("foreign-socket", text);
}

fn two_that_take_down_at_once_both_succeed() {
    let place = Place::new();
    for _ in 0..3 {
        place.must(&["tunnel", "up", place.conf("work.conf").to_str().unwrap()]);

        let both = [(); 2].map(|()| place.lockne(&["down"]).spawn().unwrap());

        for mut one in both {
            assert!(one.wait().unwrap().success());
        }
    }
}
