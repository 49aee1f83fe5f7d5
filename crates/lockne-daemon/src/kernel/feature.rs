//! What not every kernel has that lockne runs on.

use std::fmt;

use lockne_abi::name;

/// Programs that are attached where the kernel takes them.
pub(super) const OPTIONAL: [&str; 1] = [name::CONNECT_UNIX];

/// Something that lockne does where the kernel can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feature {
    /// Keeps policed programs from asking systemd-resolved, nscd and avahi by their sockets.
    UnixSockets,
}

impl Feature {
    /// The first version of Linux that has it.
    #[must_use]
    pub const fn since(self) -> &'static str {
        match self {
            Self::UnixSockets => "6.7",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnixSockets => {
                "keeping programs from asking systemd-resolved, nscd and avahi by their sockets"
            }
        })
    }
}
