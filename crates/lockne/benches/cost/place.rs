//! A small internet with a lockne of its own.

use std::{
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lockne_lab::{Internet, internet::ReversePathFilter, link::Link};
use tempfile::TempDir;

/// The device of the tunnel that packets are sent through.
pub(crate) const TUNNEL: &str = "corp0";

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

    /// Starts a daemon, and waits until it serves.
    pub(crate) fn daemon(&self) -> Result<Daemon<'_>> {
        let config = self.config();
        let mut command = self.lockne(&["daemon", "--config"]);
        let child = command.arg(config).stderr(Stdio::null()).spawn()?;
        let daemon = Daemon { child, place: self };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self
            .must(&["status", "--json"])
            .is_ok_and(|text| text.contains("running"))
        {
            ensure!(Instant::now() < deadline, "the daemon does not serve");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("lockne.toml")
    }

    /// Puts so many rules into the configuration, none of them for a program that runs here; if there is a daemon, waits until it has
    /// them.
    pub(crate) fn rules(&self, count: usize) -> Result<()> {
        let mut text = String::new();
        for i in 0..count {
            let program = self.dir.path().join(format!("program-{i}"));
            fs::write(&program, "")?;
            let program = program.display();
            writeln!(
                text,
                "[[rule]]\nname = \"r{i}\"\nexe = \"{program}\"\nvia = \"direct\""
            )?;
        }
        let next = self.config().with_extension("next");
        fs::write(&next, text)?;
        fs::rename(next, self.config())?;
        if count == 0 {
            return Ok(());
        }
        let last = format!("\"r{}\"", count - 1);
        let deadline = Instant::now() + Duration::from_mins(1);
        while !self.must(&["status", "--json"])?.contains(&last) {
            ensure!(Instant::now() < deadline, "{count} rules are not in force");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Brings the first provider's tunnel up.
    pub(crate) fn tunnel_up(&self) -> Result<()> {
        let path = self.dir.path().join("a.conf");
        fs::write(&path, &*self.lab.provider_a.client_conf())?;
        let path = path.to_str().context("the path is not UTF-8")?;
        self.must(&["tunnel", "up", path]).map(drop)
    }
}

/// A daemon; everything of it goes when it is dropped.
pub(crate) struct Daemon<'a> {
    child: Child,
    place: &'a Place,
}

impl Daemon<'_> {
    /// Bytes of its resident memory.
    pub(crate) fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(number.context("no VmRSS")?.parse::<u64>()? * 1024)
    }
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
