//! A WireGuard over these transports.

use std::pin::Pin;

use gotatun::{
    device::{self, DeviceBuilder, Peer},
    x25519::StaticSecret,
};

use crate::{
    death::Death,
    tun::{Tun, TunError, TunRecv, TunSend},
    udp::{Keepalives, Sockets},
};

/// A running WireGuard.
pub type Device = device::Device<(Sockets, TunSend, TunRecv)>;

/// One that starts. Not a future without a name: its code would be part of whichever package waits for it.
pub type Starting = Pin<Box<dyn Future<Output = Result<Device, device::Error>> + Send>>;

/// What it needs to know.
pub struct Settings {
    /// The longest packet that applications give it.
    pub mtu: u16,
    /// The UDP port of this end, 0 for any.
    pub port: u16,
    /// The mark of its own packets.
    pub mark: Option<u32>,
    /// The key of this end.
    pub private_key: StaticSecret,
    /// The other ends.
    pub peers: Vec<Peer>,
}

/// Starts to serve `tun`, and tells `death` when that ends. Must be called in the runtime that shall do the work.
///
/// # Errors
///
/// If the device cannot be watched.
pub fn start(
    tun: &Tun,
    settings: Settings,
    death: &Death,
) -> Result<(Starting, Keepalives), TunError> {
    let (send, recv) = tun.split(settings.mtu, death)?;
    let keepalives = Keepalives::default();
    let mut builder = DeviceBuilder::new()
        .with_udp(Sockets::new(death, &keepalives))
        .with_ip_pair(send, recv)
        .with_private_key(settings.private_key)
        .with_listen_port(settings.port)
        .with_peers(settings.peers);
    if let Some(mark) = settings.mark {
        builder = builder.with_fwmark(mark);
    }
    Ok((Box::pin(builder.build()), keepalives))
}
