//! What demo 01 reports.

crate::shared! {
    /// A packet that left.
    struct Packet {
        /// Who sent it; IPv4 mapped into IPv6; zero if it is not IP.
        source: [u8; 16],
        /// Who is to get it.
        destination: [u8; 16],
        /// Its length in bytes, headers included.
        len: u32,
        /// What the device was told it is, such as 0x0800 for IPv4.
        ethertype: u16,
        /// The source port of TCP or UDP, else 0.
        source_port: u16,
        /// The destination port of TCP or UDP, else 0.
        destination_port: u16,
        /// The IP protocol number, 0 if it is not IP.
        protocol: u8,
        /// Always 0: without it there would be padding here.
        reserved: u8,
    }
}
