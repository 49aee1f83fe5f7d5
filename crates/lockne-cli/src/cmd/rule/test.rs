//! `lockne rule test`: which rule would decide, and why.

use std::{
    ffi::OsStr,
    fs,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use lockne_core::{
    api::RuleStatus,
    config::{Config, Program},
};
use serde::Serialize;

use super::{Test, edit, load};
use crate::{
    failure::{Failure, Result},
    output::{self, FAINT, GOOD, STRONG},
};

/// What `--json` prints.
#[derive(Serialize)]
struct Answer {
    exe: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    script: Option<PathBuf>,
    uid: u32,
    /// The rule that decides.
    rule: Option<RuleStatus>,
    /// Whether the default of the configuration decides.
    default: bool,
    /// Rules that do not mean the program, and why.
    missed: Vec<Missed>,
}

#[derive(Serialize)]
struct Missed {
    rule: String,
    why: String,
}

pub(super) fn test(args: &Test) -> Result<()> {
    let config = load(&args.file.files())?;
    let program = program(args)?;
    let called = args.program.file_name();
    let (rule, missed) = config.decide(&program, |path| meant(path, &program, called));
    let answer = Answer {
        rule: rule.map(|rule| RuleStatus::new(&config, rule, None)),
        default: rule.is_none() && config.default.is_some(),
        missed: missed
            .into_iter()
            .map(|(rule, miss)| Missed {
                rule: rule.name.to_string(),
                why: miss.to_string(),
            })
            .collect(),
        exe: program.exe.clone(),
        script: program.script.clone(),
        uid: program.uid,
    };
    if args.json.json {
        return output::json(&answer);
    }
    print(&config, &program, &answer)
}

/// The file that a rule means: by device and inode, as the kernel has it, so by any name. Of a script the kernel
/// knows the name by which it is called, and the interpreter.
fn meant(path: &Path, program: &Program, called: Option<&OsStr>) -> Option<PathBuf> {
    let end = path.canonicalize().ok()?;
    let is_same = |other: &Path| {
        let identity = |path: &Path| {
            Some((
                fs::metadata(path).ok()?.dev(),
                fs::metadata(path).ok()?.ino(),
            ))
        };
        identity(other).is_some() && identity(other) == identity(&end)
    };
    if is_same(&program.exe) {
        return Some(program.exe.clone());
    }
    if let Some(script) = &program.script
        && interpreter(&end).as_ref() == Some(&program.exe)
    {
        let is_called = [path.file_name(), end.file_name()].contains(&called);
        // A name that is no file's, so that the rule misses.
        return Some(if is_called {
            script.clone()
        } else {
            path.with_file_name("")
        });
    }
    Some(end)
}

fn print(config: &Config, program: &Program, answer: &Answer) -> Result<()> {
    let user = program.user.clone();
    let user = user.unwrap_or_else(|| program.uid.to_string());
    let what = match &program.script {
        Some(script) => format!(
            "{} (a script for {})",
            script.display(),
            program.exe.display()
        ),
        None => program.exe.display().to_string(),
    };
    output::line(&format!("{STRONG}{what}{STRONG:#}, user {user}"))?;
    for missed in &answer.missed {
        output::line(&format!(
            "  {FAINT}not{FAINT:#} {}: {}",
            missed.rule, missed.why
        ))?;
    }
    output::line(&match (&answer.rule, &config.default) {
        (Some(rule), _) => format!(
            "  {GOOD}rule{GOOD:#} {} decides: {} {FAINT}({}:{}){FAINT:#}",
            rule.name,
            rule.terms,
            rule.file.display(),
            rule.line
        ),
        (None, Some(default)) => format!("  no rule means it; the default is: {}", default.terms),
        (None, None) => "  no rule means it; it stays as it is".to_owned(),
    })
}

fn program(args: &Test) -> Result<Program> {
    let path = edit::executable(&args.program)?;
    let path = path.canonicalize().map_err(|error| {
        Failure::new(format!("cannot find `{}`", path.display())).because(&error)
    })?;
    let (uid, user) = user(args.user.as_deref())?;
    let (exe, script) = match interpreter(&path) {
        Some(interpreter) => (interpreter, Some(path)),
        None => (path, None),
    };
    Ok(Program {
        exe,
        script,
        uid,
        user,
        unit: args.unit.clone(),
        cgroup: args.cgroup.clone(),
        flatpak: args.flatpak.clone(),
        snap: args.snap.clone(),
    })
}

/// What is executed for a script, by its first line.
pub(super) fn interpreter(script: &Path) -> Option<PathBuf> {
    let mut start = [0; 256];
    let length = fs::File::open(script).ok()?.read(&mut start).ok()?;
    let line = start[..length].strip_prefix(b"#!")?;
    let line = String::from_utf8_lossy(line.split(|byte| *byte == b'\n').next()?).into_owned();
    let path = PathBuf::from(line.split_whitespace().next()?);
    Some(path.canonicalize().unwrap_or(path))
}

/// A user by name, by number, or whoever asks.
fn user(asked: Option<&str>) -> Result<(u32, Option<String>)> {
    let own = rustix::process::getuid().as_raw();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let users: Vec<(&str, u32)> = passwd
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            Some((name, fields.nth(1)?.parse().ok()?))
        })
        .collect();
    let uid = match asked {
        None => Some(own),
        Some(asked) => {
            let named = users.iter().find(|(name, _)| *name == asked);
            named.map(|found| found.1).or_else(|| asked.parse().ok())
        }
    };
    let Some(uid) = uid else {
        return Err(
            Failure::new(format!("there is no user `{}`", asked.unwrap_or_default()))
                .hint("a user that is not in `/etc/passwd` can be given by number"),
        );
    };
    let named = users.iter().find(|(_, id)| *id == uid);
    Ok((uid, named.map(|(name, _)| (*name).to_owned())))
}
