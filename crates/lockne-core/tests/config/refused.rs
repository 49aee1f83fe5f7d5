//! What is wrong is said with its place and a hint.

use insta::assert_snapshot;

use crate::parse;

const GOOD: &str = r#"[tunnels.work]
config = "/etc/wireguard/work.conf"
[tunnels.corp]
interface = "tun0"
[[rule]]
name = "browser"
exe = "/usr/bin/firefox"
via = "work"
"#;

/// The good file with `old` written as `new`, and what is said to that.
fn instead(old: &str, new: &str) -> String {
    assert!(GOOD.contains(old), "{old}");
    said(&[("lockne.toml", &GOOD.replacen(old, new, 1))])
}

fn said(files: &[(&str, &str)]) -> String {
    match parse(files) {
        Ok(config) => panic!("taken: {config:#?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn good_file_is_good() {
    parse(&[("lockne.toml", GOOD)]).unwrap();
}

#[test]
fn text_that_is_no_toml() {
    assert_snapshot!(said(&[("lockne.toml", "[tunnels.work\nconfig = 1\n")]));
    assert_snapshot!(said(&[(
        "lockne.toml",
        "[[rule]]\nname = \"x\nvia = \"y\"\n"
    )]));
    assert_snapshot!(said(&[(
        "lockne.toml",
        "[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n"
    )]));
    assert_snapshot!(instead("exe =", "name = \"again\"\nexe ="));
}

#[test]
fn unknown_keys() {
    assert_snapshot!(instead("exe =", "exec ="));
    assert_snapshot!(instead("config =", "file ="));
    assert_snapshot!(instead("[[rule]]", "[[rules]]"));
    assert_snapshot!(instead("[[rule]]", "[rule]"));
    assert_snapshot!(instead("[[rule]]", "[atach]\nusers = \"all\"\n[[rule]]"));
    assert_snapshot!(instead("[[rule]]", "[attach]\nuser = [\"ada\"]\n[[rule]]"));
}

#[test]
fn unknown_tunnels() {
    assert_snapshot!(instead("via = \"work\"", "via = \"wrok\""));
    assert_snapshot!(instead("via = \"work\"", "via = [\"corp\", \"home\"]"));
    assert_snapshot!(instead("via = \"work\"", "via = \"dirct\""));
}

#[test]
fn wrong_kinds_of_values() {
    assert_snapshot!(instead("via = \"work\"", "via = 1"));
    assert_snapshot!(instead(
        "exe = \"/usr/bin/firefox\"",
        "exe = [\"/usr/bin/firefox\"]"
    ));
    assert_snapshot!(instead("exe = \"/usr/bin/firefox\"", "user = -1"));
    assert_snapshot!(instead("via =", "existing = \"cut\"\nvia ="));
    assert_snapshot!(instead("via =", "lan = [\"10.0.0.0/33\", \"::/0\"]\nvia ="));
    assert_snapshot!(instead(
        "interface = \"tun0\"",
        "interface = \"tun0\"\nusers = \"ada\""
    ));
}

#[test]
fn paths_that_are_relative() {
    assert_snapshot!(instead("/usr/bin/firefox", "firefox"));
    assert_snapshot!(instead("/usr/bin/firefox", "~/bin/firefox"));
    assert_snapshot!(instead("/etc/wireguard/work.conf", "/etc/../work.conf"));
}

#[test]
fn what_contradicts_itself() {
    assert_snapshot!(instead("interface =", "config = \"/x.conf\"\ninterface ="));
    assert_snapshot!(instead("interface = \"tun0\"", ""));
    assert_snapshot!(instead(
        "via = \"work\"",
        "via = \"direct\"\nlan = [\"10.0.0.0/8\"]"
    ));
    assert_snapshot!(instead(
        "via = \"work\"",
        "via = \"block\"\ndns = [\"9.9.9.9\"]"
    ));
    assert_snapshot!(instead("via = \"work\"", "via = [\"direct\", \"work\"]"));
    assert_snapshot!(instead("via = \"work\"", "via = [\"work\", \"work\"]"));
    assert_snapshot!(instead("via = \"work\"", "via = []"));
    assert_snapshot!(instead("exe = \"/usr/bin/firefox\"\n", ""));
    assert_snapshot!(instead(
        "exe = \"/usr/bin/firefox\"",
        "flatpak = \"a\"\nsnap = \"b\""
    ));
    assert_snapshot!(instead(
        "exe = \"/usr/bin/firefox\"",
        "user = 0\nscript = true"
    ));
    assert_snapshot!(instead(
        "exe = \"/usr/bin/firefox\"",
        "unit = \"transmission\""
    ));
    assert_snapshot!(instead("interface = \"tun0\"", "interface = \"work\""));
    let kept = "via = [\"work\", \"direct\"]\nexisting = \"keep\"";
    assert_snapshot!(instead("via = \"work\"", kept));
    assert_snapshot!(instead("via = \"work\"", "via = [\"work\", \"block\"]"));
    assert_snapshot!(instead("via = \"work\"", "via = [\"direct\"]"));
    let script = "script = true\nvia = \"direct\"";
    assert_snapshot!(instead("via = \"work\"", script));
    let script = "script = true\nvia = [\"work\", \"direct\"]";
    assert_snapshot!(instead("via = \"work\"", script));
}

#[test]
fn names_that_are_taken_or_cannot_be() {
    let again = format!("{GOOD}[[rule]]\nname = \"browser\"\nexe = \"/x\"\nvia = \"work\"\n");
    assert_snapshot!(said(&[("lockne.toml", &again)]));
    let same = GOOD.replace("browser", "again");
    let same = &same[same.find("[[rule]]").unwrap()..];
    assert_snapshot!(said(&[("lockne.toml", GOOD), ("lockne.d/b.toml", same)]));
    assert_snapshot!(said(&[("lockne.toml", GOOD), ("lockne.d/b.toml", GOOD)]));
    assert_snapshot!(instead("name = \"browser\"\n", ""));
    assert_snapshot!(instead("\"browser\"", "\"my browser\""));
    assert_snapshot!(instead("\"browser\"", "\"default\""));
    assert_snapshot!(instead("[tunnels.corp]", "[tunnels.direct]"));
    assert_snapshot!(instead(
        "[tunnels.corp]",
        "[tunnels.the-tunnel-of-my-company]"
    ));
}

#[test]
fn every_problem_is_told_at_once_and_in_order() {
    let text = "[[rule]]\nname = \"ä\"\nexee = \"ü\" # two\nvia = \"x\"\n[defualt]\n";

    assert_snapshot!(said(&[("lockne.toml", text), ("lockne.d/b.toml", "x")]));
}

#[test]
fn metrics_that_others_could_read_or_nobody() {
    let with = |lines: &str| said(&[("lockne.toml", &format!("[metrics]\n{lines}"))]);
    let all = [
        "remote = true",
        "listen = 9108",
        "listen = \"localhost:9108\"",
        "listen = \"127.0.0.1\"",
        "listen = \"127.0.0.1:0\"",
        "listen = \"192.168.1.2:9108\"",
        "listen = \"[::]:9108\"\nremote = true",
        "listn = \"127.0.0.1:9108\"",
    ];
    assert_snapshot!(all.map(with).join("\n\n"));
}
