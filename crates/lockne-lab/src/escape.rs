//! Ways out of a policy: each a small program that tries to get one packet past its tunnel.
//!
//! A way is only worth something if it is one: so each is also tried without a policy, where its packet
//! must be seen on the physical device. What it is judged by is never what it says, but what was
//! captured: every attempt has a destination and a port of its own.
//!
//! ```text
//!   prepare (free) ── lockne run --via a -- ── run (policed) ──┬── attempt
//!     opens what is to be inherited             drops rights   ├── attempt ...
//! ```

#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "the method itself is not generic over the lifetime of what it is asked of"
)]

mod batch;
mod header;
mod helper;
mod mark;
mod option;
mod passed;
mod process;
mod raw;
mod socket;
mod transport;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::RawFd,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{
    packet::{Content, Packet, Transport},
    probe::Failed,
};
pub use batch::{Batch, WORD, run_if_asked};
pub use helper::Helper;
pub use process::cgroups;

type Result<T = ()> = std::result::Result<T, Failed>;

/// A way out.
#[derive(Debug)]
pub struct Way {
    /// Its name, as the contract has it.
    pub name: &'static str,
    /// What it tries.
    pub tries: &'static str,
    /// What its packet is for.
    pub target: Target,
    /// Whether it leaves a machine as it was, so that a user may try it at home.
    pub is_harmless: bool,
    /// For whom it is known to be open.
    pub open: &'static [Who],
    families: &'static [Family],
    before: Option<fn(&Attempt<'_>) -> Result<socket2::Socket>>,
    attempt: fn(&Attempt<'_>) -> Result,
}

/// With what rights an attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    /// An ordinary user.
    User,
    /// Root without `CAP_NET_ADMIN`.
    RootWithoutNetAdmin,
    /// Root.
    Root,
}

impl Who {
    /// From the weakest to the strongest.
    pub const ALL: [Self; 3] = [Self::User, Self::RootWithoutNetAdmin, Self::Root];
}

/// What the packet of a way is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// An address on the internet that nobody else sends to.
    Internet,
    /// A neighbour on the link; told apart by the port.
    Neighbour,
    /// A multicast group; told apart by the port.
    Group,
    /// Everybody on the link; told apart by the port.
    Everybody,
    /// Somebody who calls; told apart by the port.
    Caller,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a way needs to know of the machine it is tried on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scene {
    /// The physical device.
    pub device: String,
    /// The machine's addresses there.
    pub source: (Ipv4Addr, Ipv6Addr),
    /// A neighbour there.
    pub neighbour: (Ipv4Addr, Ipv6Addr),
    /// The socket of a [`Helper`].
    pub helper: Option<PathBuf>,
    /// A copy of env(1) that has the set-user-ID bit and belongs to root.
    pub setuid_env: Option<PathBuf>,
}

/// A way with the marks by which its packet is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// The name of the way.
    pub way: String,
    /// Which family it is tried by.
    pub family: Family,
    /// Where to; the port belongs to this case alone.
    pub to: SocketAddr,
    /// What was opened for it before there was a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherited: Option<RawFd>,
}

/// What came of an attempt, as the one says who made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Outcome {
    /// Each call succeeded.
    Sent,
    /// The kernel refused.
    Refused {
        /// The call that failed.
        call: String,
        /// The name of the error, such as `EPERM`.
        errno: String,
    },
    /// It came to no end.
    Hung,
}

/// A way that is being tried.
struct Attempt<'a> {
    scene: &'a Scene,
    case: &'a Case,
    to: SocketAddr,
}

/// Every way, in the order in which they are shown.
pub fn ways() -> impl Iterator<Item = &'static Way> {
    let modules = [
        option::WAYS,
        header::WAYS,
        transport::WAYS,
        raw::WAYS,
        mark::WAYS,
        passed::WAYS,
        process::WAYS,
    ];
    modules.into_iter().flatten()
}

impl Way {
    const fn new(
        name: &'static str,
        tries: &'static str,
        attempt: fn(&Attempt<'_>) -> Result,
    ) -> Self {
        Self {
            name,
            tries,
            target: Target::Internet,
            is_harmless: true,
            open: &[],
            families: &[Family::V4, Family::V6],
            before: None,
            attempt,
        }
    }

    const fn to(self, target: Target) -> Self {
        Self { target, ..self }
    }

    const fn only(self, families: &'static [Family]) -> Self {
        Self { families, ..self }
    }

    const fn open_for(self, open: &'static [Who]) -> Self {
        Self { open, ..self }
    }

    /// Changes the machine, or needs the lab around it.
    const fn in_the_lab(self) -> Self {
        Self {
            is_harmless: false,
            ..self
        }
    }

    const fn with(self, before: fn(&Attempt<'_>) -> Result<socket2::Socket>) -> Self {
        Self {
            before: Some(before),
            ..self
        }
    }

    /// The way with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        ways().find(|way| way.name == name)
    }

    /// A case for each family it can be tried by; no two sets of the same number share a mark.
    ///
    /// # Panics
    ///
    /// If `set` is above 15.
    #[must_use]
    pub fn cases(&self, set: u8, scene: &Scene) -> Vec<Case> {
        assert!(set < 16, "the ports of a set would be those of another");
        let number = ways().position(|way| way.name == self.name);
        let number = u8::try_from(number.expect("a way is in the list")).expect("below 200 ways");
        let cases = self.families.iter().map(|&family| {
            let index = u16::from(number) * 2 + u16::from(family == Family::V6);
            let port = 20_000 + u16::from(set) * 512 + index;
            Case {
                way: self.name.to_owned(),
                family,
                to: SocketAddr::new(self.target.address(family, set, number, scene), port),
                inherited: None,
            }
        });
        cases.collect()
    }
}

impl Target {
    fn address(self, family: Family, set: u8, number: u8, scene: &Scene) -> IpAddr {
        // RFC 2544 and 3849: for measurements and for documentation, so that they are nobody's.
        let set16 = u16::from(set);
        let number16 = u16::from(number);
        match (self, family) {
            (Self::Internet, Family::V4) => Ipv4Addr::new(198, 18, set, number).into(),
            (Self::Internet, Family::V6) => {
                Ipv6Addr::new(0x2001, 0xdb8, 0xe5c, set16, 0, 0, 0, number16).into()
            }
            (Self::Neighbour, Family::V4) => scene.neighbour.0.into(),
            (Self::Neighbour, Family::V6) => scene.neighbour.1.into(),
            // RFC 5771 and 4291: for use within an organization, and on a link.
            (Self::Group, Family::V4) => Ipv4Addr::new(239, 255, set, number).into(),
            (Self::Group | Self::Everybody, Family::V6) => {
                Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0xe5c, set16, number16).into()
            }
            (Self::Everybody, Family::V4) => Ipv4Addr::BROADCAST.into(),
            (Self::Caller, Family::V4) => scene.source.0.into(),
            (Self::Caller, Family::V6) => scene.source.1.into(),
        }
    }
}

impl Case {
    /// Whether a packet that left is that of this case.
    #[must_use]
    pub fn is_mine(&self, packet: &Packet) -> bool {
        let Content::Ip(ip) = &packet.content else {
            return false;
        };
        let Some(way) = Way::named(&self.way) else {
            return false;
        };
        let (address, port) = (self.to.ip(), self.to.port());
        match (way.target, &ip.transport) {
            (Target::Internet, _) => ip.destination == address,
            // The kernel answers by itself who calls before anybody listens.
            (Target::Caller, Transport::Tcp { source, flags, .. }) => {
                ip.source == address && *source == port && !flags.is_reset()
            }
            (
                Target::Neighbour | Target::Group | Target::Everybody,
                Transport::Udp { destination, .. } | Transport::Tcp { destination, .. },
            ) => ip.destination == address && *destination == port,
            _ => false,
        }
    }
}

impl From<Failed> for Outcome {
    fn from(failed: Failed) -> Self {
        Self::Refused {
            call: failed.call.to_owned(),
            errno: crate::probe::errno_name(&failed.error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn scene() -> Scene {
        Scene {
            device: "eth0".to_owned(),
            source: (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
            neighbour: (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
            helper: None,
            setuid_env: None,
        }
    }

    #[test]
    fn each_case_has_a_port_of_its_own() {
        let scene = scene();
        let sets = (0..16).flat_map(|set| ways().map(move |way| (set, way)));
        let cases: Vec<_> = sets.flat_map(|(set, way)| way.cases(set, &scene)).collect();

        let ports: BTreeSet<_> = cases.iter().map(|case| case.to.port()).collect();

        assert_eq!(ports.len(), cases.len());
    }

    #[test]
    fn each_way_has_a_name_of_its_own_and_there_are_many() {
        let names: BTreeSet<_> = ways().map(|way| way.name).collect();

        assert_eq!(names.len(), ways().count());
        assert!(names.len() >= 40, "{}", names.len());
    }
}
