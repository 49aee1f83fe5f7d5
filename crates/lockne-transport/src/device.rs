//! A WireGuard over these transports.

use std::{io, ops::Deref, pin::Pin};

use gotatun::{
    device::{self, DeviceBuilder, Peer},
    x25519::StaticSecret,
};

use crate::{
    death::Death,
    tun::{Tun, TunError, TunRecv, TunSend},
    udp::{Keepalives, Sockets},
    worker::Worker,
};

/// A running WireGuard, which does its work on a thread of its own.
pub struct Device {
    device: device::Device<(Sockets, TunSend, TunRecv)>,
    /// After the device, whose tasks it has.
    _worker: Worker,
}

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

impl Deref for Device {
    type Target = device::Device<(Sockets, TunSend, TunRecv)>;

    fn deref(&self) -> &Self::Target {
        &self.device
    }
}

/// Starts to serve `tun`, in the network namespace of the calling thread, and tells `death` when that ends.
///
/// # Errors
///
/// If there is no thread for it, or the device cannot be watched.
pub fn start(
    tun: &Tun,
    settings: Settings,
    death: &Death,
) -> Result<(Starting, Keepalives), TunError> {
    let worker = tun.refused("start a thread for", Worker::start())?;
    let (send, recv) = {
        let _runtime = worker.runtime().enter();
        tun.split(settings.mtu, death)?
    };
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
    let starting = async move {
        let built = worker.runtime().spawn(builder.build()).await;
        let device = built.map_err(|end| device::Error::IoError(io::Error::from(end)))??;
        Ok(Device {
            device,
            _worker: worker,
        })
    };
    Ok((Box::pin(starting), keepalives))
}
