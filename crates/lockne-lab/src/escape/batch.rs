//! Many attempts by one program, each in a child of its own.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, ExitCode},
};

use rustix::thread::{
    CapabilitySet, capabilities, remove_capability_from_bounding_set, set_capabilities,
};
use serde::{Deserialize, Serialize};

use super::{
    Attempt, Case, Outcome, Result, Scene, Way, Who,
    socket::{check, keep_open},
};
use crate::probe::{Call, Failed};

/// The word that makes a program try ways out.
pub const WORD: &str = "__lockne-lab-escape";

/// How many attempts are under way at once.
const AT_ONCE: usize = 8;
/// Seconds until an attempt is given up.
const PATIENCE: u32 = 20;
const NOBODY: u32 = 65534;

/// Ways out to try.
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "its calls of the system rest on none of its fields"
)]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// With what rights; with those that there are, if it is not said.
    pub who: Option<Who>,
    /// Where.
    pub scene: Scene,
    /// What.
    pub cases: Vec<Case>,
}

/// Tries ways out if the command line asks for it.
///
/// Call it before the program has a second thread.
#[must_use]
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let is_asked = arguments.next().is_some_and(|word| word == WORD);
    is_asked.then(|| main(arguments))
}

fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let verb = arguments.next().unwrap_or_default();
    let json = arguments.next().unwrap_or_default();
    let batch: Batch = match serde_json::from_slice(json.as_encoded_bytes()) {
        Ok(batch) => batch,
        Err(error) => {
            eprintln!("not a batch: {error}");
            return ExitCode::from(2);
        }
    };
    let done = match verb.to_str() {
        Some("prepare") => batch.prepare(arguments),
        Some("run") => batch.run(),
        Some("one") => return batch.one(),
        _ => Err(io::Error::from(io::ErrorKind::InvalidInput)).call("verb"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed { call, error }) => {
            eprintln!("{call}: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Batch {
    /// The arguments by which this program opens what is to be inherited, and then becomes `through`,
    /// which must become this program again with the arguments that it is given.
    ///
    /// # Errors
    ///
    /// When this program cannot be found.
    pub fn arguments(&self, through: Vec<OsString>) -> io::Result<Vec<OsString>> {
        let json = serde_json::to_string(self).expect("a batch is plain data");
        let own = std::env::current_exe()?;
        let head = [own.into(), WORD.into(), "prepare".into(), json.into()];
        Ok(head.into_iter().chain(through).collect())
    }

    /// What each case came to, from what the program printed.
    ///
    /// # Errors
    ///
    /// When it printed something else.
    pub fn outcomes(&self, printed: &[u8]) -> serde_json::Result<Vec<Outcome>> {
        serde_json::from_slice(printed)
    }

    fn prepare(mut self, through: impl Iterator<Item = OsString>) -> Result {
        for case in &mut self.cases {
            let Some(way) = Way::named(&case.way) else {
                continue;
            };
            if let Some(before) = way.before {
                let to = case.to;
                let attempt = Attempt {
                    scene: &self.scene,
                    case,
                    to,
                };
                // Where it cannot be made, the attempt says so.
                if let Ok(socket) = before(&attempt) {
                    keep_open(socket.as_raw_fd())?;
                    case.inherited = Some(OwnedFd::from(socket).into_raw_fd());
                }
            }
        }
        let json = serde_json::to_string(&self).expect("a batch is plain data");
        let own = std::env::current_exe().call("readlink")?.into_os_string();
        let last = [own, WORD.into(), "run".into(), json.into()];
        let mut words = through.chain(last);
        let program = words.next().expect("the last ones are there");
        Err(Command::new(program).args(words).exec()).call("execve")
    }

    fn run(self) -> Result {
        if let Some(who) = self.who {
            become_one(who)?;
        }
        let mut outcomes = vec![Outcome::Hung; self.cases.len()];
        let mut waiting: VecDeque<_> = (0..self.cases.len()).collect();
        let mut running: Vec<(libc::pid_t, usize, File)> = Vec::new();
        while !waiting.is_empty() || !running.is_empty() {
            while running.len() < AT_ONCE
                && let Some(index) = waiting.pop_front()
            {
                let (pid, pipe) = self.start(index)?;
                running.push((pid, index, pipe));
            }
            let mut status = 0;
            // SAFETY: waits for any child, and writes how it ended.
            let pid = check(unsafe { libc::waitpid(-1, &raw mut status, 0) }, "waitpid")?;
            if let Some(at) = running.iter().position(|(it, ..)| *it == pid) {
                let (_, index, mut pipe) = running.swap_remove(at);
                let mut text = [0; 4096];
                // A grandchild may hold the other end: what there is, is all.
                let length = pipe.read(&mut text).unwrap_or(0);
                if let Ok(outcome) = serde_json::from_slice(&text[..length]) {
                    outcomes[index] = outcome;
                }
            }
        }
        let json = serde_json::to_string(&outcomes).expect("outcomes are plain data");
        writeln!(io::stdout(), "{json}").call("write")
    }

    fn start(&self, index: usize) -> Result<(libc::pid_t, File)> {
        let mut ends = [0; 2];
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: writes two descriptors.
        check(unsafe { libc::pipe2(ends.as_mut_ptr(), flags) }, "pipe2")?;
        // SAFETY: the kernel has just made them for us.
        let [reader, writer] = ends.map(|end| unsafe { File::from_raw_fd(end) });
        // SAFETY: this process has one thread.
        let pid = check(unsafe { libc::fork() }, "fork")?;
        if pid != 0 {
            return Ok((pid, reader));
        }
        // SAFETY: the signal ends this process, and nothing else is set up for it.
        unsafe { libc::alarm(PATIENCE) };
        let outcome = self.attempt(&self.cases[index]);
        let json = serde_json::to_vec(&outcome).expect("an outcome is plain data");
        drop((&writer).write_all(&json));
        // SAFETY: ends this process and touches nothing.
        unsafe { libc::_exit(0) }
    }

    fn attempt(&self, case: &Case) -> Outcome {
        let Some(way) = Way::named(&case.way) else {
            return Outcome::Hung;
        };
        let attempt = Attempt {
            scene: &self.scene,
            case,
            to: case.to,
        };
        (way.attempt)(&attempt).map_or_else(Outcome::from, |()| Outcome::Sent)
    }

    /// Tries the first one in this process; the exit code is the number of the error.
    fn one(&self) -> ExitCode {
        let Some((case, way)) = self
            .cases
            .first()
            .and_then(|it| Some((it, Way::named(&it.way)?)))
        else {
            return ExitCode::from(2);
        };
        let attempt = Attempt {
            scene: &self.scene,
            case,
            to: case.to,
        };
        let number = match (way.attempt)(&attempt) {
            Ok(()) => 0,
            Err(failed) => failed.error.raw_os_error().unwrap_or(libc::EIO),
        };
        ExitCode::from(u8::try_from(number).unwrap_or(u8::MAX))
    }
}

fn become_one(who: Who) -> Result {
    match who {
        Who::Root => Ok(()),
        Who::RootWithoutNetAdmin => {
            remove_capability_from_bounding_set(rustix::thread::CapabilitySet::NET_ADMIN)
                .call("PR_CAPBSET_DROP")?;
            let mut sets = capabilities(None).call("capget")?;
            for set in [
                &mut sets.effective,
                &mut sets.permitted,
                &mut sets.inheritable,
            ] {
                set.remove(CapabilitySet::NET_ADMIN);
            }
            set_capabilities(None, sets).call("capset")
        }
        Who::User => {
            // SAFETY: of this process, which has one thread.
            unsafe {
                check(libc::setgroups(0, std::ptr::null()), "setgroups")?;
                check(libc::setresgid(NOBODY, NOBODY, NOBODY), "setresgid")?;
                check(libc::setresuid(NOBODY, NOBODY, NOBODY), "setresuid")?;
                // A program that has changed its user is not shown to itself otherwise.
                check(libc::prctl(libc::PR_SET_DUMPABLE, 1), "PR_SET_DUMPABLE").map(drop)
            }
        }
    }
}
