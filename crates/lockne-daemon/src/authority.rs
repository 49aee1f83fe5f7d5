//! Who may do what: the one place that decides it.
//!
//! Root may do all. Everybody else may do what [`Permissions`] grant him, to own processes. A process that has a
//! policy gets no other one by asking: else a program could free itself from the policy it was put under.

use std::{
    collections::BTreeMap,
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    sync::{Arc, PoisonError, RwLock},
};

use lockne_core::{
    api::{Status, TunnelUp},
    permission::{Denied, Granted, Names, Permissions, Subject},
    policy::Terms,
    tunnel::TunnelName,
};

use crate::{
    error::Error,
    peer::Peer,
    process::{self, has_ended},
};

/// How many policies the users together may take, so that root finds one free.
pub(crate) const USERS_POLICIES: usize = 192;
/// How many tunnels of his own a user may have up.
const USERS_TUNNELS: usize = 8;

/// The permissions, shared by the loop that changes them and the requests that are judged by them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Authority(Arc<RwLock<Permissions>>);

/// Somebody who asks, with what he may do.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) peer: Peer,
    rights: Rights,
}

#[derive(Clone, Debug)]
enum Rights {
    All,
    Granted(Granted),
}

impl Authority {
    pub(crate) fn new(permissions: Permissions) -> Self {
        Self(Arc::new(RwLock::new(permissions)))
    }

    /// From now on these hold; what was granted before and is used stays as it is.
    pub(crate) fn set(&self, permissions: Permissions) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = permissions;
    }

    /// Judges who asks. Names of users and groups are looked up anew each time, so that one who joins a group, or
    /// whose directory service came late, need not wait for a restart.
    pub(crate) async fn judge(&self, peer: Peer) -> Caller {
        if peer.uid == 0 || peer.uid == rustix::process::geteuid().as_raw() {
            return Caller {
                peer,
                rights: Rights::All,
            };
        }
        let permissions = self
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let subject = Subject {
            uid: peer.uid,
            gids: peer.gids.clone(),
        };
        // A directory service may be slow to answer, and the loop must not wait for it.
        let granted =
            tokio::task::spawn_blocking(move || permissions.of(&subject, &names(&permissions)));
        Caller {
            peer,
            rights: Rights::Granted(granted.await.unwrap_or_default()),
        }
    }
}

impl Caller {
    /// What is for root only.
    pub(crate) fn root(&self) -> Result<(), Error> {
        match self.rights {
            Rights::All => Ok(()),
            Rights::Granted(_) => Err(self.denied(Denied::RootOnly)),
        }
    }

    /// Whether he may bring up a tunnel from a file.
    pub(crate) fn tunnel_up(&self, request: &TunnelUp) -> Result<(), Error> {
        match &self.rights {
            Rights::All => Ok(()),
            Rights::Granted(_) if request.allow_hooks => Err(self.denied(Denied::Hooks)),
            Rights::Granted(granted) if granted.tunnels => Ok(()),
            Rights::Granted(_) => Err(self.denied(Denied::Tunnels)),
        }
    }

    /// Whether he may have one more tunnel, where he has `count`.
    pub(crate) fn another_tunnel(&self, count: usize) -> Result<(), Error> {
        match self.rights {
            Rights::Granted(_) if count >= USERS_TUNNELS => Err(Error::Quota {
                uid: self.peer.uid,
                what: "tunnels up",
                limit: USERS_TUNNELS,
            }),
            _ => Ok(()),
        }
    }

    /// Whether he may take down a tunnel that `owner` has brought up.
    pub(crate) fn tunnel_down(&self, owner: Option<u32>) -> Result<(), Error> {
        match &self.rights {
            Rights::All => Ok(()),
            Rights::Granted(granted) if granted.tunnels && owner == Some(self.peer.uid) => Ok(()),
            Rights::Granted(_) => Err(self.denied(Denied::Tunnels)),
        }
    }

    /// Whether he may use `terms`, where `owner` has brought the tunnel up; and where they would be a policy more,
    /// whether there may be one, with as many as there are.
    pub(crate) fn use_of(
        &self,
        terms: &Terms,
        owner: impl Fn(&TunnelName) -> Option<u32>,
        policies: usize,
        is_new: bool,
    ) -> Result<(), Error> {
        let Rights::Granted(granted) = &self.rights else {
            return Ok(());
        };
        let mut granted = granted.clone();
        if granted.tunnels {
            let own = |name: &&TunnelName| owner(name) == Some(self.peer.uid);
            granted.via.extend(terms.tunnels().filter(own).cloned());
        }
        granted
            .use_of(terms)
            .map_err(|denied| self.denied(denied))?;
        if is_new && policies >= USERS_POLICIES {
            return Err(Error::Quota {
                uid: self.peer.uid,
                what: "policies for users",
                limit: USERS_POLICIES,
            });
        }
        Ok(())
    }

    /// Whether the process, which is under `present`, may be put under `wanted`.
    ///
    /// For a user it must be wholly his: one that runs a setuid program, or hides its memory from him, is not.
    pub(crate) fn police(
        &self,
        pid: u32,
        process: &OwnedFd,
        present: Option<&Terms>,
        wanted: &Terms,
    ) -> Result<(), Error> {
        let Rights::Granted(granted) = &self.rights else {
            return require_our_namespace(pid, process);
        };
        if !owns(self.peer.uid, pid, process)? {
            return Err(Error::NotOwn {
                uid: self.peer.uid,
                pid,
            });
        }
        require_our_namespace(pid, process)?;
        let change = granted.change(present, wanted);
        change.map_err(|denied| self.denied(denied))
    }

    /// Whether he may see a tunnel that `owner` has brought up.
    pub(crate) fn sees(&self, name: &TunnelName, owner: Option<u32>) -> bool {
        match &self.rights {
            Rights::All => true,
            Rights::Granted(granted) => granted.via.contains(name) || owner == Some(self.peer.uid),
        }
    }

    /// The same, as an error.
    pub(crate) fn see(&self, name: &TunnelName, owner: Option<u32>) -> Result<(), Error> {
        if self.sees(name, owner) {
            Ok(())
        } else {
            Err(self.denied(Denied::Via(name.clone())))
        }
    }

    /// What he may see of all: own processes with their policies, and the tunnels that he may use. What such a
    /// policy has carried is told as a whole.
    pub(crate) fn filter(
        &self,
        mut status: Status,
        owner: impl Fn(&TunnelName) -> Option<u32>,
    ) -> Status {
        if matches!(self.rights, Rights::All) {
            return status;
        }
        status.config = None;
        for policy in &mut status.policies {
            policy
                .processes
                .retain(|process| real_user(process.pid) == Some(self.peer.uid));
        }
        status
            .policies
            .retain(|policy| !policy.processes.is_empty());
        status
            .tunnels
            .retain(|tunnel| self.sees(&tunnel.name, owner(&tunnel.name)));
        status
    }

    fn denied(&self, denied: Denied) -> Error {
        Error::Denied {
            uid: self.peer.uid,
            denied,
        }
    }
}

/// Looks up the users and groups that the permissions name.
fn names(permissions: &Permissions) -> Names {
    let users = permissions.user_names().filter_map(|name| {
        let user = uzers::get_user_by_name(name)?;
        Some((name.to_owned(), user.uid()))
    });
    let groups = permissions.group_names().filter_map(|name| {
        let group = uzers::get_group_by_name(name)?;
        Some((name.to_owned(), group.gid()))
    });
    Names {
        users: users.collect(),
        groups: groups.collect(),
    }
}

/// Policies hold in one network namespace: elsewhere the program would go where it likes.
fn require_our_namespace(pid: u32, handle: &OwnedFd) -> Result<(), Error> {
    let ours = process::own_netns().map_err(Error::Namespace)?;
    let its = process::namespace(pid, "net");
    if has_ended(handle) {
        return Err(Error::NoProcess);
    }
    if its.map_err(Error::Namespace)? == ours {
        Ok(())
    } else {
        Err(Error::ElsewhereProcess { pid })
    }
}

/// Whether a process is the user's own in the sense of ptrace(2): each of its users is this one, it has got no
/// group or privilege from the file it executes, and it lets others of this user look at it.
fn owns(uid: u32, pid: u32, process: &OwnedFd) -> Result<bool, Error> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    // The kernel gives what the process hides to root (`task_dump_owner` in fs/proc/base.c).
    let owner = fs::metadata(format!("/proc/{pid}/stat")).map(|file| file.uid());
    // What was read is of this process only if it lives still.
    if has_ended(process) {
        return Err(Error::NoProcess);
    }
    let (Ok(status), Ok(owner)) = (status, owner) else {
        return Ok(false);
    };
    let users = ids(&status, "Uid:");
    let groups = ids(&status, "Gid:");
    Ok(users.len() == 4
        && users.iter().all(|it| *it == uid)
        && groups.len() == 4
        && groups.iter().all(|it| *it == groups[0])
        && owner == uid)
}

/// The real user of a process.
fn real_user(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    ids(&status, "Uid:").first().copied()
}

/// Real, effective, saved and file system id.
fn ids(status: &str, key: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let ids = line.unwrap_or_default().split_whitespace();
    ids.filter_map(|id| id.parse().ok()).collect()
}

/// Who has brought which tunnel up, where it was not root. A new daemon does not know it, and takes them for root's.
pub(crate) type Owners = BTreeMap<TunnelName, u32>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_from_their_own_line() {
        let status = "Name:\tUid: 0 0 0 0\nUid:\t1000\t1000\t0\t1000\nGid:\t7\t7\t7\t7\n";

        assert_eq!(ids(status, "Uid:"), [1000, 1000, 0, 1000]);
        assert_eq!(ids(status, "Gid:"), [7; 4]);
        assert!(ids(status, "None:").is_empty());
    }
}
