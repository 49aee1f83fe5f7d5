//! The sockets that a program has when its policy changes: found, marked, cut or left, and told of.
//!
//! While this looks, the program runs, so it looks again until there is nothing left to do. What it opens meanwhile
//! carries the new mark by itself; what it connects meanwhile is marked at `connect`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use ipnet::IpNet;
use lockne_abi::MarkField;
use lockne_core::{
    api::{Fate, MovedSocket, SocketStatus},
    policy::PolicyId,
    rule::Existing,
};
use socket2::SockRef;

use self::{
    held::{Held, of_listed},
    open::Open,
};
use super::target::Process;
use crate::{
    inherited::{Error, is_near},
    process::{self, Stat},
    socket::{self, Listed},
};

mod held;
mod open;

/// So often at most it looks: only a program that opens sockets without end, past every hook, needs more.
const LOOKS: u32 = 20;

/// How sockets are to be moved.
#[derive(Clone, Copy)]
pub(super) struct Move<'a> {
    pub(super) field: MarkField,
    /// The policy to mark them with; `None` takes the mark off.
    pub(super) policy: Option<PolicyId>,
    pub(super) existing: Existing,
    /// What is reached directly before and after.
    pub(super) lan: &'a BTreeSet<IpNet>,
}

/// The sockets that were found, each as it was first seen.
#[derive(Default)]
pub(super) struct Sockets {
    found: BTreeMap<u64, MovedSocket>,
    /// Their marks before, to be put back if the rest fails.
    marks: Vec<(OwnedFd, u32)>,
}

impl Sockets {
    pub(super) fn into_list(self) -> Vec<MovedSocket> {
        self.found.into_values().collect()
    }

    /// Marks sockets as they were marked. Connections that are cut stay so.
    pub(super) fn undo(self) {
        for (fd, mark) in self.marks.into_iter().rev() {
            if let Err(error) = SockRef::from(&fd).set_mark(mark) {
                tracing::warn!(%error, "cannot put a socket's mark back");
            }
        }
    }

    /// Moves every socket of `processes`, until a look finds nothing more to do.
    pub(super) fn bring(&mut self, processes: &[Process], how: Move<'_>) -> Result<(), Error> {
        for _ in 0..LOOKS {
            if !self.look(processes, how)? {
                break;
            }
        }
        Ok(())
    }

    /// Returns whether there was something to do.
    fn look(&mut self, processes: &[Process], how: Move<'_>) -> Result<bool, Error> {
        let all = socket::all().map_err(Error::Listing)?;
        let by_inode: BTreeMap<u64, &Listed> = all
            .iter()
            .filter(|it| it.inode != 0)
            .map(|it| (it.inode, it))
            .collect();
        let mut cut: Vec<(Held, Option<Listed>)> = Vec::new();
        let mut listeners = BTreeSet::new();
        let mut changed = false;
        let mut looked_at = BTreeSet::new();
        for process in processes {
            let open = Open::of(process.pid)?;
            for (inode, number) in open.sockets {
                let listed = by_inode.get(&inode).copied();
                if let Some(listed) = listed.filter(|it| it.is_listening()) {
                    listeners.insert(listed.local());
                }
                if !looked_at.insert(inode) || self.is_settled(inode, listed, how) {
                    continue;
                }
                let Some(held) = Held::take(process, number)? else {
                    continue;
                };
                let fate = self.settle(process.pid, inode, held, listed, how, &mut cut)?;
                changed |= matches!(fate, Some(Fate::Moved | Fate::Cut | Fate::Near));
            }
            for inode in open.registered {
                if looked_at.insert(inode) && !self.found.contains_key(&inode) {
                    let listed = by_inode.get(&inode).copied();
                    self.registered(process.pid, inode, listed, how)?;
                }
            }
        }
        changed |= !cut.is_empty();
        for (held, listed) in cut {
            held.cut(listed.as_ref(), how)?;
        }
        if how.existing == Existing::Reset {
            changed |= cut_unaccepted(&all, &listeners, how)?;
        }
        Ok(changed)
    }

    /// Whether nothing more is to be done about a socket.
    fn is_settled(&self, inode: u64, listed: Option<&Listed>, how: Move<'_>) -> bool {
        let Some(known) = self.found.get(&inode) else {
            return false;
        };
        match known.fate {
            Fate::Kept | Fate::Stuck => true,
            // It may have been connected between a look at the list and the change of its mark.
            _ => listed.is_none_or(|listed| how.has(listed.mark)),
        }
    }

    /// Decides what becomes of a socket, and does it but for the cut.
    fn settle(
        &mut self,
        pid: u32,
        inode: u64,
        held: Held,
        listed: Option<&Listed>,
        how: Move<'_>,
        cut: &mut Vec<(Held, Option<Listed>)>,
    ) -> Result<Option<Fate>, Error> {
        let Some(status) = held.status(inode, listed).map_err(|e| held.failed(e))? else {
            return Ok(None);
        };
        let (fate, reason) = held.fate(&status, how);
        match fate {
            Fate::Moved | Fate::Near => {
                held.mark(how)?;
                self.remember(&held, status.mark);
            }
            Fate::Cut => {
                // The far end of a TCP connection is told by the way that it knows; datagrams are not.
                if listed.is_none_or(|it| !it.is_tcp()) {
                    held.mark(how)?;
                    self.remember(&held, status.mark);
                }
                cut.push((held, listed.cloned()));
            }
            Fate::Kept | Fate::Same | Fate::Stuck => {}
        }
        let new = MovedSocket {
            pid,
            socket: status,
            fate,
            reason,
        };
        self.found
            .entry(inode)
            .and_modify(|known| {
                if fate != Fate::Same {
                    known.fate = fate;
                }
            })
            .or_insert(new);
        Ok(Some(fate))
    }

    fn remember(&mut self, held: &Held, mark: u32) {
        if let Ok(fd) = held.socket.as_fd().try_clone_to_owned() {
            self.marks.push((fd, mark));
        }
    }

    /// A socket that only an `io_uring` of the program holds: nobody can take it from there, but TCP and
    /// connected UDP can be cut.
    fn registered(
        &mut self,
        pid: u32,
        inode: u64,
        listed: Option<&Listed>,
        how: Move<'_>,
    ) -> Result<(), Error> {
        let Some(listed) = listed.filter(|it| !how.has(it.mark)) else {
            return Ok(());
        };
        let cuts = listed.is_connected() && how.existing == Existing::Reset;
        if cuts {
            listed.cut().map_err(Error::Listing)?;
        }
        let socket = of_listed(inode, listed);
        let reason = "it is registered with an io_uring, where nobody can mark it".to_owned();
        self.found.insert(
            inode,
            MovedSocket {
                pid,
                socket,
                fate: if cuts { Fate::Cut } else { Fate::Stuck },
                reason: (!cuts).then_some(reason),
            },
        );
        Ok(())
    }
}

/// Who but `processes` has one of the sockets that were changed too, by name and number.
pub(super) fn sharers(moved: &[MovedSocket], processes: &BTreeSet<u32>) -> Vec<String> {
    let changed = |it: &&MovedSocket| matches!(it.fate, Fate::Moved | Fate::Cut | Fate::Near);
    let changed = moved.iter().filter(changed).map(|it| it.socket.inode);
    let changed: BTreeSet<u64> = changed.collect();
    if changed.is_empty() {
        return Vec::new();
    }
    let others = process::all().unwrap_or_default().into_iter();
    // The daemon holds what it has just marked.
    let others = others.filter(|pid| !processes.contains(pid) && *pid != std::process::id());
    let shares = |pid: &u32| {
        Open::of(*pid).is_ok_and(|open| open.sockets.keys().any(|inode| changed.contains(inode)))
    };
    others
        .filter(shares)
        .filter_map(|pid| Some(format!("{} {pid}", Stat::read(pid)?.name)))
        .collect()
}

/// Every socket on the network that `process` has.
pub(crate) fn of(process: &Process) -> Result<Vec<SocketStatus>, Error> {
    let all = socket::all().map_err(Error::Listing)?;
    let open = Open::of(process.pid)?;
    let mut sockets = Vec::new();
    for (inode, number) in open.sockets {
        let listed = all.iter().find(|it| it.inode == inode);
        let Some(held) = Held::take(process, number)? else {
            continue;
        };
        sockets.extend(held.status(inode, listed).map_err(|e| held.failed(e))?);
    }
    Ok(sockets)
}

impl Move<'_> {
    fn id(&self) -> u8 {
        self.policy.map_or(0, PolicyId::get)
    }

    fn has(&self, mark: u32) -> bool {
        self.field.policy(mark) == self.id()
    }
}

/// Cuts connections that nobody has accepted yet at `listeners`: they carry the mark that these had.
fn cut_unaccepted(
    all: &[Listed],
    listeners: &BTreeSet<SocketAddr>,
    how: Move<'_>,
) -> Result<bool, Error> {
    let waits_here = |it: &&Listed| {
        it.is_tcp()
            && it.inode == 0
            && matches!(it.state(), "established" | "syn-received" | "close-wait")
            && !how.has(it.mark)
            && listeners
                .iter()
                .any(|listener| listener.port() == it.local().port())
    };
    let mut any = false;
    for waiting in all.iter().filter(waits_here) {
        let remote = waiting.remote().map(|it| it.ip());
        if !is_near(Some(waiting.local().ip()), remote, how.lan) {
            any |= waiting.cut().map_err(Error::Listing)?;
        }
    }
    Ok(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_of_the_kernel_agrees_with_the_socket() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("[::1]:0").unwrap();
        udp.connect("[::1]:9").unwrap();
        let me = Process::open(std::process::id()).unwrap();

        let sockets = of(&me).unwrap();

        let local = |address| {
            let found = sockets.iter().find(|it| it.local == Some(address));
            found.unwrap_or_else(|| panic!("{address}: {sockets:#?}"))
        };
        let listener = local(listener.local_addr().unwrap());
        assert_eq!(
            (listener.protocol.as_str(), listener.state.as_str()),
            ("tcp", "listen")
        );
        let udp = local(udp.local_addr().unwrap());
        assert_eq!(
            (udp.protocol.as_str(), udp.state.as_str()),
            ("udp", "established")
        );
        assert_eq!(udp.remote, Some("[::1]:9".parse().unwrap()));
    }
}
