//! Values of the right kind, or a problem where they stand.

use std::{collections::BTreeSet, net::IpAddr, ops::Range, path::PathBuf, str::FromStr};

use ipnet::IpNet;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Text,
    problem::{Problem, list, nearest},
};

/// A value with its place.
pub(super) type Value<'i> = Spanned<DeValue<'i>>;

/// A file, and what was found wrong in it.
pub(super) struct Reader<'a> {
    pub(super) text: &'a Text,
    pub(super) problems: &'a mut Vec<Problem>,
}

/// A table of a file.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    pub(super) entries: &'a DeTable<'a>,
    /// What to call it in a sentence.
    pub(super) what: &'static str,
    /// Where it begins.
    pub(super) at: usize,
}

impl<'a> Table<'a> {
    pub(super) fn get(self, key: &str) -> Option<&'a Value<'a>> {
        self.entries.get(key)
    }

    /// The span of a key that is there.
    pub(super) fn key(self, key: &str) -> Range<usize> {
        let found = self.entries.get_key_value(key);
        found.map_or(self.at..self.at, |(key, _)| key.span())
    }
}

impl Reader<'_> {
    pub(super) fn problem(
        &mut self,
        at: Range<usize>,
        message: impl Into<String>,
        hint: Option<String>,
    ) {
        let problem = Problem::new(self.text, at, message.into(), hint);
        self.problems.push(problem);
    }

    /// Whatever is not one of `known` is a problem; returns whether there is none.
    pub(super) fn check_keys(&mut self, table: Table<'_>, known: &[&str]) -> bool {
        let mut all = true;
        for key in table.entries.keys() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            all = false;
            let hint = match nearest(name, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are {}", list(known.iter().copied())),
            };
            let message = format!("`{}` is not a key of {}", shown(name), table.what);
            self.problem(key.span(), message, Some(hint));
        }
        all
    }

    /// A wrong kind of value.
    pub(super) fn wrong(&mut self, value: &Value<'_>, key: &str, wanted: &str) {
        let message = format!("`{key}` is {}, and has to be {wanted}", kind(value));
        self.problem(value.span(), message, None);
    }

    pub(super) fn table<'a>(
        &mut self,
        value: &'a Value<'a>,
        key: &str,
        what: &'static str,
    ) -> Option<Table<'a>> {
        if let DeValue::Table(entries) = value.get_ref() {
            return Some(Table {
                entries,
                what,
                at: value.span().start,
            });
        }
        self.wrong(value, key, "a table");
        None
    }

    pub(super) fn string<'a>(&mut self, value: &'a Value<'a>, key: &str) -> Option<&'a str> {
        if let DeValue::String(text) = value.get_ref() {
            return Some(text);
        }
        self.wrong(value, key, "a text in quotes");
        None
    }

    pub(super) fn bool(&mut self, table: Table<'_>, key: &str) -> bool {
        let Some(value) = table.get(key) else {
            return false;
        };
        if let DeValue::Boolean(it) = value.get_ref() {
            return *it;
        }
        self.wrong(value, key, "`true` or `false`");
        false
    }

    /// A text that is not empty, if the key is there.
    pub(super) fn word<'a>(
        &mut self,
        table: Table<'a>,
        key: &str,
    ) -> Option<(&'a str, Range<usize>)> {
        let value = table.get(key)?;
        let text = self.string(value, key)?;
        if text.is_empty() || text.contains(char::is_control) {
            let message = if text.is_empty() {
                format!("`{key}` is empty")
            } else {
                format!("`{key}` has a character that cannot be printed")
            };
            self.problem(value.span(), message, None);
            return None;
        }
        Some((text, value.span()))
    }

    /// A path from the root, without steps back.
    pub(super) fn path(&mut self, table: Table<'_>, key: &str) -> Option<PathBuf> {
        let (text, at) = self.word(table, key)?;
        if !text.starts_with('/') {
            let hint = if text.starts_with('~') {
                "lockne does not know whose home `~` is; write the path from `/` on"
            } else {
                "write the whole path from `/` on"
            };
            let message = format!("`{key}` has the relative path `{text}`");
            self.problem(at, message, Some(hint.to_owned()));
            return None;
        }
        if text.split('/').any(|step| step == "." || step == "..") {
            let message = format!("`{key}` has the path `{text}` with `.` or `..` in it");
            let hint = "write the path without them".to_owned();
            self.problem(at, message, Some(hint));
            return None;
        }
        Some(PathBuf::from(text))
    }

    /// A list of texts, or one alone, each read by `read`.
    pub(super) fn list<T: Ord>(
        &mut self,
        table: Table<'_>,
        key: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let mut items = Vec::new();
        let Some(value) = table.get(key) else {
            return items;
        };
        let DeValue::Array(values) = value.get_ref() else {
            self.wrong(value, key, "a list such as `[\"…\"]`");
            return items;
        };
        for value in values {
            let Some(text) = self.string(value, key) else {
                continue;
            };
            match read(text) {
                Ok(item) if items.contains(&item) => {
                    let message = format!("`{key}` names `{}` twice", shown(text));
                    self.problem(value.span(), message, None);
                }
                Ok(item) => items.push(item),
                Err(why) => {
                    let message = format!("`{key}` has `{}`: {why}", shown(text));
                    self.problem(value.span(), message, None);
                }
            }
        }
        items
    }

    pub(super) fn addresses(&mut self, table: Table<'_>, key: &str) -> Vec<IpAddr> {
        self.list(table, key, |text| {
            text.parse()
                .map_err(|_| "not an IP address, such as `10.8.0.1` or `fd00::1`".to_owned())
        })
    }

    pub(super) fn prefixes(&mut self, table: Table<'_>, key: &str) -> BTreeSet<IpNet> {
        let read = |text: &str| {
            let prefix = IpNet::from_str(text).ok();
            let address = || IpAddr::from_str(text).ok().map(IpNet::from);
            match prefix.or_else(address) {
                None => Err("not a prefix such as `192.168.1.0/24` or `fd00::/8`".to_owned()),
                Some(it) if it.prefix_len() == 0 => {
                    Err("this is everything, so the tunnel would carry nothing".to_owned())
                }
                Some(it) => Ok(it.trunc()),
            }
        };
        self.list(table, key, read).into_iter().collect()
    }
}

/// What kind of value this is, for a sentence.
pub(super) fn kind(value: &Value<'_>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "`true` or `false`",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// `text` without what would move the cursor of a terminal.
pub(super) fn printable(text: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(printable).collect()
}

/// A text of the file for a sentence: short and printable.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = printable(text).chars().take(80).collect();
    if shown.len() < text.len() && shown.chars().count() == 80 {
        shown.push('…');
    }
    shown
}

/// A whole number that can be the id of a user or a group.
pub(super) fn id(value: &Value<'_>) -> Option<u32> {
    match value.get_ref() {
        DeValue::Integer(number) => {
            let digits = number.as_str();
            u32::from_str_radix(digits, number.radix()).ok()
        }
        _ => None,
    }
}
