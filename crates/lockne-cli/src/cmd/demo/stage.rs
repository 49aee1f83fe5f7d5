//! The small internet with a lockne at home, and how it is taken apart, also after Ctrl-C.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use lockne_lab::{
    Internet,
    packet::{Flow, Packet},
    probe::{Probe, Report, Running},
    provider::Provider,
    sniffer::Sniffer,
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    failure::{Failure, Result},
    output,
};

/// The small internet, and the lockne in its home.
pub(crate) struct Stage {
    /// Everything on the home link, seen from outside.
    pub(crate) wire: Sniffer,
    pub(crate) lab: Internet,
    set: Arc<Mutex<Set>>,
}

/// What would outlive this process.
struct Set {
    directory: Option<tempfile::TempDir>,
    daemon: Option<Child>,
}

impl Stage {
    pub(crate) fn build() -> Result<Self> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Failure::new("cannot build the small internet").because(error)
        };
        let directory = tempfile::Builder::new()
            .prefix("lockne-demo-")
            .tempdir()
            .map_err(|error| failed(&error))?;
        let set = Arc::new(Mutex::new(Set {
            directory: Some(directory),
            daemon: None,
        }));
        strike_on_signals(Arc::clone(&set))?;
        let lab = Internet::build().map_err(|error| {
            let failure = failed(&error);
            match error.hint() {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        })?;
        for provider in [&lab.provider_a, &lab.provider_b] {
            provider.start().map_err(|error| failed(&error))?;
        }
        let stage = Self {
            wire: lab.home_link.sniffer().map_err(|error| failed(&error))?,
            lab,
            set,
        };
        stage.start_daemon()?;
        Ok(stage)
    }

    /// Where the lockne at home keeps its state.
    fn place(&self) -> Result<PathBuf> {
        lock(&self.set)
            .directory
            .as_ref()
            .map(|directory| directory.path().to_owned())
            .ok_or_else(|| Failure::new("the demo was interrupted"))
    }

    /// A lockne command at home.
    pub(crate) fn lockne(&self, arguments: &[&str]) -> Result<Command> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::new("cannot find lockne's own executable").because(&error))?;
        let mut command = self.lab.home.command(program);
        command
            .arg("--state-dir")
            .arg(self.place()?.join("state"))
            .args(arguments)
            .env_remove("LOCKNE_SOCKET")
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a lockne command that must succeed.
    pub(crate) fn must(&self, arguments: &[&str]) -> Result<String> {
        let shown = arguments.join(" ");
        let output = self.lockne(arguments)?.output().map_err(|error| {
            Failure::new(format!("cannot start `lockne {shown}`")).because(&error)
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Failure::new(format!(
            "`lockne {shown}` failed: {}",
            said.trim()
        )))
    }

    pub(crate) fn start_daemon(&self) -> Result<()> {
        let log = self.place()?.join("log");
        let failed =
            |error: &std::io::Error| Failure::new("cannot start the daemon").because(error);
        let stderr = fs::File::create(&log).map_err(|error| failed(&error))?;
        let daemon = self
            .lockne(&["daemon"])?
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|error| failed(&error))?;
        lock(&self.set).daemon = Some(daemon);
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.must(&["tunnel", "list", "--json"]).is_err() || !self.serves()? {
            if Instant::now() > deadline {
                let said = fs::read_to_string(&log).unwrap_or_default();
                return Err(Failure::new(format!(
                    "the daemon does not answer: {}",
                    said.trim()
                )));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Whether a daemon answers.
    fn serves(&self) -> Result<bool> {
        Ok(self.must(&["status", "--json"])?.contains("\"running\""))
    }

    /// Kills the daemon without a word.
    pub(crate) fn kill_daemon(&self) {
        let daemon = lock(&self.set).daemon.take();
        if let Some(mut daemon) = daemon {
            end(&mut daemon);
        }
    }

    /// Brings the tunnel of a provider up under a name.
    pub(crate) fn tunnel_up(&self, name: &str, provider: &Provider) -> Result<()> {
        let conf = self.place()?.join(format!("{name}.conf"));
        fs::write(&conf, provider.client_conf().as_bytes()).map_err(|error| {
            Failure::new(format!("cannot write {}", conf.display())).because(&error)
        })?;
        self.must(&["tunnel", "up", &conf.to_string_lossy()])
            .map(drop)
    }

    /// Runs a probe at home, without lockne.
    pub(crate) fn plain(&self, probe: &Probe) -> Result<Report> {
        probe
            .run(&self.lab.home)
            .map_err(|error| probe_failed(&error))
    }

    /// Runs a probe by `lockne run` with these arguments.
    pub(crate) fn run(&self, arguments: &[&str], probe: &Probe) -> Result<Report> {
        self.start(arguments, probe)?
            .finish()
            .map_err(|error| probe_failed(&error))
    }

    /// Starts a probe by `lockne run` with these arguments.
    pub(crate) fn start(&self, arguments: &[&str], probe: &Probe) -> Result<Running> {
        let mut command = self.lockne(&["run"])?;
        command.args(arguments).arg("--");
        probe
            .start_behind(command)
            .map_err(|error| probe_failed(&error))
    }

    /// How many packets have passed the home link since the last [`Self::count`].
    pub(crate) fn packets(&self) -> Result<u64> {
        self.wire
            .settle()
            .map_err(|error| Failure::new("the home link was not seen whole").because(&error))?;
        Ok(self.wire.count(|_| true))
    }

    /// How many packets passed the home link since the last time, and what of it leaked; `known` says what was
    /// sent there on purpose.
    pub(crate) fn count(&self, known: impl Fn(&Packet) -> bool) -> Result<(u64, Vec<Flow>)> {
        let packets = self.packets()?;
        let mut leaks = self.lab.leaks(&self.wire);
        leaks.retain(|flow| !known(&flow.packet));
        self.wire.clear();
        Ok((packets, leaks))
    }

    /// Takes everything apart.
    pub(crate) fn strike(self) -> Result<()> {
        self.must(&["down"])?;
        lock(&self.set).strike();
        Ok(())
    }
}

impl Set {
    fn strike(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            end(&mut daemon);
        }
        if let Some(directory) = self.directory.take() {
            release(&directory.path().join("state"));
        }
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        self.strike();
    }
}

/// Takes apart on Ctrl-C what would outlive us.
fn strike_on_signals(set: Arc<Mutex<Set>>) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])
        .map_err(|error| Failure::new("cannot prepare for Ctrl-C").because(&error))?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            lock(&set).strike();
            output::notice("interrupted; nothing of the demo is left");
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// Takes back what a daemon left in the kernel: its namespace goes with us, its pins would not.
fn release(state: &Path) {
    let pins = lockne_daemon::state_dir::StateDir::new(state).pins();
    if let Err(error) = lockne_daemon::kernel::Kernel::remove(&pins) {
        Failure::new("cannot take the kernel programs back")
            .because(&error)
            .print();
    }
}

fn end(daemon: &mut Child) {
    // It may have ended by itself.
    let _ = daemon.kill();
    let _ = daemon.wait();
}

fn lock(set: &Mutex<Set>) -> MutexGuard<'_, Set> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

fn probe_failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new("a program of the demo failed").because(error)
}
