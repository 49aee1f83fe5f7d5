//! `lockne trace exec`: programs that start, and how they end.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    process::ExitCode,
    time::Duration,
};

use anstyle::Style;
use clap::Args;
use lockne_daemon::observe::{ARGUMENTS, Life, Run};
use serde::Serialize;

use crate::{
    cmd::monitor::failed,
    failure::Result,
    output::{self, FAINT, GOOD, STRONG, WARN},
    stream::{self, Clock, Lines, Loss, Next, Part, Watch, shown, until_zero},
};

#[derive(Args, Debug)]
pub(crate) struct Exec {
    /// Stop after this time: `10`, `10s`, `2m`
    #[arg(long, value_name = "TIME", value_parser = stream::duration)]
    duration: Option<Duration>,
    /// Only programs of this name: of the file, or of the process
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Print one JSON object for each start and end, one a line
    #[arg(long)]
    json: bool,
}

/// A start or an end, as `docs/monitor.md` has them.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event<'a> {
    Exec {
        time: String,
        pid: u32,
        parent: u32,
        uid: u32,
        user: Option<&'a str>,
        name: String,
        executable: String,
        arguments: Vec<String>,
        arguments_cut: bool,
    },
    Exit {
        time: String,
        pid: u32,
        name: &'a str,
        code: Option<u8>,
        signal: Option<u8>,
        seconds: f64,
    },
}

pub(crate) fn exec(args: &Exec) -> Result<ExitCode> {
    let watch = Watch::new(args.duration)?;
    let mut life = Life::start().map_err(failed)?;
    let mut teller = Teller {
        name: args.name.as_deref(),
        running: HashMap::new(),
        users: users(&fs::read_to_string("/etc/passwd").unwrap_or_default()),
        starts: 0,
    };
    let mut lines = Lines::new();
    anstream::eprintln!("watching which programs start; Ctrl-C ends it");
    let mut told = Loss::default();
    loop {
        let next = watch.wait(&[life.fd()])?;
        let clock = Clock::now();
        let mut goes_on = true;
        life.drain(|run| {
            goes_on = match teller.event(run, clock) {
                None => true,
                Some(event) if args.json => lines.json(&event),
                Some(event) => lines.parts(&parts(&event, run, clock)),
            };
            goes_on
        });
        goes_on &= lines.flush();
        if !goes_on || next == Next::Stop {
            break;
        }
        told.tell(life.counts().map_err(failed)?.lost, "event");
    }
    let lost = life.counts().map_err(failed)?.lost;
    drop(life);
    let starts = teller.starts;
    lines.end()?;
    stream::summary(&output::count(starts, "program"), lost);
    Ok(ExitCode::SUCCESS)
}

/// What is known beside a record.
struct Teller<'a> {
    name: Option<&'a str>,
    running: HashMap<u32, String>,
    users: BTreeMap<u32, String>,
    starts: u64,
}

impl Teller<'_> {
    fn event(&mut self, run: &Run, clock: Clock) -> Option<Event<'_>> {
        match run {
            Run::Starts(exec) => {
                let name = shown(until_zero(&exec.name));
                let executable = shown(until_zero(&exec.path));
                // A process may run one program after the other.
                self.running.remove(&exec.pid);
                if !self.is_wanted(&name, &executable) {
                    return None;
                }
                self.starts += 1;
                self.running.insert(exec.pid, name.clone());
                let length = usize::try_from(exec.arguments_len).unwrap_or(usize::MAX);
                Some(Event::Exec {
                    time: clock.rfc3339(exec.time),
                    pid: exec.pid,
                    parent: exec.parent,
                    uid: exec.uid,
                    user: self.users.get(&exec.uid).map(String::as_str),
                    name,
                    executable,
                    arguments: arguments(&exec.arguments[..length.min(ARGUMENTS)]),
                    arguments_cut: length > ARGUMENTS,
                })
            }
            Run::Ends(exit) => {
                let name = self.running.remove(&exit.pid)?;
                // Kept so long as the event is shown.
                let name: &str = self.running.entry(u32::MAX).insert_entry(name).into_mut();
                let (code, signal) = match exit.status & 0x7f {
                    0 => (Some((exit.status >> 8 & 0xff) as u8), None),
                    signal => (None, u8::try_from(signal).ok()),
                };
                let time = Duration::from_nanos(exit.time.saturating_sub(exit.started));
                Some(Event::Exit {
                    time: clock.rfc3339(exit.time),
                    pid: exit.pid,
                    name,
                    code,
                    signal,
                    seconds: time.as_secs_f64(),
                })
            }
        }
    }

    fn is_wanted(&self, name: &str, executable: &str) -> bool {
        let file = executable.rsplit('/').next().unwrap_or_default();
        self.name
            .is_none_or(|wanted| wanted == name || wanted == file)
    }
}

fn parts(event: &Event<'_>, run: &Run, clock: Clock) -> Vec<Part> {
    let time = match run {
        Run::Starts(exec) => exec.time,
        Run::Ends(exit) => exit.time,
    };
    let plain = Style::new();
    let mut parts = vec![(FAINT, clock.time_of_day(time))];
    match event {
        Event::Exec {
            pid,
            parent,
            uid,
            user,
            executable,
            arguments,
            arguments_cut,
            ..
        } => {
            let user = user.map_or_else(|| uid.to_string(), str::to_owned);
            parts.push((plain, format!(" {pid:>7} start {user:<8} by {parent:<7} ")));
            parts.push((STRONG, executable.clone()));
            let arguments = arguments.iter().skip(1).map(|argument| quoted(argument));
            // Each with a blank before it.
            let words: Vec<String> = std::iter::once(String::new()).chain(arguments).collect();
            let more = if *arguments_cut { " ..." } else { "" };
            parts.push((plain, words.join(" ") + more));
        }
        Event::Exit {
            pid,
            name,
            code,
            signal,
            seconds,
            ..
        } => {
            let (how, style) = match (code, signal) {
                (Some(0), _) => ("code 0".to_owned(), GOOD),
                (Some(code), _) => (format!("code {code}"), WARN),
                (None, signal) => (format!("signal {}", signal.unwrap_or_default()), WARN),
            };
            parts.push((plain, format!(" {pid:>7} end   {name} ")));
            parts.push((style, how));
            parts.push((plain, format!(" after {seconds:.3} s")));
        }
    }
    parts
}

/// The arguments, each of which ends with a zero.
fn arguments(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|byte| *byte == 0).map(shown).collect()
}

/// In quotes where a shell needs them.
fn quoted(argument: &str) -> String {
    let is_plain = |letter: char| letter.is_alphanumeric() || "-_./:=,+@%".contains(letter);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', "'\\''"))
    }
}

/// The names of users, from passwd(5).
pub(crate) fn users(text: &str) -> BTreeMap<u32, String> {
    let user = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        Some((fields.nth(1)?.parse().ok()?, name))
    };
    text.lines().filter_map(user).collect()
}

#[cfg(test)]
mod tests {
    use lockne_daemon::observe::{self, PATH};

    use super::*;

    fn start(pid: u32, path: &str, words: &[&str]) -> Run {
        let mut exec = observe::Exec {
            tag: observe::Exec::TAG,
            pid,
            parent: 1,
            uid: 1000,
            time: 45_296_123_456_789,
            name: [0; 16],
            path: [0; PATH],
            arguments: [0; ARGUMENTS],
            arguments_len: 0,
            unused: 0,
        };
        exec.path[..path.len()].copy_from_slice(path.as_bytes());
        let name = path.rsplit('/').next().unwrap();
        exec.name[..name.len()].copy_from_slice(name.as_bytes());
        let text = words
            .iter()
            .map(|word| (*word).to_owned() + "\0")
            .collect::<String>();
        exec.arguments[..text.len()].copy_from_slice(text.as_bytes());
        exec.arguments_len = u32::try_from(text.len()).unwrap();
        Run::Starts(exec)
    }

    fn end(pid: u32, status: u32) -> Run {
        Run::Ends(observe::Exit {
            pid,
            status,
            started: 45_296_123_456_789,
            time: 45_297_623_456_789,
            ..observe::Exit::default()
        })
    }

    #[test]
    fn starts_and_ends_are_told() {
        let mut teller = Teller {
            name: None,
            running: HashMap::new(),
            users: users("root:x:0:0::/root:/bin/sh\nanna:x:1000:1000::/:/bin/sh\n"),
            starts: 0,
        };
        let runs = [
            start(
                7,
                "/usr/bin/git",
                &["git", "commit", "-m", "it's\x1b[31m new"],
            ),
            end(7, 0),
            start(8, "/bin/false", &["false"]),
            end(8, 0x100),
            start(9, "/bin/sleep", &["sleep", ""]),
            end(9, 15),
            end(10, 0),
        ];

        let told: Vec<String> = runs
            .iter()
            .filter_map(|run| {
                let event = teller.event(run, Clock::EPOCH)?;
                let parts = parts(&event, run, Clock::EPOCH);
                let line: String = parts.into_iter().map(|(_, text)| text).collect();
                Some(format!(
                    "{line}\n{}",
                    serde_json::to_string(&event).unwrap()
                ))
            })
            .collect();

        insta::assert_snapshot!(told.join("\n"));
    }

    #[test]
    fn docs_name_every_field() {
        let mut teller = Teller {
            name: None,
            running: HashMap::new(),
            users: BTreeMap::new(),
            starts: 0,
        };
        let values = [start(7, "/usr/bin/git", &["git"]), end(7, 0)].map(|run| {
            let event = teller.event(&run, Clock::EPOCH).unwrap();
            serde_json::to_value(&event).unwrap()
        });

        crate::documented::assert_fields("monitor.md", "**`lockne trace exec --json`**", &values);
    }

    #[test]
    fn name_is_that_of_the_file_or_of_the_process() {
        let mut teller = Teller {
            name: Some("git"),
            running: HashMap::new(),
            users: BTreeMap::new(),
            starts: 0,
        };

        assert!(
            teller
                .event(&start(7, "/usr/bin/git", &[]), Clock::EPOCH)
                .is_some()
        );
        assert!(
            teller
                .event(&start(8, "/usr/bin/curl", &[]), Clock::EPOCH)
                .is_none()
        );
        assert!(teller.event(&end(8, 0), Clock::EPOCH).is_none());
        assert_eq!(teller.starts, 1);
    }
}
