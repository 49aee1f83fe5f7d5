//! What demo 09 counts.

crate::shared! {
    /// The traffic of a cgroup in one direction.
    struct Traffic {
        /// Packets that passed.
        packets: u64,
        /// Their bytes, from the IP header on.
        bytes: u64,
        /// Packets that were refused.
        refused: u64,
    }
}

/// The entry for what leaves.
pub const EGRESS: u32 = 0;
/// The entry for what arrives.
pub const INGRESS: u32 = 1;
