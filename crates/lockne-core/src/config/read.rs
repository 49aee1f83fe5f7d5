//! From texts to a configuration.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    path::PathBuf,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Config, Error, Fallback, Place, Source, Text, Tunnel, Who,
    metrics::metrics,
    problem::{Problem, list, nearest},
    value::{Reader, Table, Value, id, printable, shown},
};
use crate::{
    permission::Group,
    policy::{Action, Terms},
    rule::{Existing, Match, Rule, RuleName, User},
    tunnel::TunnelName,
    wgquick::redact,
};

const TOP: [&str; 9] = [
    "tunnels",
    "rule",
    "default",
    "direct",
    "block",
    "attach",
    "switch",
    "own_tunnels",
    "metrics",
];
const TUNNEL: [&str; 8] = [
    "config",
    "interface",
    "dns",
    "lan",
    "probe",
    "users",
    "groups",
    "allow_hooks",
];
const MATCH: [&str; 6] = ["exe", "user", "unit", "cgroup", "flatpak", "snap"];
const RULE: [&str; 12] = [
    "name", "exe", "script", "user", "unit", "cgroup", "flatpak", "snap", "via", "lan", "dns",
    "existing",
];
const DEFAULT: [&str; 4] = ["via", "lan", "dns", "existing"];
const WHO: [&str; 2] = ["users", "groups"];

/// Reads all texts as one configuration.
pub(super) fn config(texts: &[Text]) -> Result<Config, Error> {
    let mut problems = Vec::new();
    let mut roots = Vec::new();
    for text in texts {
        match DeTable::parse(&text.text) {
            Ok(root) => roots.push((text, root)),
            Err(error) => {
                let at = error.span().unwrap_or_default();
                let message = error.message().replace('\n', ", ");
                let mut problem = Problem::new(text, at, message, None);
                if is_wgquick(text) {
                    // It holds a private key.
                    problem.quote = redact(&problem.quote).into_owned();
                    (problem.column, problem.width) = (1, 1);
                    problem.hint = Some(
                        "this looks like a wg-quick file; name it by `config = \"/path/to/it\"` below \
                         `[tunnels.NAME]`"
                            .to_owned(),
                    );
                }
                problems.push(problem);
            }
        }
    }
    let mut whole = Whole::default();
    // Tunnels first, as a rule may name one of a later file.
    for (text, root) in &roots {
        let problems = &mut problems;
        whole.tunnels(Reader { text, problems }, root);
    }
    let complete = roots.len() == texts.len();
    for (text, root) in &roots {
        let problems = &mut problems;
        whole.rest(Reader { text, problems }, root, complete);
    }
    if problems.is_empty() {
        return Ok(whole.config);
    }
    let order = |problem: &Problem| {
        let file = texts.iter().position(|text| text.path == problem.file);
        (file, problem.line, problem.column)
    };
    problems.sort_by_key(order);
    Err(Error { problems })
}

fn is_wgquick(text: &Text) -> bool {
    let mut lines = text.text.lines();
    lines.any(|line| line.trim().eq_ignore_ascii_case("[interface]"))
}

/// The configuration as far as it is read, with where things stand.
#[derive(Default)]
struct Whole {
    config: Config,
    tunnel_places: BTreeMap<TunnelName, Place>,
    /// Which file or interface belongs to which tunnel.
    sources: BTreeMap<PathBuf, TunnelName>,
    matches: HashMap<Match, RuleName>,
    once: BTreeMap<&'static str, Place>,
}

impl Whole {
    fn tunnels(&mut self, mut reader: Reader<'_>, root: &Spanned<DeTable<'_>>) {
        let Some(value) = root.get_ref().get("tunnels") else {
            return;
        };
        let Some(tunnels) = reader.table(value, "tunnels", "`[tunnels]`") else {
            return;
        };
        for (key, value) in tunnels.entries {
            let name = match key.get_ref().parse::<TunnelName>() {
                Ok(name) => name,
                Err(error) => {
                    let hint =
                        "a tunnel is called as its interface is: at most 15 letters, no blanks";
                    reader.problem(key.span(), error.to_string(), Some(hint.to_owned()));
                    continue;
                }
            };
            let place = place(&reader, key.span());
            if let Some(first) = self.tunnel_places.get(&name) {
                let message = format!("there is a tunnel `{name}` already, at {first}");
                reader.problem(key.span(), message, Some("give it another name".to_owned()));
                continue;
            }
            let Some(table) = reader.table(value, key.get_ref(), "a tunnel") else {
                continue;
            };
            // Known even if something in it is wrong: rules that name it are right.
            self.tunnel_places.insert(name.clone(), place);
            if let Some(tunnel) = self.tunnel(&mut reader, table, &name, key.span()) {
                self.config.tunnels.insert(name, tunnel);
            }
        }
    }

    fn tunnel(
        &mut self,
        reader: &mut Reader<'_>,
        table: Table<'_>,
        name: &TunnelName,
        at: Range<usize>,
    ) -> Option<Tunnel> {
        let known = reader.check_keys(table, &TUNNEL);
        let allow_hooks = reader.bool(table, "allow_hooks");
        let source = match (table.get("config"), table.get("interface")) {
            (Some(_), Some(_)) => {
                let message = format!("tunnel `{name}` has both `config` and `interface`");
                let hint = "with `config` lockne makes the interface itself; keep one of the two";
                reader.problem(table.key("interface"), message, Some(hint.to_owned()));
                None
            }
            // Maybe one of them is there, mistyped.
            (None, None) if !known => None,
            (None, None) => {
                let message = format!("tunnel `{name}` has neither `config` nor `interface`");
                let hint = "`config = \"/etc/wireguard/NAME.conf\"` for a wg-quick file, or \
                            `interface = \"tun0\"` for what somebody else makes";
                reader.problem(at.clone(), message, Some(hint.to_owned()));
                None
            }
            (Some(_), None) => reader
                .path(table, "config")
                .map(|path| Source::File { path, allow_hooks }),
            (None, Some(_)) => reader.word(table, "interface").and_then(|(text, at)| {
                if allow_hooks {
                    let message = "`allow_hooks` is for a wg-quick file, and this tunnel has none";
                    reader.problem(table.key("allow_hooks"), message, None);
                }
                match text.parse() {
                    Ok(interface) => Some(Source::Interface(interface)),
                    Err(error) => {
                        reader.problem(at, error.to_string(), None);
                        None
                    }
                }
            }),
        };
        if let Some(source) = &source {
            let (key, what) = match source {
                Source::File { path, .. } => (path.clone(), "config"),
                Source::Interface(it) => (PathBuf::from(it.as_str()), "interface"),
            };
            let value = table.get(what).map_or(at, Spanned::span);
            let interface = match source {
                Source::File { .. } => PathBuf::from(name.as_str()),
                Source::Interface(_) => key.clone(),
            };
            for key in BTreeSet::from([key, interface]) {
                if let Some(first) = self.sources.get(&key) {
                    let message = format!("tunnel `{first}` is `{}` too", key.display());
                    let hint =
                        "two names for one tunnel would be two sets of permissions; keep one";
                    reader.problem(value.clone(), message, Some(hint.to_owned()));
                } else {
                    self.sources.insert(key, name.clone());
                }
            }
        }
        let tunnel = Tunnel {
            dns: reader.addresses(table, "dns"),
            lan: reader.prefixes(table, "lan"),
            probe: reader.word(table, "probe").and_then(|(text, at)| {
                let address = text.parse().ok();
                if address.is_none() {
                    let message = format!("`probe` has `{}`: not an IP address", shown(text));
                    let hint =
                        "an address behind the tunnel that answers pings, such as its resolver";
                    reader.problem(at, message, Some(hint.to_owned()));
                }
                address
            }),
            who: who(reader, table),
            source: source?,
        };
        Some(tunnel)
    }

    /// Everything but the tunnels. Names of tunnels are looked up if all files could be read.
    fn rest(&mut self, mut reader: Reader<'_>, root: &Spanned<DeTable<'_>>, complete: bool) {
        let top = Table {
            entries: root.get_ref(),
            what: "the configuration",
            at: 0,
        };
        reader.check_keys(top, &TOP);
        if let Some(value) = top.get("rule") {
            if let DeValue::Array(rules) = value.get_ref() {
                for value in rules {
                    if let Some(table) = reader.table(value, "rule", "a rule") {
                        self.rule(&mut reader, table, value.span(), complete);
                    }
                }
            } else {
                let hint = "write `[[rule]]` with two brackets".to_owned();
                reader.problem(top.key("rule"), "`rule` is not a list", Some(hint));
            }
        }
        if let Some(value) = top.get("default")
            && let Some(table) = reader.table(value, "default", "`[default]`")
            && self.first(&mut reader, "default", top.key("default"))
        {
            reader.check_keys(table, &DEFAULT);
            let existing = existing(&mut reader, table);
            let terms = self.terms(&mut reader, table, top.key("default"), complete);
            refuse_kept(&mut reader, table, terms.as_ref(), existing);
            self.config.default = terms.map(|terms| Fallback { terms, existing });
        }
        if let Some(value) = top.get("metrics")
            && let Some(table) = reader.table(value, "metrics", "`[metrics]`")
            && self.first(&mut reader, "metrics", top.key("metrics"))
        {
            self.config.metrics = metrics(&mut reader, table);
        }
        for key in ["direct", "block", "attach", "switch", "own_tunnels"] {
            if let Some(value) = top.get(key)
                && let Some(table) = reader.table(value, key, "a permission")
                && self.first(&mut reader, key, top.key(key))
            {
                reader.check_keys(table, &WHO);
                let who = who(&mut reader, table);
                match key {
                    "direct" => self.config.direct = who,
                    "block" => self.config.block = who,
                    "attach" => self.config.attach = who,
                    "switch" => self.config.switch = who,
                    _ => self.config.own_tunnels = who,
                }
            }
        }
    }

    /// Whether this is the first file with that table.
    fn first(&mut self, reader: &mut Reader<'_>, key: &'static str, at: Range<usize>) -> bool {
        if let Some(first) = self.once.get(key) {
            let message = format!("there is a `[{key}]` already, at {first}");
            reader.problem(at, message, Some("keep one of them".to_owned()));
            return false;
        }
        self.once.insert(key, place(reader, at));
        true
    }

    fn rule(
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

    fn terms(
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
fn refuse_kept(
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

fn existing(reader: &mut Reader<'_>, table: Table<'_>) -> Existing {
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

fn who(reader: &mut Reader<'_>, table: Table<'_>) -> Who {
    let mut who = Who::default();
    for key in WHO {
        let Some(value) = table.get(key) else {
            continue;
        };
        let values = match value.get_ref() {
            DeValue::String(text) if text == "all" && key == "users" => {
                who.all = true;
                continue;
            }
            DeValue::Array(values) => values,
            _ => {
                let wanted = if key == "users" {
                    "a list of names or numbers, or \"all\""
                } else {
                    "a list of names or numbers"
                };
                reader.wrong(value, key, wanted);
                continue;
            }
        };
        for value in values {
            let name = match value.get_ref() {
                DeValue::String(name) if !name.is_empty() => Some(name.to_string()),
                _ => None,
            };
            match (name, id(value)) {
                (Some(name), _) if key == "users" => drop(who.users.insert(User::Name(name))),
                (None, Some(id)) if key == "users" => drop(who.users.insert(User::Id(id))),
                (Some(name), _) => drop(who.groups.insert(Group::Name(name))),
                (None, Some(id)) => drop(who.groups.insert(Group::Id(id))),
                (None, None) => reader.wrong(value, key, "a list of names or numbers"),
            }
        }
    }
    who
}

fn place(reader: &Reader<'_>, at: Range<usize>) -> Place {
    let problem = Problem::new(reader.text, at, String::new(), None);
    Place {
        file: problem.file,
        line: problem.line,
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}
