//! `lockne.toml`: each problem has a place in the text, and what is taken can be assigned.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU8,
};

use libfuzzer_sys::fuzz_target;
use lockne_core::{
    config::{
        Config, Text,
        assign::{self, Assigned},
    },
    policy::PolicyId,
    rule::Match,
};

fuzz_target!(|text: &str| {
    let file = Text {
        path: "a.toml".into(),
        text: text.to_owned(),
    };
    match Config::parse(std::slice::from_ref(&file)) {
        Ok(config) => {
            let names: BTreeSet<_> = config.rules.iter().map(|rule| &rule.name).collect();
            assert_eq!(names.len(), config.rules.len());
            for rule in &config.rules {
                assert_ne!(rule.matches, Match::default(), "a rule for everything");
                for tunnel in rule.terms.tunnels() {
                    assert!(config.tunnel_of(tunnel).is_some());
                }
            }
            let free = (1..=255).filter_map(NonZeroU8::new).map(PolicyId);
            let none = BTreeMap::new();
            let _change = assign::change(&Assigned::default(), &none, &config, free);
        }
        Err(error) => {
            assert!(!error.problems.is_empty());
            let lines: Vec<&str> = text.split('\n').collect();
            for problem in &error.problems {
                let line = lines[problem.line - 1];
                assert!(problem.column <= line.chars().count() + 1, "{problem:?}");
                assert!(!problem.message.is_empty());
            }
        }
    }
});
