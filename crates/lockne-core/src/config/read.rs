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

use self::rule::{existing, refuse_kept};
use super::{
    Config, Error, Fallback, Place, Source, Text, Tunnel, Who,
    metrics::metrics,
    problem::Problem,
    value::{Reader, Table, id, shown},
};
use crate::{
    permission::Group,
    rule::{Match, RuleName, User},
    tunnel::TunnelName,
    wgquick::redact,
};

mod rule;

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
