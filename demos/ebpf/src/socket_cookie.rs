//! What demo 11 knows about sockets.

crate::shared! {
    /// Whose socket it is, and what it sent.
    struct Owner {
        /// The process that made it.
        pid: u32,
        /// Always 0: without it there would be padding here.
        reserved: u32,
        /// The name of the process, ended by a zero.
        name: [u8; 16],
        /// How many packets left by it.
        packets: u64,
        /// Their bytes, from the IP header on.
        bytes: u64,
    }
}

/// The mark that stands for the policy. Some bits that are hardly used by others.
pub const MARK: u32 = 0x000b_0000;

/// The counter of packets with the mark.
pub const PACKETS: u32 = 0;
/// The counter of their bytes.
pub const BYTES: u32 = 1;
