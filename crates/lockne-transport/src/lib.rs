//! Where the packets of the embedded WireGuard come from and go to: a TUN device and a UDP socket, both with many
//! packets at once.
//!
//! All that each packet goes through is in this package and below it, since these are optimized for speed, and the
//! rest of lockne for size.

mod blocks;
mod death;
mod device;
mod offload;
mod pace;
mod tun;
mod udp;
mod worker;

pub use self::{
    death::Death,
    device::{Device, Settings, Starting, start},
    tun::{Start, Tun, TunError, TunRecv, TunSend},
    udp::{Keepalives, Sockets},
};
