//! Says so when process ids go beyond the room that there is for them.

use std::time::Duration;

use lockne_core::api::Room;
use tracing::{error, warn};

use crate::kernel::Kernel;

/// How often to look: nobody tells us of a change of `kernel.pid_max`, or of a child that was lost.
pub(crate) const LOOK: Duration = Duration::from_secs(10);

/// What was said already.
#[derive(Default)]
pub(crate) struct Said(Option<Room>);

impl Said {
    /// Looks, and says what is new, however many children are lost.
    pub(crate) fn look(&mut self, kernel: &Kernel) {
        match kernel.room() {
            Ok(room) => {
                if let Some(text) = self.news(room) {
                    warn!("{text}");
                }
            }
            Err(error) => error!(%error, "cannot tell whether there is room for all process ids"),
        }
    }

    fn news(&mut self, room: Room) -> Option<String> {
        let before = self.0.replace(room);
        let (text, remedy) = room.warning()?;
        (before != Some(room)).then(|| format!("{text}; {remedy}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_said_once() {
        let mut said = Said::default();
        let mut say = |pid_max, exceeded| {
            let room = Room {
                ids: 64,
                pid_max,
                exceeded,
            };
            said.news(room).is_some()
        };

        let heard = [
            say(64, false),
            say(128, false),
            say(128, false),
            say(128, true),
            say(128, true),
        ];

        assert_eq!(heard, [false, true, false, true, false]);
    }
}
