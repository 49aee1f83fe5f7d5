//! Inside of the machine: the first process, which runs the tests and turns the machine off.

use std::{
    env,
    fs::{self, File, Permissions},
    io::{BufRead as _, BufReader, Read, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use anyhow::{Context as _, Result};
use rustix::{
    io::Errno,
    mount::{MountFlags, mount, mount_bind, mount_move},
    process::{Pid, WaitOptions, chroot, wait},
    system::{RebootCommand, finit_module, reboot},
    termios::{self, OptionalActions},
};
use serde::{Deserialize, Serialize};

use super::systemd;

/// Where the plan is in the machine.
pub(crate) const PLAN: &str = "/plan.json";
/// Where the modules are in the machine.
pub(crate) const MODULES: &str = "/modules";

/// What begins a line that is not a test's.
pub(crate) const SIGN: &str = "@lockne ";

/// What to do in the machine.
#[derive(Default, Deserialize, Serialize)]
pub(crate) struct Plan {
    /// Modules, in the order in which they are loaded.
    pub(crate) modules: Vec<String>,
    /// Programs, in the order in which they are run.
    pub(crate) runs: Vec<Run>,
}

/// A program to run.
#[derive(Clone, Deserialize, Serialize)]
pub(crate) struct Run {
    /// What it is called in results.
    pub(crate) suite: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// How the name of a test begins that must be there, lest nothing is run and all is well.
    pub(crate) finds: Option<String>,
    /// Whether systemd must be the first process. Those that need it come last.
    pub(crate) needs_systemd: bool,
}

/// What the machine says beside the tests.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(crate) enum Word {
    /// It works.
    Booted {
        /// As `uname -r` says it.
        release: String,
    },
    /// A module could not be loaded.
    NoModule {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// A program begins.
    Begins {
        /// What it is called in results.
        suite: String,
    },
    /// It has ended.
    Ended {
        /// What it is called in results.
        suite: String,
        /// Its exit code, or none if a signal ended it.
        code: Option<i32>,
    },
    /// That was all.
    Done,
    /// It cannot go on.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Does all of it. Does not return.
pub(crate) fn main() -> ! {
    end(work())
}

/// Does what is left once systemd is the first process. Does not return.
pub(crate) fn rest() -> ! {
    let rest = || {
        let plan = systemd::rest()?;
        let mut port = Port::open()?;
        run_all(&mut port, &plan.runs)?;
        port.word(&Word::Done)
    };
    end(rest())
}

fn end(result: Result<()>) -> ! {
    if let Err(error) = result {
        let reason = format!("{error:#}");
        if let Ok(mut port) = Port::open() {
            // There is nobody else to tell.
            drop(port.word(&Word::Failed { reason }));
        }
    }
    // It does not return either where it works.
    let _ = reboot(RebootCommand::PowerOff);
    loop {
        thread::park();
    }
}

/// Puts the root on a mount above the kernel's first one, which sandboxes could not leave.
fn rise() -> Result<()> {
    const ABOVE: &str = "/above";
    fs::create_dir_all(ABOVE)?;
    mount_bind("/", ABOVE)?;
    env::set_current_dir(ABOVE)?;
    mount_move(".", "/")?;
    chroot(".")?;
    Ok(env::set_current_dir("/")?)
}

fn work() -> Result<()> {
    rise().context("cannot leave the first mount")?;
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
        ("tracefs", "/sys/kernel/tracing"),
        ("devpts", "/dev/pts"),
    ] {
        if kind == "devpts" {
            fs::create_dir_all(at)?;
        }
        if Path::new(env!("CARGO_MANIFEST_DIR")).starts_with(at) {
            // It would hide the programs that are to run.
            fs::set_permissions(at, Permissions::from_mode(0o1777))?;
            continue;
        }
        mount(kind, at, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {at}"))?;
    }
    // As udev makes it; shells name their pipes by it.
    symlink("/proc/self/fd", "/dev/fd").context("cannot make /dev/fd")?;
    let mut port = Port::open()?;
    let plan = fs::read(PLAN).with_context(|| format!("cannot read {PLAN}"))?;
    let plan: Plan = serde_json::from_slice(&plan)?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    port.word(&Word::Booted {
        release: release.trim().to_owned(),
    })?;
    for name in plan.modules {
        let file = File::open(Path::new(MODULES).join(&name))?;
        match finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => port.word(&Word::NoModule {
                name,
                reason: error.to_string(),
            })?,
        }
    }
    let of_systemd = |run: &Run| run.needs_systemd;
    let first = plan.runs.iter().position(of_systemd);
    let (before, rest) = plan.runs.split_at(first.unwrap_or(plan.runs.len()));
    run_all(&mut port, before)?;
    if rest.is_empty() {
        return port.word(&Word::Done);
    }
    systemd::become_first(&Plan {
        runs: rest.to_vec(),
        ..Plan::default()
    })
}

fn run_all(port: &mut Port, runs: &[Run]) -> Result<()> {
    for run in runs {
        let suite = run.suite.clone();
        port.word(&Word::Begins {
            suite: suite.clone(),
        })?;
        let code = port.run(run)?;
        port.word(&Word::Ended { suite, code })?;
    }
    Ok(())
}

/// The serial line to whoever runs the machine.
struct Port(Arc<Mutex<File>>);

impl Port {
    fn open() -> Result<Self> {
        let file = File::options().write(true).open("/dev/ttyS1");
        let file = file.context("cannot open the serial line")?;
        let mut modes = termios::tcgetattr(&file)?;
        modes.make_raw();
        termios::tcsetattr(&file, OptionalActions::Now, &modes)?;
        Ok(Self(Arc::new(Mutex::new(file))))
    }

    /// Says something, and waits until it is out.
    fn word(&mut self, word: &Word) -> Result<()> {
        let text = serde_json::to_string(word)?;
        self.write(format!("\n{SIGN}{text}\n").as_bytes());
        if let Ok(file) = self.0.lock() {
            termios::tcdrain(file.as_fd())?;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8]) {
        if let Ok(mut file) = self.0.lock() {
            // There is nobody else to tell.
            drop(file.write_all(bytes));
        }
    }

    /// Runs a program, and passes on what it says.
    fn run(&self, run: &Run) -> Result<Option<i32>> {
        let mut child = Command::new(&run.program)
            .args(&run.arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/usr/sbin")
            .env("HOME", "/root")
            .env("RUST_BACKTRACE", "0")
            .env("LOCKNE_KERNEL_MODULES", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", run.program.display()))?;
        let out = child.stdout.take().map(|out| self.pass_on(out));
        let err = child.stderr.take().map(|err| self.pass_on(err));
        let pid = Pid::from_child(&child);
        // The first process also buries those whose parents have died.
        let code = loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((who, status))) if who == pid => break status.exit_status(),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        // Not the streams' end: what the tests have left running may hold them.
        drop((out, err));
        Ok(code)
    }

    /// Line by line, so that two streams do not cut each other's.
    fn pass_on(&self, from: impl Read + Send + 'static) -> thread::JoinHandle<()> {
        let port = Self(Arc::clone(&self.0));
        thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            while let Ok(1..) = from.read_until(b'\n', &mut line) {
                port.write(&line);
                line.clear();
            }
        })
    }
}
