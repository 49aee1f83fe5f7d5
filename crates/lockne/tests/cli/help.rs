//! Helps, the manual page and completions.

use std::process::{Command, Stdio};

use insta::assert_snapshot;

use crate::{place::Place, tests};

tests! { TESTS:
    every_help_is_as_agreed,
    every_help_fits_a_screen,
    lockne_alone_prints_its_help_whatever_the_environment,
    manual_page_names_every_command,
    bash_completes_commands_and_options,
}

const COMMANDS: &[&[&str]] = &[
    &[],
    &["run"],
    &["attach"],
    &["detach"],
    &["explain"],
    &["tunnel"],
    &["tunnel", "up"],
    &["tunnel", "down"],
    &["tunnel", "list"],
    &["tunnel", "show"],
    &["rule"],
    &["rule", "list"],
    &["rule", "add"],
    &["rule", "remove"],
    &["rule", "test"],
    &["status"],
    &["leaktest"],
    &["doctor"],
    &["down"],
    &["demo"],
    &["monitor"],
    &["flows"],
    &["top"],
    &["trace"],
    &["trace", "exec"],
    &["trace", "ping"],
    &["daemon"],
    &["completions"],
    &["man"],
];

fn help(command: &[&str]) -> String {
    let output = Place::anywhere()
        .lockne(command)
        .arg("-h")
        .env("COLUMNS", "80")
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

fn every_help_is_as_agreed() {
    for command in COMMANDS {
        let name = ["help", &command.join("-")].join("-");
        assert_snapshot!(name.trim_end_matches('-').to_owned(), help(command));
    }
}

fn every_help_fits_a_screen() {
    for command in COMMANDS {
        let help = help(command);
        assert!(help.lines().count() <= 40, "{command:?} is long:\n{help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{command:?} is wide: {line}");
        }
    }
}

fn lockne_alone_prints_its_help_whatever_the_environment() {
    let output = Place::anywhere()
        .lockne(&[])
        .env("LOCKNE_SOCKET", "/x")
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(2));
    assert!(
        str::from_utf8(&output.stderr)
            .unwrap()
            .contains("First steps:"),
        "{output:?}"
    );
}

fn manual_page_names_every_command() {
    let page = Place::anywhere().must(&["man"]);

    assert!(page.contains(".TH lockne 1"));
    for command in COMMANDS.iter().filter_map(|command| command.first()) {
        assert!(
            page.contains(&format!("SS lockne {command}")),
            "{command}: {page}"
        );
    }
    for text in ["\\-\\-via", "\\-\\-lan", "LOCKNE_STATE_DIR", "EXIT STATUS"] {
        assert!(page.contains(text), "{text}: {page}");
    }
}

fn bash_completes_commands_and_options() {
    let place = Place::anywhere();
    let script = place.write("completions.bash", &place.must(&["completions", "bash"]));
    let complete = |words: &str| {
        let ask = format!(
            "source {}; COMP_WORDS=({words} ''); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _lockne lockne '' ''; echo \"${{COMPREPLY[*]}}\"",
            script.display()
        );
        let output = Command::new("bash")
            .args(["-c", &ask])
            .stdin(Stdio::null())
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };

    assert!(
        complete("lockne").contains("tunnel"),
        "{}",
        complete("lockne")
    );
    assert!(
        complete("lockne tunnel").contains("show"),
        "{}",
        complete("lockne tunnel")
    );
    for shell in ["zsh", "fish"] {
        assert!(
            place.must(&["completions", shell]).contains("allow-hooks"),
            "{shell}"
        );
    }
}
