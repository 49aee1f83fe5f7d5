//! The ways that are compared: from a home to a server, by a cable or by a tunnel.

use super::{measure::Measure, result::Subject};

/// A way from a program to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Direct,
    Again,
    Free,
    Via,
    Box,
    Cgroup,
    Cookie,
    Socks,
    WireguardGoOld,
    WireguardGo,
    Boringtun,
    Kernel,
    Embedded,
}

impl Way {
    /// Those over a cable, compared with the first.
    pub(crate) const PATHS: [Self; 8] = [
        Self::Direct,
        Self::Free,
        Self::Via,
        Self::Again,
        Self::Cgroup,
        Self::Cookie,
        Self::Box,
        Self::Socks,
    ];
    /// Those through a tunnel, compared with the first.
    pub(crate) const TUNNELS: [Self; 5] = [
        Self::WireguardGo,
        Self::Embedded,
        Self::WireguardGoOld,
        Self::Boringtun,
        Self::Kernel,
    ];

    /// Whether a program under it starts in the way that users would start it.
    pub(crate) fn has_start(self) -> bool {
        self != Self::Cookie
    }

    /// Whether datagrams pass.
    pub(crate) fn has_datagrams(self) -> bool {
        self != Self::Socks
    }
}

impl Subject for Way {
    fn key(self) -> String {
        let key = match self {
            Self::Direct => "direct",
            Self::Again => "direct-again",
            Self::Free => "lockne-free",
            Self::Via => "lockne-via",
            Self::Box => "netns-masquerade",
            Self::Cgroup => "nft-cgroup-mark",
            Self::Cookie => "socket-cookie",
            Self::Socks => "socks",
            Self::WireguardGoOld => "wireguard-go-old",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun",
            Self::Kernel => "kernel-wireguard",
            Self::Embedded => "lockne-wireguard",
        };
        key.to_owned()
    }

    fn title(self) -> String {
        let title = match self {
            Self::Direct => "direct, no lockne",
            Self::Again => "direct, measured a second time",
            Self::Free => "lockne is active, the program is free",
            Self::Via => "lockne run --via a plain interface",
            Self::Box => "own namespace, second veth, masquerade",
            Self::Cgroup => "nft cgroup mark and ip rule",
            Self::Cookie => "socket cookie, looked up per packet",
            Self::Socks => "microsocks and proxychains4",
            Self::WireguardGoOld => "wireguard-go of Debian 12",
            Self::WireguardGo => "wireguard-go of Debian sid",
            Self::Boringtun => "boringtun-cli of crates.io",
            Self::Kernel => "the kernel's WireGuard",
            Self::Embedded => "lockne run --via its embedded WireGuard",
        };
        title.to_owned()
    }

    fn base(self) -> Self {
        if Self::TUNNELS.contains(&self) {
            Self::TUNNELS[0]
        } else {
            Self::PATHS[0]
        }
    }

    fn is_ours(self) -> bool {
        matches!(self, Self::Free | Self::Via | Self::Embedded)
    }

    fn goal(self, measure: Measure) -> Option<f64> {
        use Measure::{Connections, Cpu, CpuBack, Median, Tcp, TcpBack, Udp};

        match (self, measure) {
            (Self::Free | Self::Via, Tcp | TcpBack | Udp | Connections) => Some(0.98),
            (Self::Free | Self::Via, Median) => Some(1.02),
            (Self::Embedded, Tcp | TcpBack) => Some(1.2),
            (Self::Embedded, Cpu | CpuBack | Median) => Some(1.0),
            _ => None,
        }
    }
}
