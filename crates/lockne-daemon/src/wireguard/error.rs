//! Why a tunnel cannot be made, or stopped.

use std::{io, process::ExitStatus};

use lockne_core::{
    tunnel::TunnelName,
    wgquick::{HookRefused, Phase},
};
use lockne_transport::TunError;

/// Why a tunnel could not be brought up, asked or taken down. Never holds a key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration has commands and none may run.
    #[error("cannot use the configuration of `{name}`")]
    Hooks {
        /// Which tunnel.
        name: TunnelName,
        /// Which command.
        source: HookRefused,
    },
    /// A command could not be started.
    #[error("cannot run `{phase}` of line {line}")]
    HookStart {
        /// When it should have run.
        phase: Phase,
        /// Where it stands in the file.
        line: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A command failed.
    #[error("`{phase}` of line {line} failed: {status}")]
    HookFailed {
        /// When it ran.
        phase: Phase,
        /// Where it stands in the file.
        line: usize,
        /// How it ended.
        status: ExitStatus,
    },
    /// A host name is unknown, or nobody could be asked.
    #[error("cannot find the address of `{host}`")]
    Resolve {
        /// The host name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// A service name is not in the services database.
    #[error("`{name}` is no UDP service in /etc/services")]
    Service {
        /// The service.
        name: String,
    },
    /// The name belongs to an interface that is not ours, or that another process serves.
    #[error("the interface `{name}` belongs to somebody else")]
    Busy {
        /// The name.
        name: String,
    },
    /// There is no TUN driver, or a device of it could not be made or taken over.
    #[error(transparent)]
    Tun(TunError),
    /// The UDP port of this end belongs to somebody else.
    #[error("UDP port {port} is in use")]
    PortInUse {
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// The UDP socket could not be made.
    #[error("cannot open a UDP socket on port {port}")]
    Socket {
        /// The port, 0 for any.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// The embedded WireGuard refused.
    #[error("cannot {action} the WireGuard of `{name}`")]
    Embedded {
        /// What was tried.
        action: &'static str,
        /// The device.
        name: String,
        /// What it said.
        source: gotatun::device::Error,
    },
    /// The kernel has no WireGuard.
    #[error("this kernel has no WireGuard")]
    NoKernelWireguard,
    /// Netlink could not be spoken to.
    #[error("cannot open a netlink socket")]
    Netlink {
        /// What the system said.
        source: io::Error,
    },
    /// The kernel refused a change to an interface.
    #[error("cannot {action} the interface `{name}`")]
    Link {
        /// What was tried.
        action: &'static str,
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device stopped to work: mostly, somebody deleted it.
    #[error("the tunnel `{name}` is dead")]
    Died {
        /// The device.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// What the user can do.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Hooks { source, .. } => Some(source.hint()),
            Self::Resolve { .. } => Some("is there a network, and a resolver in /etc/resolv.conf?"),
            Self::Busy { .. } => Some("choose another name with `--name`"),
            Self::Tun(TunError::Open { source }) => match source.kind() {
                io::ErrorKind::NotFound => Some("`modprobe tun` loads the driver"),
                io::ErrorKind::PermissionDenied => Some(ROOT),
                _ => None,
            },
            Self::PortInUse { .. } => {
                Some("remove `ListenPort` from the configuration, or stop who has the port")
            }
            Self::NoKernelWireguard => Some("`modprobe wireguard` loads it, if there is one"),
            Self::Tun(TunError::Refused { source, .. })
            | Self::Socket { source, .. }
            | Self::Netlink { source }
            | Self::Link { source, .. } => {
                (source.kind() == io::ErrorKind::PermissionDenied).then_some(ROOT)
            }
            _ => None,
        }
    }
}

impl From<TunError> for Error {
    fn from(error: TunError) -> Self {
        match error {
            TunError::Busy { name } => Self::Busy { name },
            error => Self::Tun(error),
        }
    }
}

const ROOT: &str = "tunnels need root, or CAP_NET_ADMIN";
