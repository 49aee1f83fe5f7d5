//! What demo 04's filter is told, and what it counts.

crate::shared! {
    /// Which packets are dropped.
    struct Rule {
        /// Those of this sender, IPv4 mapped into IPv6; zero for any.
        source: [u8; 16],
        /// Those for this TCP or UDP port; zero for any.
        port: u16,
    }
}

/// The counter of packets that passed.
pub const PASSED: u32 = 0;
/// The counter of packets that were dropped.
pub const DROPPED: u32 = 1;
