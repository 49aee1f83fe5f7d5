//! What demo 05 is told, and what it counts.

crate::shared! {
    /// What is limited, and to which rate.
    struct Limit {
        /// Bytes per second; 0 for no limit yet.
        rate: u64,
        /// What processes of this cgroup send; 0 for all.
        cgroup: u64,
        /// What goes to this address, IPv4 mapped into IPv6; zero for all.
        destination: [u8; 16],
        /// One of [`POLICE`] and [`PACE`].
        method: u64,
    }
}

/// Drop what is too early.
pub const POLICE: u64 = 0;
/// Let the queueing discipline `fq` hold what is too early.
pub const PACE: u64 = 1;

/// The counter of bytes that were let through.
pub const SENT: u32 = 0;
/// The counter of packets that were dropped.
pub const DROPPED: u32 = 1;
