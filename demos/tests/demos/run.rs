//! A running demo.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use lockne_lab::Namespace;
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(20);

/// A demo that works already. Killed when dropped.
pub(crate) struct Demo {
    child: Child,
    out: Lines,
    err: Lines,
}

/// The lines of a stream so far.
#[derive(Clone, Default)]
struct Lines(Arc<(Mutex<Text>, Condvar)>);

#[derive(Default)]
struct Text {
    lines: Vec<String>,
    has_ended: bool,
}

/// What a demo said until its end.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) out: Vec<String>,
    pub(crate) err: Vec<String>,
}

/// The command of a demo in a namespace.
pub(crate) fn command(namespace: &Namespace, path: &str, arguments: &[&str]) -> Command {
    let mut command = namespace.command(path);
    command.args(arguments).env_remove("RUST_LOG");
    command
}

impl Demo {
    /// Starts it and waits until it says that it works.
    pub(crate) fn start(namespace: &Namespace, path: &str, arguments: &[&str]) -> Self {
        Self::spawn(command(namespace, path, arguments)).ready()
    }

    /// Waits until it says that it works.
    pub(crate) fn ready(self) -> Self {
        self.err.wait(&self, "that it is ready", |line| {
            line.contains("Ctrl-C ends it")
        });
        self
    }

    /// Starts it and waits for nothing.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = Lines::read(child.stdout.take().unwrap());
        let err = Lines::read(child.stderr.take().unwrap());
        Self { child, out, err }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line on stdout and returns it.
    pub(crate) fn wait_for(&self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        self.out.wait(self, what, is_it)
    }

    /// Writes a line to its stdin.
    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Ends its stdin.
    pub(crate) fn hang_up(&mut self) {
        drop(self.child.stdin.take());
    }

    /// The numbers of the programs that its logs say it has loaded so far.
    pub(crate) fn loaded(&self) -> Vec<u32> {
        loaded(&self.err.all())
    }

    /// Presses Ctrl-C.
    pub(crate) fn interrupt(self) -> Ended {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::INT).unwrap();
        self.finish()
    }

    /// Waits until it ends by itself.
    pub(crate) fn finish(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not end: {:?}",
                self.err.all()
            );
            thread::sleep(Duration::from_millis(5));
        };
        Ended {
            status,
            out: self.out.rest(),
            err: self.err.rest(),
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn loaded(logs: &[String]) -> Vec<u32> {
    logs.iter()
        .filter(|line| line.contains("loaded `"))
        .map(|line| {
            let (_, id) = line.split_once("id=").unwrap();
            id.split_whitespace().next().unwrap().parse().unwrap()
        })
        .collect()
}

impl Ended {
    /// The numbers of the programs that its logs say it has loaded.
    pub(crate) fn loaded(&self) -> Vec<u32> {
        loaded(&self.err)
    }

    /// Fails unless it ended well.
    pub(crate) fn well(self) -> Self {
        assert!(self.status.success(), "{self:#?}");
        self
    }

    /// How many lines on stdout have this in them.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.out.iter().filter(|line| line.contains(text)).count()
    }

    /// Fails unless a line on stdout is this.
    pub(crate) fn says(&self, text: &str) {
        assert!(
            self.out.iter().any(|line| line == text),
            "not `{text}`: {self:#?}"
        );
    }

    /// Fails unless a line on stderr has this in it.
    pub(crate) fn complains(&self, text: &str) {
        assert!(
            self.err.iter().any(|line| line.contains(text)),
            "not `{text}`: {self:#?}"
        );
    }
}

impl Lines {
    fn read(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let theirs = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { break };
                theirs.0.0.lock().unwrap().lines.push(line);
                theirs.0.1.notify_all();
            }
            theirs.0.0.lock().unwrap().has_ended = true;
            theirs.0.1.notify_all();
        });
        lines
    }

    fn wait(&self, demo: &Demo, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        let (text, changed) = &*self.0;
        let unmet = |text: &mut Text| !text.has_ended && !text.lines.iter().any(|line| is_it(line));
        let (text, _) = changed
            .wait_timeout_while(text.lock().unwrap(), PATIENCE, unmet)
            .unwrap();
        if let Some(line) = text.lines.iter().find(|line| is_it(line)) {
            return line.clone();
        }
        drop(text);
        panic!(
            "it does not say {what}: {:#?} {:#?}",
            demo.out.all(),
            demo.err.all()
        );
    }

    fn all(&self) -> Vec<String> {
        self.0.0.lock().unwrap().lines.clone()
    }

    fn rest(&self) -> Vec<String> {
        let (text, changed) = &*self.0;
        let (text, result) = changed
            .wait_timeout_while(text.lock().unwrap(), PATIENCE, |text| !text.has_ended)
            .unwrap();
        assert!(
            !result.timed_out(),
            "somebody holds its output: {:?}",
            text.lines
        );
        text.lines.clone()
    }
}
