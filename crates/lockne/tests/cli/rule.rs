//! `lockne rule`: the file is changed as its user would have, or not at all.

use std::{fs, os::unix::fs::PermissionsExt as _};

use insta::assert_snapshot;

use crate::{place::Place, tests};

tests! { TESTS:
    rules_are_listed_tested_and_explained,
    added_rule_leaves_comments_and_everything_else_as_it_was,
    rule_that_is_added_and_removed_leaves_the_very_bytes,
    removed_rule_takes_its_own_comment_along_and_no_other,
    change_that_would_not_be_right_changes_nothing,
    first_rule_makes_the_file,
    link_to_a_file_stays_a_link_and_the_mode_stays,
}

const FILE: &str = r#"# What goes where. Do not lose this line.

[tunnels.work]   # from Ada
config = "/etc/wireguard/work.conf"
[tunnels.corp]
interface = 'tun0'

# The browser, since 2024.
[[rule]]
name = "shell"
exe   = "/bin/sh"        # odd spacing stays
user  = "root"
via   = "work"

# Backups, nightly.
[[rule]]
name = "backup"
unit = "backup.service"
via = ["work",
       "corp"]   # in this order

[default]
via = "direct" # the rest
"#;

fn place() -> Place {
    let place = Place::anywhere();
    place.write("lockne.toml", FILE);
    place
}

fn text(place: &Place) -> String {
    fs::read_to_string(place.path().join("lockne.toml")).unwrap()
}

fn with_file<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [arguments, &["--config", "lockne.toml"]].concat()
}

fn must(place: &Place, arguments: &[&str]) -> String {
    place.must(&with_file(arguments))
}

fn rules_are_listed_tested_and_explained() {
    let place = place();
    assert_snapshot!("list", must(&place, &["rule", "list"]));
    place.write("script", "#!/bin/sh\n");
    fs::create_dir(place.path().join("lockne.d")).unwrap();
    let script = place.path().join("script");
    place.write(
        "lockne.d/more.toml",
        &format!(
            "[[rule]]\nname = \"late\"\nexe = \"{}\"\nscript = true\nvia = \"block\"\n",
            script.display()
        ),
    );
    let commands: [&[&str]; 7] = [
        &["rule", "list", "--json"],
        &["rule", "test", "./script", "--user", "0"],
        &[
            "rule",
            "test",
            "./script",
            "--user",
            "0",
            "--unit",
            "backup.service",
        ],
        &["rule", "test", "./script", "--user", "daemon", "--json"],
        &["rule", "test", "/dev/null", "--user", "root"],
        &["rule", "test", "no-such-program"],
        &["rule", "test", "./script", "--user", "nobody-of-that-name"],
    ];
    let commands: Vec<Vec<&str>> = commands.iter().map(|it| with_file(it)).collect();
    let commands: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();

    let shell = fs::canonicalize("/bin/sh").unwrap();
    let text = place.transcript(&commands);

    assert_snapshot!("rules", text.replace(shell.to_str().unwrap(), "SHELL"));
    // By the environment, too.
    let output = place
        .lockne(&["rule", "list"])
        .env("LOCKNE_CONFIG", "lockne.toml")
        .output();
    let listed = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(listed.contains("backup"), "{listed}");
}

fn added_rule_leaves_comments_and_everything_else_as_it_was() {
    let place = place();

    must(
        &place,
        &[
            "rule",
            "add",
            "games",
            "--flatpak",
            "com.x.Game",
            "--direct",
        ],
    );
    must(
        &place,
        &[
            "rule",
            "add",
            "first",
            "--before",
            "shell",
            "--exe",
            "/bin/true",
            "--user",
            "1000",
            "--via",
            "corp,work",
            "--lan",
            "10.0.0.0/8",
            "--dns",
            "10.8.0.1",
            "--existing",
            "keep",
        ],
    );

    let text = text(&place);
    assert_snapshot!("added", text);
    for line in FILE.lines() {
        assert!(text.contains(line), "{line}");
    }
}

fn rule_that_is_added_and_removed_leaves_the_very_bytes() {
    let place = place();
    for before in [&[][..], &["--before", "shell"], &["--before", "backup"]] {
        let add = ["rule", "add", "x", "--user", "ada", "--block"];
        must(&place, &[&add, before].concat());
        assert_ne!(text(&place), FILE);

        must(&place, &["rule", "remove", "x"]);

        assert_eq!(text(&place), FILE, "{before:?}");
    }
}

fn removed_rule_takes_its_own_comment_along_and_no_other() {
    let place = place();

    must(&place, &["rule", "remove", "backup"]);
    must(&place, &["rule", "remove", "shell"]);

    assert_snapshot!("removed", text(&place));
}

fn change_that_would_not_be_right_changes_nothing() {
    let place = place();
    let commands: [&[&str]; 9] = [
        &["rule", "add", "x", "--exe", "/x", "--via", "wrok"],
        &["rule", "add", "x", "--unit", "nothing", "--block"],
        &["rule", "add", "shell", "--exe", "/x", "--block"],
        &[
            "rule",
            "add",
            "again",
            "--unit",
            "backup.service",
            "--block",
        ],
        &["rule", "add", "a b", "--exe", "/x", "--block"],
        &["rule", "add", "x", "--exe", "no-such-program", "--block"],
        &[
            "rule", "add", "x", "--exe", "/x", "--block", "--before", "nobody",
        ],
        &["rule", "remove", "nobody"],
        &["rule", "add", "x", "--block"],
    ];
    let commands: Vec<Vec<&str>> = commands.iter().map(|it| with_file(it)).collect();
    let mut commands: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();
    commands.push(&["rule", "list", "--config", "no-such.toml"]);

    let said = place.transcript(&commands);

    assert_snapshot!("not-added", said);
    assert_eq!(text(&place), FILE);
    // A file that is wrong already is not made worse.
    let wrong = FILE.replace("unit =", "unti =");
    place.write("lockne.toml", &wrong);
    for command in [
        &["rule", "remove", "shell"][..],
        &["rule", "add", "x", "--exe", "/x", "--block"],
    ] {
        let output = place.run(&with_file(command));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("did you mean `unit`?"), "{said}");
        assert_eq!(text(&place), wrong);
    }
    let left: Vec<_> = fs::read_dir(place.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

fn first_rule_makes_the_file() {
    let place = Place::anywhere();
    let file = ["--config", "etc/lockne/lockne.toml"];

    let add = ["rule", "add", "x", "--exe", "/bin/true", "--block"];
    place.must(&[&add[..], &file].concat());

    let path = place.path().join("etc/lockne/lockne.toml");
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "[[rule]]\nname = \"x\"\nexe = \"/bin/true\"\nvia = \"block\"\n"
    );
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o644
    );
}

fn link_to_a_file_stays_a_link_and_the_mode_stays() {
    let place = Place::anywhere();
    let target = place.write("target", FILE);
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("target", place.path().join("lockne.toml")).unwrap();

    must(&place, &["rule", "remove", "shell"]);

    assert!(place.path().join("lockne.toml").is_symlink());
    assert!(!fs::read_to_string(&target).unwrap().contains("shell"));
    assert_eq!(
        fs::metadata(&target).unwrap().permissions().mode() & 0o777,
        0o640
    );
}
