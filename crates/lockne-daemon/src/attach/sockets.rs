//! The sockets that a program has when its policy changes: found, marked, cut or left, and told of.
//!
//! While this looks, the program runs, so it looks again until there is nothing left to do. What it opens meanwhile
//! carries the new mark by itself; what it connects meanwhile is marked at `connect`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd, RawFd},
};

use ipnet::IpNet;
use lockne_abi::MarkField;
use lockne_core::{
    api::{Fate, MovedSocket, SocketStatus},
    policy::PolicyId,
    rule::Existing,
};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use socket2::{Domain, SockRef, Socket};

use super::target::Process;
use crate::{
    inherited::{Error, is_near, is_of_this_netns},
    process::{self, Stat},
    socket::{self, Listed},
};

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

/// What a process has open.
struct Open {
    /// Sockets by inode, with a descriptor each.
    sockets: BTreeMap<u64, RawFd>,
    /// Sockets that an `io_uring` holds, and maybe nobody else.
    registered: BTreeSet<u64>,
}

impl Open {
    fn of(pid: u32) -> Result<Self, Error> {
        let mut open = Self {
            sockets: BTreeMap::new(),
            registered: BTreeSet::new(),
        };
        let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => return Ok(open),
            Err(source) => return Err(Error::List { pid, source }),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if is_gone(&error) => break,
                Err(source) => return Err(Error::List { pid, source }),
            };
            let name = entry.file_name();
            let Some(number) = name.to_str().and_then(|it| it.parse().ok()) else {
                continue;
            };
            // It may have been closed since it was listed.
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            let target = target.to_string_lossy();
            if let Some(inode) = inodes(&target).next() {
                open.sockets.entry(inode).or_insert(number);
            } else if target == "anon_inode:[io_uring]" {
                let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
                open.registered.extend(inodes(&info.unwrap_or_default()));
            }
        }
        Ok(open)
    }
}

/// Whether the process has ended meanwhile.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The sockets that a text of `/proc` names, as `socket:[4711]`.
fn inodes(text: &str) -> impl Iterator<Item = u64> {
    let after = text.split("socket:[").skip(1);
    after.filter_map(|rest| rest.split_once(']')?.0.parse().ok())
}

/// A socket of a process, held by us too.
struct Held {
    socket: Socket,
    pid: u32,
    number: RawFd,
}

impl Held {
    /// `None` if it was closed, or the process has ended.
    fn take(process: &Process, number: RawFd) -> Result<Option<Self>, Error> {
        let pid = process.pid;
        match pidfd_getfd(process.handle(), number, PidfdGetfdFlags::empty()) {
            Ok(fd) => Ok(Some(Self {
                socket: Socket::from(fd),
                pid,
                number,
            })),
            Err(rustix::io::Errno::BADF | rustix::io::Errno::SRCH) => Ok(None),
            Err(errno) => Err(Error::Take {
                pid,
                number,
                source: errno.into(),
            }),
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Bind {
            pid: self.pid,
            number: self.number,
            source,
        }
    }

    /// What it is; `None` if it is not one on the network, or the descriptor is another one's by now.
    fn status(&self, inode: u64, listed: Option<&Listed>) -> io::Result<Option<SocketStatus>> {
        if rustix::fs::fstat(&self.socket)?.st_ino != inode {
            return Ok(None);
        }
        let domain = self.socket.domain()?;
        if domain != Domain::IPV4 && domain != Domain::IPV6 {
            let Some(protocol) = by_itself(domain) else {
                return Ok(None);
            };
            return Ok(Some(SocketStatus {
                inode,
                protocol: protocol.to_owned(),
                local: None,
                remote: None,
                state: "open".to_owned(),
                mark: self.socket.mark()?,
            }));
        }
        let mark = self.socket.mark()?;
        if let Some(listed) = listed {
            return Ok(Some(SocketStatus {
                mark,
                ..of_listed(inode, listed)
            }));
        }
        let address = |it: io::Result<socket2::SockAddr>| {
            let it = it.ok()?.as_socket()?;
            Some(SocketAddr::new(it.ip().to_canonical(), it.port()))
        };
        let remote = address(self.socket.peer_addr());
        let state = if remote.is_some() {
            "connected"
        } else {
            "open"
        };
        Ok(Some(SocketStatus {
            inode,
            protocol: self.protocol()?,
            local: address(self.socket.local_addr()),
            remote,
            state: state.to_owned(),
            mark,
        }))
    }

    /// What its protocol is called, where the kernel's list does not say it.
    fn protocol(&self) -> io::Result<String> {
        let number = self.socket.protocol()?.map_or(0, i32::from);
        let name = match (self.socket.r#type()?, number) {
            (socket2::Type::RAW, _) => "raw",
            (socket2::Type::DGRAM, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => "icmp",
            (_, libc::IPPROTO_TCP) => "tcp",
            (_, libc::IPPROTO_UDP) => "udp",
            (_, libc::IPPROTO_UDPLITE) => "udp-lite",
            (_, libc::IPPROTO_SCTP) => "sctp",
            (_, libc::IPPROTO_DCCP) => "dccp",
            (_, libc::IPPROTO_MPTCP) => "mptcp",
            (_, number) => return Ok(format!("ip-{number}")),
        };
        Ok(name.to_owned())
    }

    fn fate(&self, status: &SocketStatus, how: Move<'_>) -> (Fate, Option<String>) {
        let stuck = |why: &str| (Fate::Stuck, Some(why.to_owned()));
        match status.protocol.as_str() {
            "packet" => return stuck("it writes frames past every route and mark"),
            "xdp" => return stuck("it is bound to a device, past every route and mark"),
            _ => {}
        }
        if !is_of_this_netns(&self.socket) {
            return stuck("it belongs to another network namespace");
        }
        if how.has(status.mark) {
            return (Fate::Same, None);
        }
        let is_connected = !matches!(status.state.as_str(), "open" | "listen");
        let fate = if !is_connected {
            Fate::Moved
        } else if is_near(
            status.local.map(|it| it.ip()),
            status.remote.map(|it| it.ip()),
            how.lan,
        ) {
            Fate::Near
        } else if how.existing == Existing::Keep {
            Fate::Kept
        } else {
            Fate::Cut
        };
        (fate, None)
    }

    fn mark(&self, how: Move<'_>) -> Result<(), Error> {
        let mark = self.socket.mark().map_err(|e| self.failed(e))?;
        self.socket
            .set_mark(how.field.stamp(mark, how.id()))
            .map_err(|e| self.failed(e))
    }

    /// Cuts the connection, and marks what is left.
    fn cut(&self, listed: Option<&Listed>, how: Move<'_>) -> Result<(), Error> {
        // A kernel may be built without it.
        let is_cut = listed.is_some_and(|it| it.cut().unwrap_or(false));
        self.mark(how)?;
        if is_cut || self.socket.peer_addr().is_err() {
            return Ok(());
        }
        // TCP in its last states is nobody's connection any more.
        if rustix::net::connect_unspec(&self.socket).is_ok() {
            return Ok(());
        }
        match self.socket.shutdown(std::net::Shutdown::Both) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(self.failed(error)),
            _ => Ok(()),
        }
    }
}

fn of_listed(inode: u64, listed: &Listed) -> SocketStatus {
    SocketStatus {
        inode,
        protocol: if listed.is_tcp() { "tcp" } else { "udp" }.to_owned(),
        local: Some(listed.local()),
        remote: listed.remote(),
        state: listed.state().to_owned(),
        mark: listed.mark,
    }
}

/// Sockets that reach the network by themselves, without routes and marks.
fn by_itself(domain: Domain) -> Option<&'static str> {
    match i32::from(domain) {
        libc::AF_PACKET => Some("packet"),
        libc::AF_XDP => Some("xdp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_in_links_and_in_what_an_io_uring_tells() {
        let info = "UserFiles:\t3\n    0: socket:[17]\n    1: /dev/null\n    2: socket:[4711]\n";

        assert_eq!(inodes("socket:[99]").collect::<Vec<_>>(), [99]);
        assert_eq!(inodes(info).collect::<Vec<_>>(), [17, 4711]);
        assert_eq!(inodes("pipe:[99]").count(), 0);
    }

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
