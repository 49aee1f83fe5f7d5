//! What demo 08 reports.

crate::shared! {
    /// A call that came back.
    struct Call {
        /// The process.
        pid: u32,
        /// What it returned.
        result: i32,
        /// How long it took, in nanoseconds.
        took: u64,
        /// The name of the process, ended by a zero.
        name: [u8; 16],
        /// For `getaddrinfo` the host that was looked up, ended by a zero; else empty.
        host: [u8; 128],
    }
}
