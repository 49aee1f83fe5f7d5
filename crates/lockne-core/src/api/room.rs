//! How many process ids there is room for.

use serde::{Deserialize, Serialize};

/// How many process ids the kernel programs have room for, and how many there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Ids below this one can be recorded.
    pub ids: u32,
    /// `kernel.pid_max` at this moment: ids are below it.
    pub pid_max: u32,
    /// Whether a child of a policed program got an id beyond the room. Since then no program with such an id gets
    /// a socket.
    pub exceeded: bool,
}

impl Room {
    /// What is wrong, and what to do about it; `None` if all is well.
    #[must_use]
    pub fn warning(&self) -> Option<(String, &'static str)> {
        let Self {
            ids,
            pid_max,
            exceeded,
        } = self;
        let consequence = if *exceeded {
            "a policed program has got a child beyond that; new programs with such ids have no network"
        } else if pid_max > ids {
            "a child of a policed program with an id beyond that will have no network"
        } else {
            return None;
        };
        Some((
            format!(
                "there is room for {ids} process ids, and kernel.pid_max was raised to {pid_max}: {consequence}"
            ),
            "`lockne down`, then start lockne anew: it takes as much room as there can be ids",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_that_is_short_is_told_and_worse_once_it_is_exceeded() {
        let said = |pid_max, exceeded| {
            let ids = 32_768;
            let room = Room {
                ids,
                pid_max,
                exceeded,
            };
            room.warning().map(|(text, _)| text)
        };

        assert_eq!(said(32_768, false), None);
        assert_eq!(said(1024, false), None);
        assert!(
            said(40_000, false)
                .unwrap()
                .ends_with("will have no network")
        );
        assert!(said(40_000, true).unwrap().ends_with("have no network"));
        // It was lowered again.
        assert!(said(32_768, true).is_some());
    }
}
