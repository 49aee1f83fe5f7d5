//! A peer with its address, and a peer as a device sees it.

use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;
use lockne_core::wgquick::{self, Endpoint, Host, PublicKey};

use super::{Error, resolve};

/// A peer of the configuration, with the address of its endpoint.
#[derive(Clone, Debug)]
pub(super) struct Peer<'a> {
    pub(super) config: &'a wgquick::Peer,
    pub(super) endpoint: Option<SocketAddr>,
}

impl<'a> Peer<'a> {
    /// Looks up where the peer is, for packets with `mark`.
    pub(super) async fn find(config: &'a wgquick::Peer, mark: Option<u32>) -> Result<Self, Error> {
        let endpoint = match &config.endpoint {
            Some(endpoint) => {
                let addresses = resolve::addresses(endpoint).await?;
                resolve::reachable(&addresses, mark)
            }
            None => None,
        };
        Ok(Self { config, endpoint })
    }
}

/// A peer that has to be looked up again when it is silent: its address may have changed.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) public_key: PublicKey,
    pub(super) endpoint: Endpoint,
}

impl Named {
    /// The peer, if its endpoint is a name.
    pub(super) fn new(config: &wgquick::Peer) -> Option<Self> {
        let endpoint = config.endpoint.as_ref()?;
        matches!(endpoint.host, Host::Name(_)).then(|| Self {
            public_key: config.public_key,
            endpoint: endpoint.clone(),
        })
    }
}

/// What a device knows about a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PeerState {
    pub(super) public_key: PublicKey,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) allowed_ips: Vec<IpNet>,
    pub(super) handshake_age: Option<Duration>,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
}
