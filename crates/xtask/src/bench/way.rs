//! The ways that are compared: from a home to a server, by a cable or by a tunnel.

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

    /// Its key in the results.
    pub(crate) fn key(self) -> &'static str {
        match self {
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
        }
    }

    /// What it is, in words.
    pub(crate) fn title(self) -> &'static str {
        match self {
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
        }
    }

    /// What it is compared with.
    pub(crate) fn base(self) -> Self {
        if Self::TUNNELS.contains(&self) {
            Self::TUNNELS[0]
        } else {
            Self::PATHS[0]
        }
    }

    /// Whether it is one of lockne's.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Free | Self::Via | Self::Embedded)
    }

    /// Whether a program under it starts in the way that users would start it.
    pub(crate) fn has_start(self) -> bool {
        self != Self::Cookie
    }

    /// Whether datagrams pass.
    pub(crate) fn has_datagrams(self) -> bool {
        self != Self::Socks
    }
}
