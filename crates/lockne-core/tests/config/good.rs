//! What a configuration means.

use std::path::Path;

use lockne_core::{
    config::{Program, Source},
    policy::{Action, Terms},
    rule::{Existing, User},
    tunnel::TunnelName,
};

use crate::parse;

const MAIN: &str = r#"
[tunnels.work]
config = "/etc/wireguard/work.conf"
allow_hooks = true
[tunnels.corp]
interface = "tun0"
dns = ["10.8.0.1", "fd00::1"]
lan = ["192.168.1.7/24", "10.0.0.1"]
probe = "10.8.0.1"
users = ["ada", 1000]
groups = ["vpn"]

[[rule]]
name = "browser"
exe = "/usr/lib/firefox/firefox"
user = "ada"
via = "work"
existing = "keep"
[[rule]]
name = "seeding"
unit = "transmission-daemon.service"
via = ["work", "corp"]
lan = ["192.168.1.0/24"]
[[rule]]
name = "backup"
exe = "/usr/local/bin/backup"
script = true
via = "block"

[default]
via = "direct"
"#;

const LATER: &str = r#"
[tunnels.late]
interface = "wg9"
[[rule]]
name = "games"
flatpak = "com.valvesoftware.Steam"
via = "late"
dns = ["9.9.9.9"]
"#;

#[test]
fn every_key_arrives() {
    let config = parse(&[("a.toml", MAIN), ("b.toml", LATER)]).unwrap();

    let names: Vec<_> = config.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["browser", "seeding", "backup", "games"]);
    let [browser, seeding, backup, games] = &config.rules[..] else {
        panic!("{config:?}");
    };
    assert_eq!(
        browser.matches.exe.as_deref(),
        Some(Path::new("/usr/lib/firefox/firefox"))
    );
    assert_eq!(browser.matches.user, Some(User::Name("ada".to_owned())));
    assert_eq!(browser.existing, Existing::Keep);
    assert_eq!(seeding.existing, Existing::Reset);
    // Rules speak of interfaces in the end.
    let tunnels: Vec<_> = seeding.terms.tunnels().map(TunnelName::as_str).collect();
    assert_eq!(tunnels, ["work", "tun0"]);
    assert_eq!(seeding.terms.lan.len(), 1);
    assert!(backup.matches.script && backup.terms == Terms::new(Action::Block));
    assert_eq!(games.terms.action, Action::Via("wg9".parse().unwrap()));
    assert_eq!(
        games.terms.dns,
        ["9.9.9.9".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(config.places[&games.name].to_string(), "b.toml:5");
    assert_eq!(
        config.default.map(|default| default.terms),
        Some(Terms::new(Action::Direct))
    );
    let work = &config.tunnels[&"work".parse().unwrap()];
    assert_eq!(
        work.source,
        Source::File {
            path: "/etc/wireguard/work.conf".into(),
            allow_hooks: true
        }
    );
    let corp = &config.tunnels[&"corp".parse().unwrap()];
    let lan: Vec<_> = corp.lan.iter().map(ToString::to_string).collect();
    assert_eq!(lan, ["10.0.0.1/32", "192.168.1.0/24"]);
    assert_eq!(corp.probe, Some("10.8.0.1".parse().unwrap()));
    assert!(corp.who.users.len() == 2 && corp.who.groups.len() == 1);
}

#[test]
fn rule_may_name_a_tunnel_of_a_later_file() {
    let rule = "[[rule]]\nname = \"x\"\nexe = \"/x\"\nvia = \"late\"\n";

    let config = parse(&[("a.toml", rule), ("b.toml", LATER)]).unwrap();

    assert_eq!(config.rules.len(), 2);
}

#[test]
fn nothing_at_all_is_a_configuration_without_rules() {
    assert!(parse(&[]).unwrap().rules.is_empty());
    assert!(parse(&[("a.toml", "# later\n")]).unwrap().default.is_none());
}

#[test]
fn first_rule_that_matches_decides_and_the_others_say_why_not() {
    let config = parse(&[("a.toml", MAIN), ("b.toml", LATER)]).unwrap();
    let there = |path: &Path| Some(path.to_owned());
    let firefox = Program {
        exe: "/usr/lib/firefox/firefox".into(),
        uid: 1000,
        user: Some("ada".to_owned()),
        flatpak: Some("com.valvesoftware.Steam".to_owned()),
        ..Program::default()
    };

    let (rule, missed) = config.decide(&firefox, there);
    assert_eq!(rule.unwrap().name.as_str(), "browser");
    assert!(missed.is_empty());

    let bob = Program {
        user: Some("bob".to_owned()),
        ..firefox
    };
    let (rule, missed) = config.decide(&bob, there);
    assert_eq!(rule.unwrap().name.as_str(), "games");
    let why: Vec<_> = missed.iter().map(|(_, miss)| miss.to_string()).collect();
    assert_eq!(
        why,
        [
            "`user` is `bob`, not `ada`",
            "it has no `unit`, and the rule wants `transmission-daemon.service`",
            "`exe` is `/usr/lib/firefox/firefox`, not `/usr/local/bin/backup`",
        ]
    );

    let (rule, missed) = config.decide(&Program::default(), |_| None);
    assert!(rule.is_none() && missed.len() == 4);
}

#[test]
fn script_is_meant_only_where_the_rule_says_so() {
    let script = Program {
        exe: "/bin/sh".into(),
        script: Some("/usr/local/bin/backup".into()),
        ..Program::default()
    };
    let there = |path: &Path| Some(path.to_owned());
    let decide = |text: &str| {
        let config = parse(&[("a.toml", text)]).unwrap();
        let (rule, missed) = config.decide(&script, there);
        (rule.is_some(), missed.len())
    };

    assert_eq!(decide(MAIN), (true, 2));
    assert_eq!(decide(&MAIN.replace("script = true", "")), (false, 3));
}
