//! `attach` and `detach`: a program that runs already gets a policy, or loses it, with all that it is.
//!
//! First the processes, then their sockets: from the first step on, whatever the program makes or connects is on
//! the new way by itself, so the second one ends. The whole is one step of the daemon's loop; a client that goes away
//! in the middle changes nothing about it.

pub(crate) mod sockets;
pub(crate) mod target;
pub(crate) mod tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU8,
    time::Duration,
};

use lockne_abi::Member;
use lockne_core::{
    api::{Attach, Counts, Detach, Moved, MovedProcess},
    policy::{Action, PolicyId, Terms},
    rule::Existing,
};
use tracing::{info, warn};

pub use self::target::TargetError;
use self::{
    sockets::{Move, Sockets},
    target::Process,
};
use crate::{
    authority::{Caller, Change},
    daemon::Daemon,
    error::Error,
    kernel::{self, Kernel},
    wireguard::Endpoints,
};

impl Daemon {
    /// Puts a program that runs under a policy.
    pub(crate) async fn attach(
        &mut self,
        caller: &Caller,
        request: Attach,
        found: Option<Endpoints>,
    ) -> Result<Moved, Error> {
        let roots = target::resolve(&request.target, caller)?;
        Self::require_sane(&request.terms)?;
        if let Some(tunnel) = request.tunnel {
            self.tunnel_up_for(caller, tunnel, found).await?;
        }
        let (terms, mut notices) = self.ready(caller, request.terms).await?;
        // Judged before a policy is made for nothing, and again when nothing can come in between.
        self.police(caller, &roots, Some(&terms))?;
        notices.extend(self.tell_of_open_sockets(&terms));
        let id = self.policy(terms.clone()).await?;
        self.police(caller, &roots, Some(&terms))?;
        let terms = self.through_tunnel(id).unwrap_or(terms);
        let existing = request.existing.unwrap_or(match terms.action {
            Action::Via(_) | Action::Block => Existing::Reset,
            Action::Direct => Existing::Keep,
        });
        let capture = Capture::new(roots, Some(id), &self.kernel, request.children, caller);
        let mut moved = self.move_all(capture, Some(id), existing, &terms.lan)?;
        self.had_job = true;
        notices.append(&mut moved.notices);
        Ok(Moved { notices, ..moved })
    }

    /// Takes a program out of its policy.
    pub(crate) fn detach(&mut self, caller: &Caller, request: &Detach) -> Result<Moved, Error> {
        let roots = target::resolve(&request.target, caller)?;
        if roots
            .iter()
            .all(|root| self.kernel.process(root.pid).is_none())
            && let Some(root) = roots.first()
        {
            return Err(TargetError::Free {
                pid: root.pid,
                name: root.name.clone(),
            }
            .into());
        }
        self.police(caller, &roots, None)?;
        let existing = request.existing.unwrap_or(Existing::Keep);
        let capture = Capture::new(roots, None, &self.kernel, request.children, caller);
        let mut moved = self.move_all(capture, None, existing, &BTreeSet::new())?;
        if moved.counts.kept > 0 {
            self.keeps_connections = true;
            moved
                .notices
                .push("connections that were kept end when their tunnel is taken down".to_owned());
        }
        Ok(moved)
    }

    /// Whether who asks may give each of these `wanted`, or free them without it.
    fn police(
        &self,
        caller: &Caller,
        roots: &[Process],
        wanted: Option<&Terms>,
    ) -> Result<(), Error> {
        let asker = self.asker(caller)?;
        for root in roots {
            let present = self.present(root.pid);
            let change = Change {
                asker: asker.as_ref(),
                present: present.as_ref(),
                wanted,
            };
            caller.police(root.pid, root.handle(), change)?;
        }
        Ok(())
    }

    /// Gives who is captured, and who descends from them, the policy `id`, and brings their sockets along.
    fn move_all(
        &mut self,
        mut capture: Capture<'_>,
        id: Option<PolicyId>,
        existing: Existing,
        lan: &BTreeSet<ipnet::IpNet>,
    ) -> Result<Moved, Error> {
        let field = self.options.field;
        let mut sockets = Sockets::default();
        let how = Move {
            field,
            policy: id,
            existing,
            lan,
        };
        let captured = capture.run(&mut self.kernel).map_err(Error::from);
        let result = captured.and_then(|()| {
            capture.require_some()?;
            Ok(sockets.bring(capture.processes(), how)?)
        });
        if let Err(error) = result {
            sockets.undo();
            capture.undo(&mut self.kernel);
            return Err(error);
        }
        let mut notices = capture.notices();
        let processes = capture.into_list();
        let sockets = sockets.into_list();
        let pids = processes.iter().map(|process| process.pid).collect();
        let sharers = sockets::sharers(&sockets, &pids);
        if !sharers.is_empty() {
            notices.push(format!(
                "these processes share some of its sockets, which changed for them too: {}",
                sharers.join(", ")
            ));
        }
        let counts = Counts::of(&sockets);
        info!(policy = ?id, processes = processes.len(), ?counts, "moved");
        Ok(Moved {
            policy: id,
            mark: id.map_or(0, |id| field.mark(id.get())),
            existing,
            processes,
            sockets,
            counts,
            notices,
        })
    }
}

/// Processes on their way to another policy.
struct Capture<'a> {
    caller: &'a Caller,
    to: Member,
    children: bool,
    roots: Vec<u32>,
    /// Who has another policy than every root had, keeps it.
    from: BTreeSet<Option<PolicyId>>,
    processes: Vec<Process>,
    before: BTreeMap<u32, Member>,
    others: BTreeSet<u32>,
    /// Those that are not wholly the asker's.
    strangers: BTreeSet<u32>,
    /// Whether the daemon descends from a root.
    met_daemon: bool,
}

impl<'a> Capture<'a> {
    fn new(
        roots: Vec<Process>,
        to: Option<PolicyId>,
        kernel: &Kernel,
        children: bool,
        caller: &'a Caller,
    ) -> Self {
        let mut from: BTreeSet<_> = roots.iter().map(|root| kernel.process(root.pid)).collect();
        // Who is free has no policy of its own.
        from.insert(None);
        Self {
            caller,
            // Freed for good: a rule would take it back at its next exec.
            to: Member::chosen(to.map_or(0, PolicyId::get)),
            children,
            from,
            roots: roots.iter().map(|root| root.pid).collect(),
            processes: roots,
            before: BTreeMap::new(),
            others: BTreeSet::new(),
            strangers: BTreeSet::new(),
            met_daemon: false,
        }
    }

    fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// Goes on until a look at all descendants finds nobody left.
    ///
    /// A child that is forked after its parent was captured inherits. One that is forked while this runs is seen by
    /// `/proc` before the hook on fork has run, and the hook may take back what was written meanwhile: so after each
    /// write, hooks that run already are waited for, and then all is looked at again.
    fn run(&mut self, kernel: &mut Kernel) -> Result<(), kernel::Error> {
        loop {
            let pids = if self.children {
                tree::with_descendants(&self.roots)
            } else {
                self.roots.clone()
            };
            let mut changed = false;
            for pid in pids {
                changed |= self.capture(pid, kernel)?;
            }
            if !changed {
                return Ok(());
            }
            wait_for_hooks();
        }
    }

    /// Returns whether it had to be written.
    fn capture(&mut self, pid: u32, kernel: &mut Kernel) -> Result<bool, kernel::Error> {
        if pid == std::process::id() {
            self.met_daemon = true;
            return Ok(false);
        }
        let now = kernel.standing(pid);
        let known = self.processes.iter().position(|it| it.pid == pid);
        let known = match known {
            // The number has another owner by now.
            Some(at) if self.processes[at].has_ended() => {
                self.processes.remove(at);
                self.before.remove(&pid);
                if self.roots.contains(&pid) {
                    return Ok(false);
                }
                None
            }
            known => known,
        };
        let is_other = now.policy() != self.to.policy();
        if is_other && !self.from.contains(&policy_of(now)) {
            self.others.insert(pid);
            return Ok(false);
        }
        if known.is_none() {
            let Some(process) = Process::open(pid) else {
                return Ok(false);
            };
            // A setuid program that one of them has started is not the user's, though it descends from what is.
            if !self.caller.owns(pid, process.handle()).unwrap_or(false) {
                if !process.has_ended() {
                    self.strangers.insert(pid);
                }
                return Ok(false);
            }
            self.processes.push(process);
        }
        self.before.entry(pid).or_insert(now);
        if now == self.to {
            return Ok(false);
        }
        match kernel.set_standing(pid, self.to) {
            Err(kernel::Error::NoProcess { .. }) => {
                self.before.remove(&pid);
                return Ok(false);
            }
            result => result?,
        }
        // The number may have got another owner while we wrote.
        let is_same = self
            .processes
            .iter()
            .any(|it| it.pid == pid && !it.has_ended());
        if !is_same {
            self.before.remove(&pid);
            match kernel.set_process(pid, None) {
                Ok(()) | Err(kernel::Error::NoProcess { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(is_same)
    }

    /// Fails if all had ended before they could be moved. Who ends afterwards, for it lost its connections, was
    /// moved.
    fn require_some(&self) -> Result<(), TargetError> {
        match (self.before.is_empty(), self.roots.first()) {
            (true, Some(pid)) => Err(TargetError::Ended { pid: *pid }),
            _ => Ok(()),
        }
    }

    /// Puts everybody back to where they stood, children that were born meanwhile too.
    fn undo(&self, kernel: &mut Kernel) {
        let first = self.roots.first().and_then(|root| self.before.get(root));
        for pid in tree::with_descendants(&self.roots) {
            let before = match self.before.get(&pid) {
                Some(before) => *before,
                None if kernel.standing(pid) == self.to => first.copied().unwrap_or(Member::FREE),
                None => continue,
            };
            match kernel.set_standing(pid, before) {
                Ok(()) | Err(kernel::Error::NoProcess { .. }) => {}
                Err(error) => warn!(%error, pid, "cannot put a process back under its policy"),
            }
        }
    }

    fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        if !self.others.is_empty() {
            let all: Vec<_> = self.others.iter().map(ToString::to_string).collect();
            notices.push(format!(
                "these descendants have a policy of their own, and keep it: {}",
                all.join(", ")
            ));
        }
        if !self.strangers.is_empty() {
            let all: Vec<_> = self.strangers.iter().map(ToString::to_string).collect();
            notices.push(format!(
                "these descendants are not wholly yours, and stay as they are: {}",
                all.join(", ")
            ));
        }
        if self.met_daemon {
            notices.push("lockne's daemon is a descendant too, and stays free".to_owned());
        }
        notices
    }

    fn into_list(self) -> Vec<MovedProcess> {
        let mut list: Vec<_> = self
            .processes
            .into_iter()
            .filter(|process| self.before.contains_key(&process.pid))
            .map(|process| MovedProcess {
                before: self.before.get(&process.pid).copied().and_then(policy_of),
                pid: process.pid,
                name: process.name,
                threads: process.threads,
            })
            .collect();
        list.sort_by_key(|process| process.pid);
        list
    }
}

fn policy_of(member: Member) -> Option<PolicyId> {
    NonZeroU8::new(member.policy()).map(PolicyId)
}

/// Waits until every kernel program that runs now has ended.
fn wait_for_hooks() {
    /// `MEMBARRIER_CMD_GLOBAL`: the kernel waits for an RCU grace period, and each run of a BPF program is inside
    /// of one.
    const GLOBAL: libc::c_int = 1;
    // SAFETY: it takes numbers only, and may be called at any time.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result != 0 {
        // Kernels that run without ticks do not have it; a hook takes less than a microsecond.
        std::thread::sleep(Duration::from_millis(20));
    }
}
