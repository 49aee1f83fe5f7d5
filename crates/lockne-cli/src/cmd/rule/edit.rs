//! Changes the file of the rules, and nothing in it but the rule that is meant.

use std::{
    fs, io,
    io::Write as _,
    ops::Range,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use lockne_core::{
    config::{Config, Text},
    rule::RuleName,
};
use toml_edit::{Array, Document, Item, Table, Value, value};

use super::{Add, ExistingArg, File, load, wrong};
use crate::{
    failure::{Failure, Result},
    output,
};

/// Adds a rule to the main file.
pub(super) fn add(args: &Add) -> Result<()> {
    let name = parse(&args.name)?;
    let files = args.file.files();
    let mut texts = files
        .clone()
        .or_nothing()
        .read()
        .map_err(|error| wrong(&error, &files))?;
    if texts.first().is_none_or(|text| text.path != files.main()) {
        let empty = Text {
            path: files.main().to_owned(),
            text: String::new(),
        };
        texts.insert(0, empty);
    }
    let block = block(&name, args)?;
    // Where an earlier mistake is, positions mean nothing.
    let before = Config::parse(&texts);
    before.map_err(|error| wrong(&lockne_daemon::config::Error::Wrong(error), &files))?;
    let number = match &args.before {
        None => 0,
        Some(next) => find(&texts, &parse(next)?)?.0,
    };
    let rules = rules(&texts[number])?;
    let at = match &args.before {
        Some(next) => {
            let rule = rules.iter().find(|rule| rule.name == *next);
            rule.map_or(0, |rule| rule.range.start)
        }
        None => rules
            .last()
            .map_or(texts[number].text.len(), |rule| rule.range.end),
    };
    let text = &mut texts[number];
    let (head, tail) = text.text.split_at(at);
    let mut new = head.to_owned();
    if !new.is_empty() {
        if !new.ends_with('\n') {
            new.push('\n');
        }
        if !new.ends_with("\n\n") {
            new.push('\n');
        }
    }
    new += &block;
    if !tail.is_empty() && !tail.starts_with('\n') {
        new.push('\n');
    }
    new += tail;
    text.text = new;
    let config = Config::parse(&texts).map_err(|error| {
        Failure::new(format!(
            "rule `{name}` would not be right; nothing was changed"
        ))
        .lines(error.to_string())
    })?;
    write(&texts[number])?;
    output::line(&format!(
        "rule `{name}` is in `{}`",
        texts[number].path.display()
    ))?;
    let added = config.rules.iter().find(|rule| rule.name == name);
    if let Some(exe) = added.and_then(|rule| rule.matches.exe.as_ref()) {
        if !exe.exists() {
            output::notice(&format!("`{}` is not there yet", exe.display()));
        } else if !args.programs.script && super::test::interpreter(exe).is_some() {
            output::notice(&format!(
                "`{}` is a script: what is executed is its interpreter, so this rule needs `--script`",
                exe.display()
            ));
        }
    }
    Ok(())
}

/// Removes a rule from the file that has it.
pub(super) fn remove(name: &str, file: &File) -> Result<()> {
    let name = parse(name)?;
    let files = file.files();
    load(&files)?;
    let mut texts = files.read().map_err(|error| wrong(&error, &files))?;
    let (number, range) = find(&texts, &name)?;
    let text = &mut texts[number];
    let (head, tail) = (&text.text[..range.start], &text.text[range.end..]);
    // One empty line between what is left, not two.
    let tail = match tail.strip_prefix('\n') {
        Some(rest) if head.is_empty() || head.ends_with("\n\n") => rest,
        _ => tail,
    };
    let head = if tail.is_empty() {
        head.strip_suffix('\n')
            .filter(|it| it.ends_with('\n'))
            .unwrap_or(head)
    } else {
        head
    };
    text.text = format!("{head}{tail}");
    Config::parse(&texts).map_err(|error| {
        Failure::new(format!(
            "without rule `{name}` the configuration would not be right; nothing was changed"
        ))
        .lines(error.to_string())
    })?;
    write(&texts[number])?;
    output::line(&format!(
        "rule `{name}` is no longer in `{}`",
        texts[number].path.display()
    ))
}

fn parse(name: &str) -> Result<RuleName> {
    name.parse()
        .map_err(|error| Failure::new("this cannot be the name of a rule").because(&error))
}

/// A rule in a text: with the comments right above it, to the end of its last line.
struct Found {
    name: String,
    range: Range<usize>,
}

fn rules(text: &Text) -> Result<Vec<Found>> {
    let by_hand = |why: &str| {
        Failure::new(format!("cannot edit `{}`", text.path.display()))
            .why(why)
            .hint("change it by hand")
    };
    let document = Document::parse(text.text.as_str()).map_err(|error| by_hand(error.message()))?;
    let Some(item) = document.as_table().get("rule") else {
        return Ok(Vec::new());
    };
    let tables = item
        .as_array_of_tables()
        .ok_or_else(|| by_hand("its rules are not written as `[[rule]]`"))?;
    let mut found = Vec::new();
    for table in tables {
        let name = table.get("name").and_then(Item::as_str);
        let spans = table.iter().filter_map(|(_, item)| item.span());
        let end = spans.map(|span| span.end).max();
        let (Some(name), Some(header), Some(end)) = (name, table.span(), end) else {
            return Err(by_hand("a rule in it has no place"));
        };
        found.push(Found {
            name: name.to_owned(),
            range: lines(&text.text, header.start..end.max(header.end)),
        });
    }
    Ok(found)
}

/// Whole lines, with the comments right above them.
fn lines(text: &str, range: Range<usize>) -> Range<usize> {
    let mut start = text[..range.start].rfind('\n').map_or(0, |at| at + 1);
    while let Some(above) = text[..start].strip_suffix('\n') {
        let begin = above.rfind('\n').map_or(0, |at| at + 1);
        if !above[begin..].trim_start().starts_with('#') {
            break;
        }
        start = begin;
    }
    let end = text[range.end..]
        .find('\n')
        .map_or(text.len(), |at| range.end + at + 1);
    start..end
}

/// The file that has a rule, and where.
fn find(texts: &[Text], name: &RuleName) -> Result<(usize, Range<usize>)> {
    let mut known = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        for rule in rules(text)? {
            if rule.name == name.as_str() {
                return Ok((number, rule.range));
            }
            known.push(rule.name);
        }
    }
    let failure = Failure::new(format!("there is no rule `{name}`"));
    Err(if known.is_empty() {
        failure.hint("there are no rules")
    } else {
        failure.hint(format!("there are: {}", known.join(", ")))
    })
}

/// The rule as the file will have it.
fn block(name: &RuleName, args: &Add) -> Result<String> {
    let mut table = Table::new();
    table.insert("name", value(name.as_str()));
    let programs = &args.programs;
    if let Some(exe) = &programs.exe {
        table.insert("exe", text(&executable(exe)?)?);
    }
    if programs.script {
        table.insert("script", value(true));
    }
    if let Some(user) = &programs.user {
        let user = user
            .parse::<u32>()
            .map_or_else(|_| value(user), |id| value(i64::from(id)));
        table.insert("user", user);
    }
    let words = [
        ("unit", &programs.unit),
        ("flatpak", &programs.flatpak),
        ("snap", &programs.snap),
    ];
    for (key, word) in words {
        if let Some(word) = word {
            table.insert(key, value(word));
        }
    }
    if let Some(cgroup) = &programs.cgroup {
        table.insert("cgroup", text(cgroup)?);
    }
    let via = match &args.action.via[..] {
        [] if args.action.direct => value("direct"),
        [] => value("block"),
        [one] => value(one),
        many => list(many),
    };
    table.insert("via", via);
    if !args.lan.is_empty() {
        table.insert("lan", list(&args.lan));
    }
    if !args.dns.is_empty() {
        table.insert("dns", list(&args.dns));
    }
    match args.existing {
        Some(ExistingArg::Keep) => drop(table.insert("existing", value("keep"))),
        Some(ExistingArg::Reset) => drop(table.insert("existing", value("reset"))),
        None => {}
    }
    Ok(format!("[[rule]]\n{table}"))
}

fn list<T: ToString>(items: &[T]) -> Item {
    let items = items.iter().map(ToString::to_string);
    Item::Value(Value::Array(items.collect::<Array>()))
}

fn text(path: &Path) -> Result<Item> {
    let text = path.to_str().ok_or_else(|| {
        Failure::new(format!("`{}` is not UTF-8 text", path.display()))
            .why("a configuration can name only what is")
    })?;
    Ok(value(text))
}

/// The whole path of a program that may be given as a word for PATH. Links stay: what they lead to may change.
pub(super) fn executable(program: &Path) -> Result<PathBuf> {
    if program.components().count() == 1 && !program.has_root() {
        return which::which(program).map_err(|_| {
            Failure::new(format!("there is no program `{}`", program.display()))
                .hint("is it spelt right, and in a directory of PATH? Else give its full path")
        });
    }
    std::path::absolute(program)
        .map_err(|error| Failure::new("cannot tell the whole path").because(&error))
}

/// Puts the text in the place of the file as a whole: whoever reads it sees the old one or the new one.
fn write(text: &Text) -> Result<()> {
    // A link stays one: its target is replaced.
    let path = text
        .path
        .canonicalize()
        .unwrap_or_else(|_| text.path.clone());
    let failed = |error: io::Error| {
        let failure = Failure::new(format!("cannot write `{}`", path.display())).because(&error);
        if error.kind() == io::ErrorKind::PermissionDenied {
            failure.hint("run it with sudo")
        } else {
            failure
        }
    };
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(failed)?;
    let mut file = tempfile::Builder::new()
        .prefix(".lockne-")
        .tempfile_in(directory)
        .map_err(failed)?;
    file.write_all(text.text.as_bytes()).map_err(failed)?;
    let mode = match fs::metadata(&path) {
        Ok(old) => {
            let owner = (Some(old.uid()), Some(old.gid()));
            std::os::unix::fs::fchown(file.as_file(), owner.0, owner.1).map_err(failed)?;
            old.permissions()
        }
        Err(_) => fs::Permissions::from_mode(0o644),
    };
    file.as_file().set_permissions(mode).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&path).map_err(|error| failed(error.error))?;
    Ok(())
}
