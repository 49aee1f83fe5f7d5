//! How much is read before what was read is worked off.

/// How many packets: as many as stay in a processor's cache meanwhile.
const MANY: usize = 64;

/// Who reads for others that work in the same thread.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Since they had their turn.
    packets: usize,
}

impl Pace {
    /// Notes that so many were read.
    pub(crate) fn count(&mut self, packets: usize) {
        self.packets += packets;
    }

    /// Gives the others a turn, if they have got enough to do. Not each time: that would be a system call or two for each
    /// packet where they come one by one.
    pub(crate) async fn keep(&mut self) {
        if self.packets >= MANY {
            self.packets = 0;
            tokio::task::yield_now().await;
        }
    }
}
