//! What demo 03 reports.

crate::shared! {
    /// An echo request that arrived.
    struct Ping {
        /// Who asks; IPv4 mapped into IPv6.
        source: [u8; 16],
        /// Who is asked.
        destination: [u8; 16],
        /// Which run of `ping` it belongs to.
        id: u16,
        /// Its number in that run.
        sequence: u16,
        /// 1 if it was dropped, else 0.
        dropped: u32,
    }
}
