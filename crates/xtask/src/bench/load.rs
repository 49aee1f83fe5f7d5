//! What lockne has to carry while one program is measured: the program is to notice nothing of it.

use super::{measure::Measure, result::Subject, way::Way};

/// A load on the way `lockne run --via` a plain interface, unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Load {
    Nothing,
    /// Rules, of which none is for a program that runs.
    Rules(u32),
    /// Processes under the same policy.
    Processes(u32),
    /// Sockets of a process under the same policy.
    Sockets(u32),
    /// As many, on a machine without lockne: what the kernel itself takes for them.
    Bare(u32),
}

impl Load {
    /// Rules up to nearly as many as there may be; processes, so that all numbers of processes here are enough.
    pub(crate) const ALL: [Self; 12] = [
        Self::Nothing,
        Self::Rules(10),
        Self::Rules(100),
        Self::Rules(1000),
        Self::Processes(10),
        Self::Processes(1000),
        Self::Processes(10_000),
        Self::Sockets(10),
        Self::Sockets(1000),
        Self::Sockets(10_000),
        Self::Sockets(100_000),
        Self::Bare(100_000),
    ];

    /// How many rules there are.
    pub(crate) fn rules(self) -> u32 {
        match self {
            Self::Rules(count) => count,
            _ => 0,
        }
    }

    /// The way of the program that is measured, and of the process that holds what is held.
    pub(crate) fn way(self) -> Way {
        match self {
            Self::Bare(_) => Way::Direct,
            _ => Way::Via,
        }
    }

    /// What a process on the same way holds, in the words of `load hold`.
    pub(crate) fn held(self) -> Option<(&'static str, u32)> {
        match self {
            Self::Sockets(count) | Self::Bare(count) => Some(("sockets", count)),
            Self::Processes(count) => Some(("processes", count)),
            Self::Nothing | Self::Rules(_) => None,
        }
    }
}

impl Subject for Load {
    fn key(self) -> String {
        match self {
            Self::Nothing => "under-nothing".to_owned(),
            Self::Rules(count) => format!("under-{count}-rules"),
            Self::Processes(count) => format!("under-{count}-processes"),
            Self::Sockets(count) => format!("under-{count}-sockets"),
            Self::Bare(count) => format!("under-{count}-sockets-without"),
        }
    }

    fn title(self) -> String {
        match self {
            Self::Nothing => "lockne has nothing else to do".to_owned(),
            Self::Rules(count) => format!("{count} rules"),
            Self::Processes(count) => format!("{count} policed processes"),
            Self::Sockets(count) => format!("{count} policed sockets"),
            Self::Bare(count) => format!("{count} sockets, and no lockne"),
        }
    }

    fn base(self) -> Self {
        Self::Nothing
    }

    fn is_ours(self) -> bool {
        self.way() != Way::Direct
    }

    fn goal(self, _: Measure) -> Option<f64> {
        None
    }
}
