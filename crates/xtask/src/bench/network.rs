//! Network namespaces with cables between them, made by ip(8). All ends with this process, however that ends.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::kernels::run_command as run;

/// A network namespace, held by a process that sleeps.
pub(crate) struct Namespace {
    holder: Background,
}

impl Namespace {
    /// An empty one with its loopback up.
    pub(crate) fn new() -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--net",
            "sleep",
            "infinity",
        ]);
        let holder = Background::start(&mut command)?;
        let own = fs::read_link("/proc/self/ns/net")?;
        let path = format!("/proc/{}/ns/net", holder.id());
        until("a namespace of its own", || {
            // Both programs exec before `unshare` is through.
            let name = fs::read_to_string(format!("/proc/{}/comm", holder.id()))?;
            Ok(name.trim() == "sleep" && fs::read_link(&path)? != own)
        })?;
        let namespace = Self { holder };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// A command whose process lives here, and ends with the benchmark.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "nsenter"])
            .arg(format!("--net=/proc/{}/ns/net", self.holder.id()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs ip(8) here.
    pub(crate) fn ip(&self, words: &str) -> Result<()> {
        run(self.command("ip").args(words.split_whitespace())).map(drop)
    }

    /// Lays a cable: `near` here and `far` there, each with a name and an address.
    pub(crate) fn cable(&self, near: (&str, &str), there: &Self, far: (&str, &str)) -> Result<()> {
        self.ip(&format!(
            "link add {} type veth peer name {} netns {}",
            near.0,
            far.0,
            there.holder.id()
        ))?;
        for (namespace, (name, address)) in [(self, near), (there, far)] {
            namespace.ip(&format!("address add {address} dev {name}"))?;
            namespace.ip(&format!("link set {name} up"))?;
        }
        Ok(())
    }
}

/// A process that is ended when it is dropped.
pub(crate) struct Background(Child);

impl Background {
    /// Starts it with nothing to read and nobody to listen.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null());
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self(child))
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Asked first: wireguard-go takes its control socket with it only then.
        if let Some(pid) = i32::try_from(self.0.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let end = Instant::now() + Duration::from_secs(10);
        while matches!(self.0.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = self.0.kill();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A process that holds things until its input ends, and has said that it does.
pub(crate) struct Holder {
    child: Child,
}

impl Holder {
    /// Starts it, and waits until it is ready.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let mut holder = Self { child };
        let output = holder.child.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line == "ready\n", "{command:?} cannot hold so many");
        Ok(holder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Waits until something is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match is_so() {
            Ok(true) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error.context(what.to_owned())),
            Ok(false) if Instant::now() > end => bail!("waited in vain for {what}"),
            _ => thread::sleep(Duration::from_millis(10)),
        }
    }
}
