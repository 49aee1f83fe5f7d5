//! Which policy stands for which rule, and how a change of the rules gets by with few changes of policies.
//!
//! Rules with the same terms share a policy. When rules get other terms, their policy gets these in its place
//! where that means the same for every program under it: then all of them move at once, in the kernel's own
//! tables. Else the rules get another policy, and the programs are moved to it one by one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Config;
use crate::{
    policy::{PolicyId, Terms},
    rule::{Existing, RuleName},
};

/// A rule by its name, or the default.
pub type Key = Option<RuleName>;

/// The policies that rules have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// The policy of each rule.
    pub rules: Vec<(Key, PolicyId)>,
    /// Every policy that was made for rules, even if none has it now: programs may.
    pub made: BTreeSet<PolicyId>,
    /// Those under which there may be programs of a rule that has another policy now, or is gone. Their terms
    /// stay what they are.
    pub mixed: BTreeSet<PolicyId>,
}

/// What has to change for a new configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Policies that get other terms in their place; connections under them are cut.
    pub moved: BTreeMap<PolicyId, Terms>,
    /// Policies that are new, with numbers that were free.
    pub new: BTreeMap<PolicyId, Terms>,
    /// What holds after it.
    pub assigned: Assigned,
}

/// The terms of each rule and of the default, in their order.
fn wanted(config: &Config) -> impl Iterator<Item = (Key, &Terms, Existing)> {
    let rules = config.rules.iter();
    let rules = rules.map(|rule| (Some(rule.name.clone()), &rule.terms, rule.existing));
    let default = config.default.iter();
    rules.chain(default.map(|default| (None, &default.terms, default.existing)))
}

/// Works out the change from what is assigned to `config`.
///
/// `policies` are all there are. Returns `None` if `free` has too few numbers.
#[must_use]
pub fn change(
    assigned: &Assigned,
    policies: &BTreeMap<PolicyId, Terms>,
    config: &Config,
    free: impl IntoIterator<Item = PolicyId>,
) -> Option<Change> {
    let mut free = free.into_iter();
    let mut by_terms: BTreeMap<&Terms, PolicyId> = BTreeMap::new();
    for id in &assigned.made {
        if let Some(terms) = policies.get(id) {
            by_terms.entry(terms).or_insert(*id);
        }
    }
    let mut users: BTreeMap<PolicyId, Vec<&Key>> = BTreeMap::new();
    for (key, id) in &assigned.rules {
        users.entry(*id).or_default().push(key);
    }
    let now: BTreeMap<Key, (&Terms, Existing)> = wanted(config)
        .map(|(key, terms, existing)| (key, (terms, existing)))
        .collect();
    let mut change = Change::default();
    let before: BTreeMap<&Key, PolicyId> =
        assigned.rules.iter().map(|(key, id)| (key, *id)).collect();
    let still: BTreeSet<&Terms> = now.values().map(|(terms, _)| *terms).collect();
    // What all rules of a policy want alike, while nobody wants what it says now.
    let alike = |id: &PolicyId| {
        let users = users.get(id)?;
        let (terms, _) = now.get(*users.first()?)?;
        let all = users
            .iter()
            .all(|key| now.get(*key) == Some(&(*terms, Existing::Reset)));
        let is_wanted = policies.get(id).is_none_or(|old| still.contains(old));
        (all && !is_wanted && !assigned.mixed.contains(id)).then_some(*terms)
    };
    for (key, terms, _) in wanted(config) {
        let id = if let Some(id) = by_terms.get(terms) {
            *id
        } else if let Some(id) = before.get(&key).filter(|id| alike(id) == Some(terms)) {
            change.moved.insert(*id, terms.clone());
            by_terms.insert(terms, *id);
            *id
        } else {
            let id = free.next()?;
            change.new.insert(id, terms.clone());
            by_terms.insert(terms, id);
            id
        };
        change.assigned.rules.push((key, id));
    }
    change.assigned.made = &assigned.made | &change.new.keys().copied().collect();
    change.assigned.mixed.clone_from(&assigned.mixed);
    let after: BTreeSet<&(Key, PolicyId)> = change.assigned.rules.iter().collect();
    let left = assigned.rules.iter().filter(|it| !after.contains(it));
    change.assigned.mixed.extend(left.map(|(_, id)| *id));
    Some(change)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::config::Text;

    fn id(number: u8) -> PolicyId {
        PolicyId(number.try_into().unwrap())
    }

    /// A configuration of rules with their `via`; a dot behind it keeps connections.
    fn config(rules: &[(&str, &str)]) -> Config {
        let mut text = String::from(
            "[tunnels.a]\ninterface = \"a\"\n[tunnels.b]\ninterface = \"b\"\n\
             [tunnels.c]\ninterface = \"c\"\n",
        );
        for (name, via) in rules {
            let (via, existing) = via
                .strip_suffix('.')
                .map_or((*via, "reset"), |it| (it, "keep"));
            let rule = format!(
                "[[rule]]\nname = \"{name}\"\nexe = \"/{name}\"\nvia = \"{via}\"\nexisting = \"{existing}\"\n"
            );
            text.push_str(&rule);
        }
        let path = "x".into();
        Config::parse(&[Text { path, text }]).unwrap()
    }

    /// Assigns one configuration after the other; returns the last change and all policies.
    fn history(configs: &[Config]) -> (Change, BTreeMap<PolicyId, Terms>) {
        let mut policies = BTreeMap::new();
        let mut last = Change::default();
        for config in configs {
            let free = (1..=255).map(id).filter(|it| !policies.contains_key(it));
            let free: Vec<_> = free.collect();
            last = change(&last.assigned, &policies, config, free).unwrap();
            policies.extend(last.new.clone());
            policies.extend(last.moved.clone());
        }
        (last, policies)
    }

    #[test]
    fn rules_with_the_same_terms_share_a_policy() {
        let (change, policies) = history(&[config(&[("x", "a"), ("y", "b"), ("z", "a")])]);

        assert_eq!(policies.len(), 2);
        assert_eq!(change.assigned.rules[0].1, change.assigned.rules[2].1);
    }

    #[test]
    fn policy_whose_rules_all_move_gets_other_terms_in_its_place() {
        let (change, policies) = history(&[
            config(&[("x", "a"), ("z", "a")]),
            config(&[("x", "b"), ("z", "b")]),
        ]);

        assert_eq!(change.moved.keys().copied().collect::<Vec<_>>(), [id(1)]);
        assert!(change.new.is_empty() && policies.len() == 1);
    }

    #[test]
    fn rule_that_moves_alone_gets_another_policy() {
        let (change, _) = history(&[
            config(&[("x", "a"), ("z", "a")]),
            config(&[("x", "b"), ("z", "a")]),
        ]);

        assert!(change.moved.is_empty());
        assert_eq!(change.assigned.rules[0].1, id(2));
        assert_eq!(change.assigned.rules[1].1, id(1));
    }

    #[test]
    fn connections_that_are_kept_keep_their_policy() {
        let (change, _) = history(&[config(&[("x", "a.")]), config(&[("x", "b.")])]);

        assert!(change.moved.is_empty());
        assert_eq!(change.assigned.rules[0].1, id(2));
    }

    #[test]
    fn programs_of_a_rule_that_is_gone_are_not_moved_with_others() {
        let (change, _) = history(&[
            config(&[("x", "a"), ("z", "a")]),
            config(&[("x", "a")]),
            config(&[("x", "b")]),
        ]);

        assert!(change.moved.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

        /// Programs are never moved to what no rule of theirs says.
        #[test]
        fn any_history_gives_each_rule_its_terms_and_moves_no_strangers(
            steps in vec(vec((0..5_usize, 0..7_usize), 0..6), 1..8)
        ) {
            const RULES: [&str; 5] = ["p", "q", "r", "s", "t"];
            const VIAS: [&str; 7] = ["a", "b", "c", "direct", "block", "a.", "b."];
            let mut policies: BTreeMap<PolicyId, Terms> = BTreeMap::new();
            let mut assigned = Assigned::default();
            // The policy that a program has which was started under a rule and never moved since.
            let mut settled: BTreeMap<(PolicyId, Key), Terms> = BTreeMap::new();
            for step in steps {
                let rules: BTreeMap<_, _> = step.into_iter().collect();
                let rules: Vec<_> = rules.iter().map(|(name, via)| (RULES[*name], VIAS[*via])).collect();
                let config = config(&rules);
                let free: Vec<_> = (1..=255).map(id).filter(|it| !policies.contains_key(it)).collect();
                let change = change(&assigned, &policies, &config, free).unwrap();
                for (id, key) in settled.keys() {
                    if let Some(terms) = change.moved.get(id) {
                        let rule = config.rules.iter().find(|rule| Some(&rule.name) == key.as_ref());
                        prop_assert_eq!(rule.map(|rule| &rule.terms), Some(terms));
                    }
                }
                policies.extend(change.new);
                policies.extend(change.moved);
                assigned = change.assigned;
                for (rule, (key, id)) in config.rules.iter().zip(&assigned.rules) {
                    prop_assert_eq!(Some(&rule.name), key.as_ref());
                    prop_assert_eq!(&policies[id], &rule.terms);
                    settled.insert((*id, key.clone()), rule.terms.clone());
                }
            }
        }
    }
}
