//! What `ip` shows, for a second opinion.

use std::collections::BTreeSet;

use lockne_core::plan::{Family, Rule, Verdict};
use serde_json::Value;

use crate::netns::ip;

pub(crate) fn everything_shown() -> String {
    let shown = [
        "-4 rule",
        "-6 rule",
        "-4 route show table all",
        "-6 route show table all",
    ]
    .map(ip)
    .concat();
    // The kernel makes those by itself, some time after a device is up.
    let lines = shown
        .lines()
        .filter(|line| !line.starts_with("local fe80:"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The rules with our protocol, put into our words from what `ip` found.
pub(crate) fn shown_rules() -> BTreeSet<String> {
    let mut rules = BTreeSet::new();
    for family in Family::ALL {
        for rule in json(&format!("-N -j {family} rule")) {
            if rule["protocol"] != "108" {
                continue;
            }
            let to = match (&rule["dst"], &rule["dstlen"]) {
                (Value::String(to), length) => format!("{to}/{length}").parse().unwrap(),
                _ => family.everything(),
            };
            let number = |name: &str| {
                let text = rule[name].as_str().unwrap();
                match text.strip_prefix("0x") {
                    Some(hex) => u32::from_str_radix(hex, 16).unwrap(),
                    None => text.parse().unwrap(),
                }
            };
            assert_eq!(rule["iif"], "lo");
            let rule = Rule {
                pref: rule["priority"].as_u64().unwrap().try_into().unwrap(),
                mark: number("fwmark"),
                mask: number("fwmask"),
                to,
                verdict: match rule["action"].as_str() {
                    Some(action) => {
                        assert!(["unreachable", "7"].contains(&action), "{action}");
                        Verdict::Unreachable
                    }
                    None => Verdict::Lookup(number("table")),
                },
            };
            rules.insert(format!("{family} {rule}"));
        }
    }
    rules
}

/// The routes with our protocol, put into our words from what `ip` found.
pub(crate) fn shown_routes() -> BTreeSet<String> {
    let mut routes = BTreeSet::new();
    for family in Family::ALL {
        for route in json(&format!("-j {family} route show table all proto 108")) {
            let word = |name: &str| route[name].as_str().unwrap_or_default();
            let device = match word("type") {
                "" => format!("{} dev {}", word("dst"), word("dev")),
                kind => format!("{kind} {}", word("dst")),
            };
            let (table, metric) = (word("table"), &route["metric"]);
            routes.insert(format!(
                "{family} {device} table {table} metric {metric} protocol 108"
            ));
        }
    }
    routes
}

fn json(arguments: &str) -> Vec<Value> {
    serde_json::from_str(&ip(arguments)).unwrap()
}
