//! Programs that ran before the rules: found in `/proc`, and given what the rules say.
//!
//! By now the kernel decides each exec by the new rules. So what is left are processes that do not exec,
//! and their children, who inherit what the parent has at that moment. We look until there is nothing to
//! do, and nobody was born while we looked.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use lockne_abi::{MarkField, RuleBits, look, node};
use lockne_core::{
    policy::{PolicyId, Terms},
    rule::{Existing, RuleName},
};
use tracing::warn;

use super::{
    CompiledRule, Error, Fallback, Moved,
    path::{Mounts, identity},
    sheet,
};
use crate::{
    inherited,
    kernel::{self, Kernel, Sheet},
    process,
};

/// How often we look before we leave the rest to the next time. A machine that is busy with starting
/// programs is never still.
const LOOKS: usize = 50;

/// What is in force.
pub(super) struct InForce<'a> {
    pub(super) field: MarkField,
    pub(super) sheet: &'a Sheet,
    pub(super) rules: &'a [CompiledRule],
    pub(super) fallback: Option<&'a Fallback>,
    /// Policies of rules that have another one now.
    pub(super) moved: &'a BTreeMap<PolicyId, usize>,
}

/// Why a process gets a policy.
#[derive(Clone, Copy)]
enum Reason {
    /// By this rule.
    Rule(usize),
    Fallback,
}

impl InForce<'_> {
    /// Gives every living process what the rules say.
    pub(super) fn police(&self, kernel: &mut Kernel) -> Result<Vec<Moved>, Error> {
        let mut moved = Vec::new();
        // Whose children are to follow: those that were found by us, and not those that somebody freed.
        let mut heads = HashMap::new();
        let mut still = 0;
        for _ in 0..LOOKS {
            let births = births()?;
            let before = moved.len();
            self.look(kernel, &mut heads, &mut moved)?;
            still = if moved.len() == before { still + 1 } else { 0 };
            if still > 0 && (births == self::births()? || still > 2) {
                return Ok(moved);
            }
        }
        warn!("programs start so fast that one which ran before the rules may have been missed");
        Ok(moved)
    }

    fn look(
        &self,
        kernel: &mut Kernel,
        heads: &mut HashMap<u32, Reason>,
        moved: &mut Vec<Moved>,
    ) -> Result<(), Error> {
        let us = std::process::id();
        let pids = process::all().map_err(|source| Error::Read {
            path: "/proc".into(),
            source,
        })?;
        let processes: BTreeMap<u32, Process> = pids
            .into_iter()
            .filter(|pid| *pid != us && !kernel.is_chosen(*pid))
            .filter_map(|pid| Some((pid, Process::of(pid)?)))
            .collect();
        let ours = Mounts::of("thread-self").unwrap_or_default();
        for (pid, found) in &processes {
            let now = kernel.process(*pid);
            let named = self.named(*pid, found, &ours).map(Reason::Rule);
            let reason = named
                .or_else(|| self.moved.get(&now?).copied().map(Reason::Rule))
                .or_else(|| {
                    if now.is_some() {
                        return None;
                    }
                    let mut above = Some(found.parent);
                    // A ring cannot be, but the numbers may be used anew while we look.
                    for _ in 0..processes.len() {
                        let parent = above?;
                        if let Some(reason) = heads.get(&parent) {
                            return Some(*reason);
                        }
                        above = processes.get(&parent).map(|it| it.parent);
                    }
                    None
                })
                .or_else(|| (now.is_none() && self.fallback.is_some()).then_some(Reason::Fallback));
            let Some(reason) = reason else { continue };
            if let Reason::Rule(_) = reason {
                heads.insert(*pid, reason);
            }
            let (policy, terms, existing, rule) = self.of(reason);
            if now == Some(policy) {
                continue;
            }
            match kernel.set_by_rule(*pid, now, Some(policy)) {
                // Somebody was faster; the next look sees what is so now.
                Ok(false) | Err(kernel::Error::NoProcess { .. }) => continue,
                Err(kernel::Error::ProcessBeyond { .. }) => {
                    warn!(
                        pid,
                        "this program's number is beyond the table; start it anew"
                    );
                    continue;
                }
                Ok(true) => {}
                Err(error) => return Err(error.into()),
            }
            if process::has_ended(&found.handle) {
                // The number has another owner, who was not meant.
                let _ended_too = kernel.set_by_rule(*pid, Some(policy), now);
                continue;
            }
            let handle = found.handle.as_fd();
            let bound = inherited::bind(handle, *pid, self.field, policy, terms, existing);
            let cut = bound.unwrap_or_else(|error| {
                warn!(
                    pid,
                    ?error,
                    "sockets of a program that a rule names may stay as they were"
                );
                0
            });
            moved.push(Moved {
                pid: *pid,
                rule,
                policy,
                cut,
            });
        }
        Ok(())
    }

    fn of(&self, reason: Reason) -> (PolicyId, &Terms, Existing, Option<RuleName>) {
        match (reason, self.fallback) {
            (Reason::Rule(at), _) => {
                let CompiledRule { rule, policy } = &self.rules[at];
                (*policy, &rule.terms, rule.existing, Some(rule.name.clone()))
            }
            (Reason::Fallback, Some(it)) => (it.policy, &it.terms, it.existing, None),
            (Reason::Fallback, None) => unreachable!("it is given only where there is one"),
        }
    }

    /// The first rule that names the process. The kernel does the same at exec.
    fn named(&self, pid: u32, process: &Process, ours: &Mounts) -> Option<usize> {
        let sheet = self.sheet;
        if sheet.outline.looks == 0 {
            return None;
        }
        let looks = |at: usize| sheet.outline.looks >> at & 1 == 1;
        let mut bits = [RuleBits::NONE; look::COUNT];
        if looks(look::EXECUTABLE) {
            bits[look::EXECUTABLE] = executable(sheet, pid, ours);
        }
        if looks(look::USER) {
            let found = sheet.users.get(&process.user);
            bits[look::USER] = found.copied().unwrap_or_default();
        }
        if looks(look::GROUP) {
            bits[look::GROUP] = group(sheet, pid);
        }
        sheet::first(sheet, &bits)
    }
}

/// A process as it was found.
struct Process {
    handle: OwnedFd,
    parent: u32,
    /// The real one.
    user: u32,
}

impl Process {
    /// `None` for threads of the kernel, and for what has ended.
    fn of(pid: u32) -> Option<Self> {
        let handle = process::open(pid).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        // Threads of the kernel have no memory of their own.
        status.lines().find(|line| line.starts_with("VmSize:"))?;
        Some(Self {
            handle,
            parent: field("PPid:")?,
            user: field("Uid:")?,
        })
    }
}

/// The rules that name the file that a process runs.
fn executable(sheet: &Sheet, pid: u32, ours: &Mounts) -> RuleBits {
    let link = PathBuf::from(format!("/proc/{pid}/exe"));
    let theirs;
    let mounts = if ours.knows(&link) {
        ours
    } else {
        theirs = Mounts::of(&pid.to_string()).unwrap_or_default();
        &theirs
    };
    let mut bits = RuleBits::NONE;
    let mut add = |found: Option<&RuleBits>| {
        for (word, more) in bits
            .words
            .iter_mut()
            .zip(found.map_or([0; 16], |it| it.words))
        {
            *word |= more;
        }
    };
    if let Ok(file) = identity(&link, mounts) {
        add(sheet.executables.get(&(file.device, file.inode)));
    }
    // By its place too: an update may have put another file there since.
    if let Ok(target) = fs::read_link(&link) {
        let target = target.as_os_str().as_bytes();
        let target = target.strip_suffix(b" (deleted)").unwrap_or(target);
        let path = Path::new(std::ffi::OsStr::from_bytes(target));
        if let (Some(directory), Some(name)) = (path.parent(), path.file_name())
            && let Ok(below) = directory.strip_prefix("/")
            && let Ok(found) =
                identity(&Path::new(&format!("/proc/{pid}/root")).join(below), mounts)
        {
            let key = (found.device, found.inode, name.as_bytes().to_vec());
            add(sheet.places.get(&key));
        }
    }
    bits
}

/// The rules that name the cgroup of a process, or one that it is in.
fn group(sheet: &Sheet, pid: u32) -> RuleBits {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    by_names(sheet, path.unwrap_or_default().split('/'))
}

fn by_names<'a>(sheet: &Sheet, names: impl Iterator<Item = &'a str>) -> RuleBits {
    let mut bits = RuleBits::NONE;
    let mut add = |parent: u32, name: &str| {
        let Some(group) = sheet.groups.get(&(parent, name.as_bytes().to_vec())) else {
            return node::NONE;
        };
        for (word, more) in bits.words.iter_mut().zip(group.bits.words) {
            *word |= more;
        }
        group.node
    };
    let mut at = node::ROOT;
    let mut scope = None;
    for name in names.filter(|name| !name.is_empty()) {
        if at != node::NONE {
            at = add(at, name);
        }
        add(node::UNIT, name);
        if name.starts_with("app-flatpak-") || name.starts_with("snap.") {
            scope = Some(name);
        }
    }
    if let Some(stem) = scope.and_then(stem) {
        add(node::STEM, stem);
    }
    bits
}

/// As the kernel program cuts it.
fn stem(name: &str) -> Option<&str> {
    let end = if name.starts_with("app-") {
        name.rfind('-')?
    } else {
        name.match_indices('.').nth(1)?.0
    };
    name.get(..end)
}

/// How many processes and threads there ever were.
fn births() -> Result<u64, Error> {
    let failed = |source| Error::Read {
        path: "/proc/stat".into(),
        source,
    };
    let text = fs::read_to_string("/proc/stat").map_err(failed)?;
    text.lines()
        .find_map(|line| line.strip_prefix("processes ")?.trim().parse().ok())
        .ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}

#[cfg(test)]
mod tests {
    use lockne_abi::Group;

    use super::*;

    #[test]
    fn cgroup_is_named_by_its_path_its_unit_or_its_application() {
        let mut sheet = Sheet::default();
        let mut insert = |parent, name: &str, node, rule: Option<usize>| {
            let mut bits = RuleBits::NONE;
            if let Some(rule) = rule {
                bits.insert(rule);
            }
            let group = Group {
                node,
                padding: 0,
                bits,
            };
            sheet
                .groups
                .insert((parent, name.as_bytes().to_vec()), group);
        };
        insert(node::ROOT, "user.slice", 4, None);
        insert(4, "x", 0, Some(0));
        insert(node::UNIT, "ssh.service", 0, Some(1));
        insert(node::STEM, "app-flatpak-org.x", 0, Some(2));
        let named = |path: &str| {
            let bits = by_names(&sheet, path.split('/'));
            (0..3)
                .filter(|rule| bits.contains(*rule))
                .collect::<Vec<_>>()
        };

        assert_eq!(named("user.slice/x"), [0]);
        assert_eq!(named("user.slice/x/below"), [0]);
        assert_eq!(named("other/user.slice/x"), [] as [usize; 0]);
        assert_eq!(named("system.slice/ssh.service"), [1]);
        assert_eq!(named("a/app-flatpak-org.x-12.scope"), [2]);
        assert_eq!(named("a/app-flatpak-org.xy-12.scope"), [] as [usize; 0]);
    }
}
