//! Why a process is on the way that it is on.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{SocketStatus, Traffic, TunnelStatus};
use crate::{
    policy::{PolicyId, Terms},
    rule::RuleName,
};

/// All that decides where the packets of a process go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Its number.
    pub pid: u32,
    /// The name the kernel shows for it.
    pub name: String,
    /// Its real user.
    pub uid: u32,
    /// Its parent.
    pub parent: u32,
    /// How many threads it has.
    pub threads: u32,
    /// Whether it was there before the daemon.
    pub is_older: bool,
    /// Whether it is in another network namespace than lockne.
    pub is_elsewhere: bool,
    /// Everybody who descends from it.
    pub descendants: Vec<Descendant>,
    /// The rule that gave it its policy, if one did.
    pub rule: Option<RuleName>,
    /// Its policy; without one lockne does not touch it.
    pub policy: Option<PolicyNow>,
    /// The policy's tunnel.
    pub tunnel: Option<TunnelStatus>,
    /// The resolvers that its tunnel names.
    pub dns: Vec<IpAddr>,
    /// Its sockets on the network.
    pub sockets: Vec<ExplainedSocket>,
    /// Where packets of a new socket would go.
    pub routes: Vec<Route>,
    /// All that in words.
    pub why: String,
    /// What could be done about what is off, a sentence each.
    pub advice: Vec<String>,
}

/// A process that descends from the one that is explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descendant {
    /// Its number.
    pub pid: u32,
    /// The name the kernel shows for it.
    pub name: String,
    /// Its policy.
    pub policy: Option<PolicyId>,
}

/// A policy as it holds now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyNow {
    /// Its number.
    pub id: PolicyId,
    /// What it says.
    #[serde(flatten)]
    pub terms: Terms,
    /// The mark of its sockets.
    pub mark: u32,
    /// The routing table of its packets, where it has one of its own.
    pub table: Option<u32>,
    /// The device its packets may leave by; `None` means silence, or any device for `direct`.
    pub device: Option<String>,
    /// Whether it goes direct now, as none of its tunnels works and its terms say so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct_now: bool,
    /// Packets and bytes of all its processes; loopback does not count.
    pub traffic: Traffic,
}

/// A socket and its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedSocket {
    /// What it is.
    #[serde(flatten)]
    pub socket: SocketStatus,
    /// Which way its packets go.
    pub way: SocketWay,
}

/// Which way the packets of a socket go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketWay {
    /// As the policy of the process says.
    Policy,
    /// As another policy says: the connection is older than that of the process.
    Other(PolicyId),
    /// As if lockne were not there.
    Free,
    /// Nowhere: its connection stays on this machine.
    Here,
    /// By frames, past every route and mark.
    Frames,
}

/// Where a packet would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub to: IpAddr,
    /// What routing says.
    pub device: Option<String>,
    /// The address it would come from.
    pub source: Option<IpAddr>,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It leaves.
    Leaves,
    /// Routing refuses it.
    Unreachable,
    /// Routing lets it go, and the guard drops it.
    Dropped,
}
