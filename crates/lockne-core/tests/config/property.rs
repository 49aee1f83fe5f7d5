//! Claims about every text.

use lockne_core::config::{Config, Text};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::parse;

/// Pieces that make texts which come far.
const PIECES: [&str; 32] = [
    "[tunnels.work]\n",
    "[tunnels.\"ä\"]\n",
    "config = \"/etc/x.conf\"\n",
    "interface = \"tun0\"\n",
    "interface = 'tun1'\r\n",
    "users = [\"ada\", 0x10, -1]\n",
    "users = \"all\"\n",
    "groups = [[]]\n",
    "probe = \"::1\"\n",
    "[[rule]]\n",
    "name = \"a\"\n",
    "name = \"b\"\n",
    "name = \"\u{1f980}\"\n",
    "exe = \"/usr/bin/x\"\n",
    "exe = \"\"\n",
    "script = true\n",
    "user = 1000\n",
    "user = 99999999999\n",
    "unit = \"a.service\"\n",
    "cgroup = \"/user.slice\"\n",
    "flatpak = \"org.x\"\n",
    "snap = \"x\"\n",
    "via = \"work\"\n",
    "via = [\"work\", \"b\"]\n",
    "via = \"direct\"\n",
    "lan = [\"10.0.0.0/8\", \"::1\"]\n",
    "dns = [\"10.0.0.1\"]\n",
    "existing = \"keep\"\n",
    "[default]\n",
    "[direct]\n",
    "# \u{feff}ß",
    "\"\"\"",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn any_text_is_taken_or_refused_with_a_place_in_it(text in any::<String>()) {
        check(&text);
    }

    #[test]
    fn any_order_of_words_is_taken_or_refused_with_a_place_in_it(
        pieces in vec(select(&PIECES[..]), 0..24),
        cut in any::<prop::sample::Index>(),
    ) {
        let text = pieces.concat();
        check(&text);
        // An editor may be in the middle of writing.
        let cut = (0..=cut.index(text.len() + 1)).rev().find(|at| text.is_char_boundary(*at));
        check(&text[..cut.unwrap_or(0)]);
    }
}

fn check(text: &str) {
    match parse(&[("a.toml", text)]) {
        Ok(config) => {
            let names: std::collections::BTreeSet<_> =
                config.rules.iter().map(|rule| &rule.name).collect();
            assert_eq!(names.len(), config.rules.len());
            for rule in &config.rules {
                assert_ne!(rule.matches, lockne_core::rule::Match::default());
                for tunnel in rule.terms.tunnels() {
                    assert!(config.tunnel_of(tunnel).is_some(), "{tunnel}");
                }
            }
        }
        Err(error) => {
            assert!(!error.problems.is_empty());
            let lines: Vec<&str> = text.split('\n').collect();
            for problem in &error.problems {
                assert!(problem.line <= lines.len(), "{problem:?}");
                let line = lines[problem.line - 1];
                assert!(problem.column <= line.chars().count() + 1, "{problem:?}");
                assert!(!problem.message.is_empty());
            }
        }
    }
    let twice = [text, text].map(|text| Text {
        path: "a.toml".into(),
        text: text.to_owned(),
    });
    let _either = Config::parse(&twice);
}
