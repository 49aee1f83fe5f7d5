//! What can go wrong with the kernel's routing.

use std::{io, path::PathBuf};

use rustix::io::Errno;

/// Why something about rules, routes, interfaces or sysctls could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no netlink socket to be had.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// The kernel did not list something.
    #[error("cannot list the {what} of this network namespace")]
    List {
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused a change.
    #[error("cannot do what `{step}` does")]
    Step {
        /// The command of ip(8) that means the same.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no such interface.
    #[error("there is no interface `{0}`")]
    NoInterface(String),
    /// The kernel did not give the value of a sysctl.
    #[error("cannot read `{path}`")]
    ReadSysctl {
        /// The file of the sysctl.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel did not take the value of a sysctl.
    #[error("cannot write {value} to `{path}`")]
    WriteSysctl {
        /// The file of the sysctl.
        path: PathBuf,
        /// The value it should have got.
        value: i32,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// The kernel's error number, if it gave one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::NoInterface(_) => None,
            Self::Open(source)
            | Self::List { source, .. }
            | Self::Step { source, .. }
            | Self::ReadSysctl { source, .. }
            | Self::WriteSysctl { source, .. } => Errno::from_io_error(source),
        }
    }

    /// Whether the cause is that IPv6 is off, on one interface or altogether.
    #[must_use]
    pub fn is_ipv6_off(&self) -> bool {
        // `inet6_rtm_newaddr` says `EACCES` where `disable_ipv6` is set; a kernel without the
        // family says one of the others.
        let off = [Errno::ACCESS, Errno::OPNOTSUPP, Errno::AFNOSUPPORT];
        matches!(self, Self::Step { step, .. } if step.starts_with("ip -6 "))
            && self.errno().is_some_and(|errno| off.contains(&errno))
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        if self.is_ipv6_off() {
            return Some(
                "IPv6 is off here; turn it on (`sysctl net.ipv6.conf.all.disable_ipv6`) or leave \
                 IPv6 addresses out of the tunnel's configuration",
            );
        }
        match self.errno()? {
            Errno::PERM => Some(
                "rules and routes need CAP_NET_ADMIN in this network namespace; run it as root",
            ),
            Errno::ACCESS | Errno::ROFS if matches!(self, Self::WriteSysctl { .. }) => {
                Some("`/proc/sys` must be writable; a container or unit may have it read-only")
            }
            Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::INVAL if matches!(self, Self::Step { step, .. } if step.contains(" via ")) => {
                Some("the gateway of the interface's own default route is not usable from here")
            }
            _ => None,
        }
    }
}
