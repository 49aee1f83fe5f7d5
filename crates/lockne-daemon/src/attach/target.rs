//! Which processes a request means.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use lockne_core::api::Target;

use super::tree;
use crate::{
    authority::Caller,
    error::Error,
    peer::Peer,
    process::{self, Stat, all, namespace, own_netns},
};

/// Why a process cannot be put under a policy, or taken out.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// There is no such process.
    #[error("there is no process {pid}")]
    NoPid {
        /// Its number.
        pid: u32,
    },
    /// No process has that name.
    #[error("no process is called `{name}`")]
    NoName {
        /// The name.
        name: String,
    },
    /// It is a part of the kernel.
    #[error("process {pid} ({name}) is a part of the kernel")]
    Kernel {
        /// Its number.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// It is the daemon.
    #[error("process {pid} is lockne's own daemon")]
    Daemon {
        /// Its number.
        pid: u32,
    },
    /// Every process descends from it.
    #[error("process 1 is the parent of all others")]
    Init,
    /// It is in another network namespace.
    #[error("process {pid} ({name}) is in another network namespace")]
    OtherNamespace {
        /// Its number.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// The asker counts processes differently.
    #[error("the process that asks is in another pid namespace, where other numbers are valid")]
    OtherNumbers,
    /// It has no policy.
    #[error("process {pid} ({name}) has no policy, so there is nothing to take it out of")]
    Free {
        /// Its number.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// It ended meanwhile.
    #[error("process {pid} has ended")]
    Ended {
        /// Its number.
        pid: u32,
    },
}

impl TargetError {
    /// What a user can do about it.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoPid { .. } | Self::Ended { .. } => {
                Some("look it up with `pgrep -a NAME`; the number of a thread is none of a process")
            }
            Self::NoName { .. } => Some(
                "the name is that of its executable, without arguments; `pgrep -l` shows names, and `--pid` takes a number",
            ),
            Self::Kernel { .. } => Some("only programs can have a policy"),
            Self::Daemon { .. } => {
                Some("the tunnels' own packets would go into themselves; nothing was changed")
            }
            Self::Init => Some("attach the programs that are meant, one by one"),
            Self::OtherNamespace { .. } => Some(
                "a container or virtual machine has a network of its own; lockne polices its own network namespace",
            ),
            Self::OtherNumbers => Some("run it outside of the container"),
            Self::Free { .. } => Some("`lockne status` shows who has one"),
        }
    }
}

/// A process that stays the same one, whatever becomes of its number.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) name: String,
    pub(crate) threads: u32,
    handle: OwnedFd,
}

impl Process {
    /// Takes hold of a living process; `None` if there is none.
    pub(crate) fn open(pid: u32) -> Option<Self> {
        let handle = process::open(pid).ok()?;
        let stat = Stat::read(pid).filter(|stat| !stat.has_ended)?;
        let process = Self {
            pid,
            name: stat.name,
            threads: stat.threads,
            handle,
        };
        // Else the line could be that of the number's next owner.
        (!process.has_ended()).then_some(process)
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        process::has_ended(&self.handle)
    }

    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// The processes that `target` names, as who asks counts them; by name only those that he may move.
pub(crate) fn resolve(target: &Target, caller: &Caller) -> Result<Vec<Process>, Error> {
    let peer = &caller.peer;
    let checked = |pid: u32| -> Result<Process, Error> {
        let process = checked(pid)?;
        caller.require_own(pid, process.handle())?;
        Ok(process)
    };
    Ok(match target {
        Target::Pid(pid) => {
            require_same_numbers(peer)?;
            vec![checked(*pid)?]
        }
        Target::Name(name) => {
            let pids = all().unwrap_or_default().into_iter();
            let named = pids.filter(|pid| tree::is_called(*pid, name));
            // Who asks has the name too, if it is `lockne`; and so may have threads of the kernel.
            let named = named.filter(|pid| Some(*pid) != peer.pid);
            let results: Vec<_> = named.map(checked).collect();
            let mut found = Vec::new();
            let mut first = None;
            for result in results {
                match result {
                    Ok(process) => found.push(process),
                    Err(error) => {
                        first.get_or_insert(error);
                    }
                }
            }
            match (found.is_empty(), first) {
                (false, _) => found,
                (true, Some(error)) => return Err(error),
                (true, None) => return Err(TargetError::NoName { name: name.clone() }.into()),
            }
        }
    })
}

/// Takes hold of a process that can have a policy.
fn checked(pid: u32) -> Result<Process, TargetError> {
    if pid == std::process::id() {
        return Err(TargetError::Daemon { pid });
    }
    if pid == 1 {
        return Err(TargetError::Init);
    }
    let stat = Stat::read(pid).ok_or(TargetError::NoPid { pid })?;
    if stat.is_kernel {
        let name = stat.name;
        return Err(TargetError::Kernel { pid, name });
    }
    let process = Process::open(pid).ok_or(TargetError::NoPid { pid })?;
    if is_elsewhere(pid) {
        let name = process.name;
        return Err(TargetError::OtherNamespace { pid, name });
    }
    Ok(process)
}

/// A number that somebody types in a container means another process there than here.
pub(crate) fn require_same_numbers(peer: &Peer) -> Result<(), TargetError> {
    let theirs = peer.pid.and_then(|pid| namespace(pid, "pid").ok());
    let ours = namespace(std::process::id(), "pid").ok();
    // An asker that has gone meanwhile gets no answer anyway.
    if peer.pid.is_none() || theirs.is_some() && theirs != ours {
        return Err(TargetError::OtherNumbers);
    }
    Ok(())
}

/// Whether a process is in another network namespace than we are.
pub(crate) fn is_elsewhere(pid: u32) -> bool {
    let theirs = namespace(pid, "net").ok();
    theirs.is_some() && theirs != own_netns().ok()
}
