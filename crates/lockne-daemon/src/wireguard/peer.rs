//! A peer with its address, and a peer as a device sees it.

use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;
use lockne_core::wgquick::{self, Config, Endpoint, Host, PublicKey};

use super::{Error, resolve};

/// A peer of the configuration, with the address of its endpoint.
#[derive(Clone, Debug)]
pub(super) struct Peer<'a> {
    pub(super) config: &'a wgquick::Peer,
    pub(super) endpoint: Option<SocketAddr>,
}

impl<'a> Peer<'a> {
    /// Chooses where the peer is, for packets with `mark`.
    pub(super) fn at(
        config: &'a wgquick::Peer,
        addresses: &[SocketAddr],
        mark: Option<u32>,
    ) -> Self {
        Self {
            config,
            endpoint: resolve::reachable(addresses, mark),
        }
    }
}

/// The addresses of all peers of a configuration, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints(Vec<Vec<SocketAddr>>);

impl Endpoints {
    /// Those of a configuration without names; `None` if it has some, which have to be looked up.
    #[must_use]
    pub fn written(config: &Config) -> Option<Self> {
        let peers = config.peers.iter().map(|peer| match &peer.endpoint {
            Some(endpoint) => resolve::written(endpoint).map(|address| vec![address]),
            None => Some(Vec::new()),
        });
        peers.collect::<Option<_>>().map(Self)
    }

    /// Looks them up, which can take as long as a resolver is silent.
    ///
    /// # Errors
    ///
    /// Fails if the endpoint of a peer cannot be found.
    pub async fn find(config: &Config) -> Result<Self, Error> {
        let mut peers = Vec::with_capacity(config.peers.len());
        for peer in &config.peers {
            peers.push(match &peer.endpoint {
                Some(endpoint) => resolve::addresses(endpoint).await?,
                None => Vec::new(),
            });
        }
        Ok(Self(peers))
    }

    /// The addresses of the peer that stands there in the configuration.
    pub(super) fn of(&self, peer: usize) -> &[SocketAddr] {
        self.0.get(peer).map_or(&[], Vec::as_slice)
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
