//! Putting a program that runs already under a policy, and taking it out again.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{TunnelUp, strict_terms};
use crate::{
    policy::{PolicyId, Terms},
    rule::Existing,
};

/// Asks for a policy for a program that runs.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The tunnel to bring up first, where the policy needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelUp>,
    /// Which program.
    pub target: Target,
    /// What it may do.
    #[serde(deserialize_with = "strict_terms")]
    pub terms: Terms,
    /// What becomes of its connections; without it they are cut where the policy is to bind the program, and
    /// kept under `direct`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing: Option<Existing>,
    /// Whether its children are meant too.
    pub children: bool,
}

/// Asks for a program to be free again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// Which program.
    pub target: Target,
    /// What becomes of its connections; without it they are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing: Option<Existing>,
    /// Whether its children are meant too.
    pub children: bool,
}

/// Which program is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The process with this number.
    Pid(u32),
    /// Every process with this name: that of its executable, or the one that the kernel shows.
    Name(String),
}

/// A program was moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// The policy it has now; `None` if it is free.
    pub policy: Option<PolicyId>,
    /// The mark of its sockets, without the bits of others.
    pub mark: u32,
    /// What became of its connections.
    pub existing: Existing,
    /// Its processes, by number.
    pub processes: Vec<MovedProcess>,
    /// Its sockets on the network, as they were before.
    pub sockets: Vec<MovedSocket>,
    /// How many of them had which fate.
    pub counts: Counts,
    /// What the user should know, a sentence each.
    pub notices: Vec<String>,
}

/// A process that was moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedProcess {
    /// Its number.
    pub pid: u32,
    /// The name the kernel shows for it.
    pub name: String,
    /// How many threads it has.
    pub threads: u32,
    /// The policy it had before.
    pub before: Option<PolicyId>,
}

/// A socket of a process that was moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedSocket {
    /// A process that has it.
    pub pid: u32,
    /// What it was.
    #[serde(flatten)]
    pub socket: SocketStatus,
    /// What became of it.
    pub fate: Fate,
    /// Why it could not be moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A socket on the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketStatus {
    /// The number by which the kernel tells it from others.
    pub inode: u64,
    /// `tcp`, `udp`, `icmp`, `raw`, `packet` and so on.
    pub protocol: String,
    /// Its own address, where it has one.
    pub local: Option<SocketAddr>,
    /// Where it is connected to.
    pub remote: Option<SocketAddr>,
    /// `listen`, `established` and so on; `open` if it is not connected.
    pub state: String,
    /// Its mark, with the bits of others.
    pub mark: u32,
}

/// What became of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It is on the new way from its next packet on.
    Moved,
    /// Its connection was cut.
    Cut,
    /// Its connection goes on by the old way.
    Kept,
    /// Its connection stays on this machine, or goes to a prefix past the tunnel, and goes on.
    Near,
    /// It was on this way already.
    Same,
    /// It cannot be moved.
    Stuck,
}

/// How many sockets had which fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// [`Fate::Moved`].
    pub moved: u32,
    /// [`Fate::Cut`].
    pub cut: u32,
    /// [`Fate::Kept`].
    pub kept: u32,
    /// [`Fate::Near`].
    pub near: u32,
    /// [`Fate::Same`].
    pub same: u32,
    /// [`Fate::Stuck`].
    pub stuck: u32,
}

impl Counts {
    /// Counts the fates of `sockets`.
    #[must_use]
    pub fn of(sockets: &[MovedSocket]) -> Self {
        let mut counts = Self::default();
        for socket in sockets {
            let count = match socket.fate {
                Fate::Moved => &mut counts.moved,
                Fate::Cut => &mut counts.cut,
                Fate::Kept => &mut counts.kept,
                Fate::Near => &mut counts.near,
                Fate::Same => &mut counts.same,
                Fate::Stuck => &mut counts.stuck,
            };
            *count += 1;
        }
        counts
    }
}
