//! A small internet in network namespaces, for the demo, the tests and the benchmarks.
//!
//! ```text
//!   home ──────── home link ──────── internet ─────── provider A
//!   192.0.2.2                        203.0.113.10     198.51.100.11
//!   2001:db8:2::2                    origin, router   WireGuard peer
//!                                        └─────────── provider B
//! ```
//!
//! Namespaces have no names and are held by file descriptors alone, and every device is made inside
//! them. So nothing outside is touched, and when the process ends, however it ends, all of it is gone.

pub mod cgroup;
pub mod device;
pub mod escape;
pub mod hold;
pub mod internet;
pub mod link;
pub mod namespace;
pub mod origin;
pub mod packet;
pub mod probe;
pub mod program;
pub mod provider;
pub mod sniffer;

mod datagram;
mod netlink;
mod ready;

pub use internet::Internet;
pub use namespace::Namespace;
