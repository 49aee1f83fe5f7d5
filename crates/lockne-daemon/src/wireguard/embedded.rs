//! WireGuard inside this process, on a TUN device.

use std::{io, net::SocketAddr};

use gotatun::{device, x25519};
use ipnet::IpNet;
use lockne_core::wgquick::{Config, PublicKey};
use lockne_transport::{Death, Device, Keepalives, Tun};

use super::{
    Error,
    peer::{Peer, PeerState},
};

/// A running WireGuard.
pub(super) struct Embedded {
    name: String,
    device: Device,
    keepalives: Keepalives,
}

/// What the device needs beside its configuration, looked up by the caller.
pub(super) struct Settings<'a> {
    pub(super) name: &'a str,
    pub(super) mtu: u16,
    pub(super) port: u16,
    pub(super) peers: &'a [Peer<'a>],
}

impl Embedded {
    /// Starts to serve `tun`.
    pub(super) async fn start(
        tun: &Tun,
        config: &Config,
        settings: Settings<'_>,
        death: &Death,
    ) -> Result<Self, Error> {
        let Settings { name, port, .. } = settings;
        let settings = lockne_transport::Settings {
            mtu: settings.mtu,
            port,
            mark: config.fwmark,
            private_key: (*config.private_key.secret_bytes()).into(),
            peers: settings.peers.iter().map(device_peer).collect(),
        };
        let (starting, keepalives) = lockne_transport::start(tun, settings, death)?;
        let device = starting.await.map_err(|error| match error {
            device::Error::Bind(source, _) => bind_error(port, source),
            source => Error::Embedded {
                action: "start",
                name: name.to_owned(),
                source,
            },
        })?;
        Ok(Self {
            name: name.to_owned(),
            device,
            keepalives,
        })
    }

    /// The bytes of messages without content that came, which [`peers`](Self::peers) does not count.
    pub(super) fn keepalives(&self) -> u64 {
        self.keepalives.bytes()
    }

    /// What is known about every peer.
    pub(super) async fn peers(&self) -> Vec<PeerState> {
        let peers = self.device.peers().await;
        let state = |peer: device::configure::PeerStats| PeerState {
            public_key: PublicKey::from_bytes(peer.peer.public_key.to_bytes()),
            endpoint: peer.peer.endpoint,
            allowed_ips: peer.peer.allowed_ips.iter().filter_map(net).collect(),
            handshake_age: peer.stats.last_handshake,
            rx_bytes: peer.stats.rx_bytes as u64,
            tx_bytes: peer.stats.tx_bytes as u64,
        };
        peers.into_iter().map(state).collect()
    }

    /// Sends what goes to `peer` to another address from now on.
    pub(super) async fn set_endpoint(
        &self,
        peer: &PublicKey,
        endpoint: SocketAddr,
    ) -> Result<(), Error> {
        let key = x25519::PublicKey::from(*peer.bytes());
        let set = self.device.write(async |device| {
            device
                .modify_peer(&key, |peer| peer.set_endpoint(Some(endpoint)))
                .await
        });
        match set.await {
            Ok(_) => Ok(()),
            Err(source) => Err(Error::Embedded {
                action: "change a peer in",
                name: self.name.clone(),
                source,
            }),
        }
    }

    /// Ends the tasks and closes the socket. The TUN device stays.
    pub(super) async fn stop(&self) {
        self.device.suspend().await;
    }
}

fn bind_error(port: u16, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::AddrInUse => Error::PortInUse { port, source },
        _ => Error::Socket { port, source },
    }
}

fn device_peer(peer: &Peer<'_>) -> device::Peer {
    let key = x25519::PublicKey::from(*peer.config.public_key.bytes());
    let mut built = device::Peer::new(key);
    built.endpoint = peer.endpoint;
    built.preshared_key = peer
        .config
        .preshared_key
        .as_ref()
        .map(|key| *key.secret_bytes());
    built.keepalive = peer.config.persistent_keepalive.map(Into::into);
    // gotatun has another type for prefixes; both write them in the same way.
    let prefixes = peer.config.allowed_ips.iter();
    built.with_allowed_ips(prefixes.map(|net| {
        let parsed = net.to_string().parse();
        parsed.expect("a prefix without host bits")
    }))
}

fn net(net: impl ToString) -> Option<IpNet> {
    net.to_string().parse().ok()
}
