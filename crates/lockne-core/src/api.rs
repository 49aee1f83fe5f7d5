//! What the client and the daemon say to each other, as JSON over HTTP on a Unix socket.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`] |
//! | `POST /v1/run` | [`Run`] | [`Running`] |
//! | `POST /v1/attach` | [`Attach`] | [`Moved`] |
//! | `POST /v1/detach` | [`Detach`] | [`Moved`] |
//! | `GET /v1/processes/PID` | | [`Explanation`] |
//! | `POST /v1/tunnels` | [`TunnelUp`] | [`TunnelStatus`] |
//! | `GET /v1/tunnels` | | list of [`TunnelStatus`] |
//! | `GET /v1/tunnels/NAME` | | [`TunnelStatus`] |
//! | `DELETE /v1/tunnels/NAME` | | [`TunnelDown`] |
//! | `GET /metrics` | | text for Prometheus |
//! | `POST /v1/down` | | [`Removed`] |
//!
//! A refusal has a status of 400 or above and a [`Refusal`] as its body. Field names are part of the
//! interface: `--json` prints these very documents.

mod attach;
mod config;
mod explain;
mod metrics;
mod room;

pub use self::{
    config::{ConfigStatus, RuleStatus},
    metrics::MetricsStatus,
    room::Room,
};

use std::{collections::BTreeSet, net::IpAddr, net::SocketAddr, path::PathBuf};

use ipnet::IpNet;
use lockne_abi::Counters;
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

use crate::{
    policy::{Action, PolicyId, Terms},
    tunnel::TunnelName,
    wgquick::HookPolicy,
};

pub use attach::{
    Attach, Counts, Detach, Fate, Moved, MovedProcess, MovedSocket, SocketStatus, Target,
};
pub use explain::{Descendant, ExplainedSocket, Explanation, PolicyNow, Route, SocketWay, Verdict};

/// Asks for a policy for the process that asks.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The tunnel to bring up first, where the policy needs one. It comes with the request, so that
    /// no daemon can end with its last job in between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelUp>,
    /// What the process may do.
    #[serde(deserialize_with = "strict_terms")]
    pub terms: Terms,
}

/// Reads terms, and refuses what is none of them: [`Terms`] cannot, as serde flattens it elsewhere.
fn strict_terms<'de, D: Deserializer<'de>>(from: D) -> Result<Terms, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Strict {
        action: Action,
        #[serde(default)]
        or: Vec<TunnelName>,
        #[serde(default)]
        or_direct: bool,
        #[serde(default)]
        lan: BTreeSet<IpNet>,
        #[serde(default)]
        dns: Vec<IpAddr>,
    }
    let Strict {
        action,
        or,
        or_direct,
        lan,
        dns,
    } = Strict::deserialize(from)?;
    Ok(Terms {
        action,
        or,
        or_direct,
        lan,
        dns,
    })
}

/// The process that asked has its policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The policy it got.
    pub policy: PolicyId,
    /// The mark its sockets carry, without the bits of others.
    pub mark: u32,
    /// What the user should know, a sentence each.
    pub notices: Vec<String>,
    /// Whom it asks for names, whomever it means to ask; nobody but itself decides if there is none.
    #[serde(default)]
    pub resolvers: Vec<IpAddr>,
    /// The domains in which its tunnel's configuration has short names searched.
    #[serde(default)]
    pub search: Vec<String>,
    /// Sockets of those who would ask for names in its place, and whose they are, where the kernel cannot refuse
    /// them: they are for the program not to see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open_sockets: Vec<OpenSocket>,
}

/// A socket by which somebody else asks for names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSocket {
    /// Where it is.
    pub path: PathBuf,
    /// Who listens there.
    pub name: String,
}

/// Asks for a tunnel from a wg-quick file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelUp {
    /// What to call it.
    pub name: TunnelName,
    /// The file it came from, for messages.
    pub file: PathBuf,
    /// The text of the file, private key and all.
    pub config: Zeroizing<String>,
    /// Whether the commands in `PreUp` and the like may run, as root.
    pub allow_hooks: bool,
    /// How long it stays.
    pub lifetime: Lifetime,
}

/// How long something stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lifetime {
    /// Until somebody takes it down.
    UntilDown,
    /// Until the last process under a policy has ended.
    UntilLastJob,
}

impl TunnelUp {
    /// Whether the commands of the file may run.
    #[must_use]
    pub const fn hooks(&self) -> HookPolicy {
        if self.allow_hooks {
            HookPolicy::Allow
        } else {
            HookPolicy::Refuse
        }
    }
}

/// A tunnel was taken down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelDown {
    /// Which one.
    pub name: TunnelName,
    /// How many living processes are silent now.
    pub silenced: u64,
}

/// All that the daemon knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether a daemon runs, or only what it left in the kernel.
    pub daemon: DaemonStatus,
    /// The directory of its socket and pins.
    pub state_dir: PathBuf,
    /// The bits of the socket mark that carry the policy id.
    pub mark_mask: u32,
    /// Every policy ever asked for, by id.
    pub policies: Vec<PolicyStatus>,
    /// Every tunnel that a policy names or that lockne brought up.
    pub tunnels: Vec<TunnelStatus>,
    /// The configuration, if the daemon has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigStatus>,
    /// How many process ids there is room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<Room>,
}

/// Whether a daemon runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum DaemonStatus {
    /// It runs.
    Running {
        /// Its process id.
        pid: u32,
        /// Its version.
        version: String,
        /// How long it has been running, in seconds.
        uptime_seconds: u64,
        /// Whether it ends with its last job.
        ephemeral: bool,
    },
    /// It does not run, but its rules hold in the kernel.
    Gone,
}

/// A policy and its use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Its number.
    pub id: PolicyId,
    /// What it says.
    #[serde(flatten)]
    pub terms: Terms,
    /// The mark its sockets carry.
    pub mark: u32,
    /// The routing table of its packets, where it has one of its own.
    pub table: Option<u32>,
    /// The device its packets may leave by; `None` means silence, or any device for `direct`.
    pub device: Option<String>,
    /// Whether it goes direct now, as none of its tunnels works and its terms say so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct_now: bool,
    /// Whom its programs ask for names, whomever they mean to ask.
    #[serde(default)]
    pub resolvers: Vec<IpAddr>,
    /// Its living processes.
    pub processes: Vec<ProcessStatus>,
    /// Packets and bytes; loopback does not count.
    pub traffic: Traffic,
}

/// A process under a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Its process id.
    pub pid: u32,
    /// The name the kernel shows for it; the process itself can change it.
    pub name: String,
}

/// Packets and bytes from the IP header on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets received; not counted for `direct`.
    pub rx_packets: u64,
    /// Bytes received; not counted for `direct`.
    pub rx_bytes: u64,
    /// Packets and calls that were refused, so that nothing leaked.
    pub refused: u64,
}

impl From<Counters> for Traffic {
    fn from(counters: Counters) -> Self {
        let Counters {
            tx_packets,
            tx_bytes,
            rx_packets,
            rx_bytes,
            refused,
        } = counters;
        Self {
            tx_packets,
            tx_bytes,
            rx_packets,
            rx_bytes,
            refused,
        }
    }
}

/// A tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelStatus {
    /// Its name, which is its interface's too.
    pub name: TunnelName,
    /// Who makes it.
    pub kind: TunnelKind,
    /// Whether packets can go.
    pub state: TunnelState,
    /// The index of its interface while there is one.
    pub ifindex: Option<u32>,
    /// The largest packet in bytes.
    pub mtu: Option<u32>,
    /// Its own addresses.
    pub addresses: BTreeSet<IpNet>,
    /// The resolvers that its configuration names.
    pub dns: Vec<IpAddr>,
    /// Its peers, where it is WireGuard of ours.
    pub peers: Vec<PeerStatus>,
}

/// Who makes a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelKind {
    /// Somebody else; lockne only uses the interface.
    Interface,
    /// lockne, with the kernel's WireGuard.
    WireguardKernel,
    /// lockne, with its embedded WireGuard.
    WireguardEmbedded,
}

/// Whether packets can go into a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelState {
    /// The interface is there and up.
    Up,
    /// The interface is there but down.
    Down,
    /// There is no such interface.
    Gone,
}

/// A WireGuard peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its public key in base64.
    pub public_key: String,
    /// Where its packets come from and go to.
    pub endpoint: Option<SocketAddr>,
    /// What may go to it and come from it.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds since the last handshake, if there was one.
    pub handshake_age_seconds: Option<u64>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// What `down` took away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Routing rules.
    pub rules: u32,
    /// Routes.
    pub routes: u32,
    /// Tunnels that lockne had brought up.
    pub tunnels: Vec<TunnelName>,
    /// Kernel programs.
    pub programs: u32,
    /// Processes that are free again.
    pub processes: u64,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What failed.
    pub error: String,
    /// Why, from the outside in.
    pub causes: Vec<String>,
    /// What to do.
    pub hint: Option<String>,
}
