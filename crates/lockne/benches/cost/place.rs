//! A small internet with a lockne of its own.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lockne_lab::{Internet, internet::ReversePathFilter, link::Link};
use tempfile::TempDir;

/// A program that ends at once.
pub(crate) const TRUE: &str = "/usr/bin/true";

/// The device of the tunnel that packets are sent through.
pub(crate) const TUNNEL: &str = "corp0";

/// How long a daemon may take for what it is to do.
const PATIENCE: Duration = Duration::from_mins(1);

/// The small internet, and the directory of its lockne.
pub(crate) struct Place {
    pub(crate) lab: Internet,
    program: PathBuf,
    dir: TempDir,
    _tunnel: Link,
}

impl Place {
    /// Runs `program`, or else the lockne that was built with this.
    pub(crate) fn new(program: Option<&String>) -> Result<Self> {
        let lab = Internet::build()?;
        let own = PathBuf::from(env!("CARGO_BIN_EXE_lockne"));
        Ok(Self {
            program: program.map_or(own, PathBuf::from),
            _tunnel: lab.add_plain_tunnel(TUNNEL, ReversePathFilter::Off)?,
            dir: tempfile::Builder::new().prefix("lockne-bench-").tempdir()?,
            lab,
        })
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Where its maps and the links of its programs are pinned.
    pub(crate) fn pins(&self) -> PathBuf {
        self.state_dir().join("bpf")
    }

    /// A lockne command at home.
    pub(crate) fn lockne(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.home.command(&self.program);
        command
            .arg("--state-dir")
            .arg(self.state_dir())
            .args(arguments)
            .env_remove("LOCKNE_SOCKET")
            .stdin(Stdio::null());
        command
    }

    /// Runs a lockne command that must succeed.
    pub(crate) fn must(&self, arguments: &[&str]) -> Result<String> {
        let output = self.lockne(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts a daemon without rules, and waits until it serves.
    pub(crate) fn daemon(&self) -> Result<Daemon<'_>> {
        self.write_rules(Rules::Files(0))?;
        let mut command = self.lockne(&["daemon", "--config"]);
        let mut child = command.arg(self.config()).stderr(Stdio::piped()).spawn()?;
        let said = BufReader::new(child.stderr.take().context("it has a stderr")?);
        let (hear, heard) = mpsc::channel();
        // It must not have to wait for somebody to read.
        thread::spawn(move || {
            let lines = said.lines().map_while(Result::ok);
            lines.for_each(|line| drop(hear.send(line)));
        });
        let daemon = Daemon {
            child,
            heard,
            place: self,
        };
        let deadline = Instant::now() + PATIENCE;
        while !self
            .must(&["status", "--json"])
            .is_ok_and(|text| text.contains("running"))
        {
            ensure!(Instant::now() < deadline, "the daemon does not serve");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("lockne.toml")
    }

    /// Puts so many rules into the configuration.
    fn write_rules(&self, rules: Rules) -> Result<()> {
        let mut text = String::new();
        for i in 0..rules.count() {
            let file = || -> Result<_> {
                let program = self.dir.path().join(format!("program-{i}"));
                if !program.exists() {
                    fs::write(&program, "")?;
                }
                Ok(format!("exe = \"{}\"", program.display()))
            };
            let asks = match rules {
                Rules::Named(count) if i == count - 1 => format!("exe = {TRUE:?}"),
                Rules::Mixed(_) if i % 4 == 1 => format!("user = {}", 100_000 + i),
                Rules::Mixed(_) if i % 4 == 2 => format!("unit = \"unit-{i}.service\""),
                Rules::Mixed(_) if i % 4 == 3 => {
                    let id = 100_000 + i;
                    format!("cgroup = \"/user.slice/user-{id}.slice\"\nuser = {id}")
                }
                _ => file()?,
            };
            writeln!(text, "[[rule]]\nname = \"r{i}\"\n{asks}\nvia = \"direct\"")?;
        }
        let next = self.config().with_extension("next");
        fs::write(&next, text)?;
        Ok(fs::rename(next, self.config())?)
    }

    /// Brings the first provider's tunnel up.
    pub(crate) fn tunnel_up(&self) -> Result<()> {
        let path = self.dir.path().join("a.conf");
        fs::write(&path, &*self.lab.provider_a.client_conf())?;
        let path = path.to_str().context("the path is not UTF-8")?;
        self.must(&["tunnel", "up", path]).map(drop)
    }
}

/// How many rules there are, and what they ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rules {
    /// For files that nobody executes.
    Files(usize),
    /// A quarter for files; the others for users, units, or for both. No program here is meant.
    Mixed(usize),
    /// As [`Files`](Self::Files), but the last one is for `true`.
    Named(usize),
}

impl Rules {
    fn count(self) -> usize {
        match self {
            Self::Files(count) | Self::Mixed(count) | Self::Named(count) => count,
        }
    }
}

/// A daemon; everything of it goes when it is dropped.
pub(crate) struct Daemon<'a> {
    child: Child,
    heard: Receiver<String>,
    place: &'a Place,
}

impl Daemon<'_> {
    /// Changes the configuration to these rules, and waits until they are in force. Returns how long the daemon
    /// took for that, in milliseconds: from reading the files to having looked at every program that runs.
    pub(crate) fn rules(&self, rules: Rules) -> Result<f64> {
        self.heard.try_iter().for_each(drop);
        self.place.write_rules(rules)?;
        let deadline = Instant::now() + PATIENCE;
        let count = rules.count();
        let in_force = format!("in force rules={count} ");
        let line = loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            let line = self.heard.recv_timeout(patience);
            let line = line.with_context(|| format!("{count} rules are not in force"))?;
            if line.contains(&in_force) {
                break line;
            }
        };
        let took = line.split("took=").nth(1);
        let took = took.with_context(|| format!("no time in `{line}`"))?;
        milliseconds(took.trim()).with_context(|| format!("no time in `{line}`"))
    }

    /// Bytes of its resident memory.
    pub(crate) fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(number.context("no VmRSS")?.parse::<u64>()? * 1024)
    }
}

/// As [`Duration`] is shown.
fn milliseconds(text: &str) -> Option<f64> {
    let units = [("ms", 1.0), ("µs", 1e-3), ("ns", 1e-6), ("s", 1e3)];
    units.into_iter().find_map(|(unit, factor)| {
        let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
        Some(number * factor)
    })
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.place.must(&["down"]) {
            println!("{error:#}");
            drop(self.child.kill());
        }
        drop(self.child.wait());
    }
}
