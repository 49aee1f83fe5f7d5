//! Rules: which programs they mean, and the way they give them.

use std::ops::Range;

use toml::de::DeValue;

use super::{Whole, place};
use crate::{
    config::{
        problem::{list, nearest},
        value::{Reader, Table, Value, id, printable, shown},
    },
    policy::{Action, Terms},
    rule::{Existing, Match, Rule, RuleName, User},
    tunnel::TunnelName,
};

const MATCH: [&str; 6] = ["exe", "user", "unit", "cgroup", "flatpak", "snap"];
const RULE: [&str; 12] = [
    "name", "exe", "script", "user", "unit", "cgroup", "flatpak", "snap", "via", "lan", "dns",
    "existing",
];

impl Whole {
    pub(super) fn rule(
        &mut self,
        reader: &mut Reader<'_>,
        table: Table<'_>,
        at: Range<usize>,
        complete: bool,
    ) {
        let known = reader.check_keys(table, &RULE);
        let name = self.rule_name(reader, table, &at);
        let matches = matches(reader, table).filter(|_| known);
        if known && MATCH.iter().all(|key| table.get(key).is_none()) {
            let hint = format!(
                "say which by {}; what no rule matches is said below `[default]`",
                list(MATCH)
            );
            reader.problem(at.clone(), "this rule means no programs", Some(hint));
            return;
        }
        let existing = existing(reader, table);
        let terms = self.terms(reader, table, at.clone(), complete);
        refuse_kept(reader, table, terms.as_ref(), existing);
        refuse_script(reader, table, matches.as_ref(), terms.as_ref());
        let (Some(name), Some(matches)) = (name, matches) else {
            return;
        };
        if let Some(first) = self.matches.get(&matches) {
            let place = self.config.places.get(first);
            let place = place.map_or(String::new(), |place| format!(", at {place}"));
            let message =
                format!("rule `{name}` never decides: `{first}` means the same programs{place}");
            let hint = "the first rule that matches decides; remove one of them".to_owned();
            reader.problem(at, message, Some(hint));
            return;
        }
        self.matches.insert(matches.clone(), name.clone());
        if let Some(terms) = terms {
            self.config.rules.push(Rule {
                name,
                matches,
                terms,
                existing,
            });
        }
    }

    fn rule_name(
        &mut self,
        reader: &mut Reader<'_>,
        table: Table<'_>,
        at: &Range<usize>,
    ) -> Option<RuleName> {
        let Some(value) = table.get("name") else {
            let hint = "`name = \"…\"`: by it `lockne status` and `lockne rule remove` speak of it";
            reader.problem(at.clone(), "this rule has no `name`", Some(hint.to_owned()));
            return None;
        };
        let text = reader.string(value, "name")?;
        let name = match text.parse::<RuleName>() {
            Ok(name) => name,
            Err(error) => {
                reader.problem(value.span(), printable(&error.to_string()), None);
                return None;
            }
        };
        if name.as_str() == "default" {
            let hint = "what no rule matches is said below `[default]`".to_owned();
            let message = "a rule cannot be called `default`";
            reader.problem(value.span(), message, Some(hint));
            return None;
        }
        if let Some(first) = self.config.places.get(&name) {
            let message = format!("there is a rule `{name}` already, at {first}");
            let hint = "give it another name".to_owned();
            reader.problem(value.span(), message, Some(hint));
            return None;
        }
        let place = place(reader, value.span());
        self.config.places.insert(name.clone(), place);
        Some(name)
    }

    pub(super) fn terms(
        &mut self,
        reader: &mut Reader<'_>,
        table: Table<'_>,
        at: Range<usize>,
        complete: bool,
    ) -> Option<Terms> {
        let lan = reader.prefixes(table, "lan");
        let dns = reader.addresses(table, "dns");
        let Some(value) = table.get("via") else {
            let hint = "`via = \"TUNNEL\"`, `via = [\"FIRST\", \"SECOND\"]`, `via = \"direct\"` or \
                        `via = \"block\"`";
            let message = format!("{} has no `via`", table.what);
            reader.problem(at, message, Some(hint.to_owned()));
            return None;
        };
        let way = match value.get_ref() {
            DeValue::String(text) => Terms::new(match text.as_ref() {
                "direct" => Action::Direct,
                "block" => Action::Block,
                name => Action::Via(self.tunnel_name(reader, name, value.span(), complete)?),
            }),
            DeValue::Array(values) => self.order(reader, values, value.span(), complete)?,
            _ => {
                reader.wrong(value, "via", "a text in quotes, or a list of them");
                return None;
            }
        };
        if way.action == Action::Direct && !lan.is_empty() {
            let message =
                "`lan` says nothing with `via = \"direct\"`: everything is reached directly";
            reader.problem(table.key("lan"), message, Some("remove it".to_owned()));
        }
        if !matches!(way.action, Action::Via(_)) && !dns.is_empty() {
            let message = "`dns` is asked through a tunnel, and this uses none";
            reader.problem(table.key("dns"), message, Some("remove it".to_owned()));
        }
        Some(Terms { lan, dns, ..way })
    }

    /// Tunnels in an order of preference, with `direct` behind them or not.
    fn order(
        &mut self,
        reader: &mut Reader<'_>,
        values: &[Value<'_>],
        at: Range<usize>,
        complete: bool,
    ) -> Option<Terms> {
        if values.is_empty() {
            let message = "`via` is an empty list";
            let hint = "name a tunnel, or write `via = \"block\"`".to_owned();
            reader.problem(at, message, Some(hint));
            return None;
        }
        let mut names: Vec<TunnelName> = Vec::new();
        let mut or_direct = false;
        for (at, value) in values.iter().enumerate() {
            let text = reader.string(value, "via")?;
            if text == "direct" && at > 0 && at + 1 == values.len() {
                or_direct = true;
                continue;
            }
            if text == "direct" || text == "block" {
                let message = match text {
                    "direct" => "`direct` can only be the last of several in `via`",
                    _ => "`block` cannot be one of several in `via`",
                };
                let hint = match text {
                    "direct" if values.len() == 1 => "`via = \"direct\"` goes past every tunnel",
                    _ => {
                        "while none of the tunnels works, the program is silent; with `direct` \
                         behind them it goes past them then"
                    }
                };
                reader.problem(value.span(), message, Some(hint.to_owned()));
                return None;
            }
            let name = self.tunnel_name(reader, text, value.span(), complete)?;
            if names.contains(&name) {
                let message = format!("`via` names `{text}` twice");
                reader.problem(value.span(), message, None);
                return None;
            }
            names.push(name);
        }
        let mut names = names.into_iter();
        let first = names.next()?;
        Some(Terms {
            or: names.collect(),
            or_direct,
            ..Terms::new(Action::Via(first))
        })
    }

    /// The interface of the tunnel that `via` names.
    fn tunnel_name(
        &mut self,
        reader: &mut Reader<'_>,
        text: &str,
        at: Range<usize>,
        complete: bool,
    ) -> Option<TunnelName> {
        let known = self.tunnel_places.keys().map(TunnelName::as_str);
        let name = text.parse::<TunnelName>().ok();
        let name = name.filter(|name| self.tunnel_places.contains_key(name) || !complete);
        let Some(name) = name else {
            let mut words: Vec<_> = known.collect();
            words.extend(["direct", "block"]);
            let hint = match nearest(text, words.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if words.len() == 2 => {
                    format!("say what it is below `[tunnels.{}]`", shown(text))
                }
                None => format!("there are {}", list(words)),
            };
            let message = format!("there is no tunnel `{}`", shown(text));
            reader.problem(at, message, Some(hint));
            return None;
        };
        Some(self.config.interface(&name))
    }
}

fn matches(reader: &mut Reader<'_>, table: Table<'_>) -> Option<Match> {
    let before = reader.problems.len();
    let word =
        |reader: &mut Reader<'_>, key| reader.word(table, key).map(|(text, _)| text.to_owned());
    let matches = Match {
        exe: reader.path(table, "exe"),
        script: reader.bool(table, "script"),
        user: table.get("user").and_then(|value| user(reader, value)),
        unit: reader
            .word(table, "unit")
            .and_then(|(text, at)| unit(reader, text, at)),
        cgroup: reader.path(table, "cgroup"),
        flatpak: word(reader, "flatpak"),
        snap: word(reader, "snap"),
    };
    if matches.script && table.get("exe").is_none() {
        let message = "`script` says what `exe` is, and there is no `exe`";
        reader.problem(table.key("script"), message, None);
    }
    if table.get("flatpak").is_some() && table.get("snap").is_some() {
        let message = "no program is of a Flatpak and of a Snap";
        let hint = "every condition of a rule must hold; make two rules of it".to_owned();
        reader.problem(table.key("snap"), message, Some(hint));
    }
    (reader.problems.len() == before).then_some(matches)
}

fn unit(reader: &mut Reader<'_>, text: &str, at: Range<usize>) -> Option<String> {
    let kinds = ["service", "scope", "slice", "socket", "mount", "swap"];
    let is_unit = text
        .rsplit_once('.')
        .is_some_and(|(stem, kind)| !stem.is_empty() && kinds.contains(&kind));
    if text.contains('/') || !is_unit {
        let message = format!(
            "`unit` has `{}`: not the name of a systemd unit",
            shown(text)
        );
        let hint = format!("such as `{}.service`", shown(text.trim_matches('/')));
        reader.problem(at, message, Some(hint));
        return None;
    }
    Some(text.to_owned())
}

fn user(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<User> {
    match value.get_ref() {
        DeValue::String(name) if !name.is_empty() => Some(User::Name(name.to_string())),
        _ => {
            let id = id(value);
            if id.is_none() {
                reader.wrong(
                    value,
                    "user",
                    "a name in quotes or a number from 0 to 4294967295",
                );
            }
            id.map(User::Id)
        }
    }
}

/// A script of the same name elsewhere counts as this one. In a tunnel that costs little; past it, it is a leak.
fn refuse_script(
    reader: &mut Reader<'_>,
    table: Table<'_>,
    matches: Option<&Match>,
    terms: Option<&Terms>,
) {
    let is_script = matches.is_some_and(|matches| matches.script);
    let is_way_out = |terms: &Terms| terms.or_direct || terms.action == Action::Direct;
    if is_script && terms.is_some_and(is_way_out) {
        let message = "a script cannot be let past tunnels by a rule";
        let hint = "scripts are told by interpreter and name, and any other of this name would be let past \
                    too; start it with `lockne run --direct`";
        reader.problem(table.key("script"), message, Some(hint.to_owned()));
    }
}

/// A connection that was kept would go on past the tunnel then, with the tunnel's address.
pub(super) fn refuse_kept(
    reader: &mut Reader<'_>,
    table: Table<'_>,
    terms: Option<&Terms>,
    existing: Existing,
) {
    if existing == Existing::Keep && terms.is_some_and(|terms| terms.or_direct) {
        let message = "`existing = \"keep\"` does not go with `direct` behind tunnels";
        let hint = "a connection from a tunnel would go on past it; remove `existing`".to_owned();
        reader.problem(table.key("existing"), message, Some(hint));
    }
}

pub(super) fn existing(reader: &mut Reader<'_>, table: Table<'_>) -> Existing {
    let Some((text, at)) = reader.word(table, "existing") else {
        return Existing::default();
    };
    match text {
        "keep" => Existing::Keep,
        "reset" => Existing::Reset,
        _ => {
            let hint = "`keep` leaves connections on the way they are on, `reset` cuts them";
            let message = format!("`existing` has `{}`", shown(text));
            reader.problem(at, message, Some(hint.to_owned()));
            Existing::default()
        }
    }
}
