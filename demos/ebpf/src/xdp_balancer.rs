//! What demo 04's load balancer is told.

crate::shared! {
    /// What is balanced: what goes to this address and port.
    struct Service {
        /// IPv4 mapped into IPv6.
        address: [u8; 16],
        /// Of TCP or UDP.
        port: u16,
    }
}

/// How many back ends there are.
pub const BACKENDS: u32 = 2;
/// The counter of packets that found no way to their back end; those before it are the back ends'.
pub const LOST: u32 = BACKENDS;
