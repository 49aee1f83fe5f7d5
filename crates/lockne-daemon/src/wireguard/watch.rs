//! What has to be done from time to time: remember handshakes, and look up silent peers again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError, Weak},
    time::Duration,
};

use lockne_core::{api::PeerStatus, wgquick::PublicKey};
use lockne_transport::Death;

use super::{
    Device, Error, SESSION_LIFE,
    peer::{Named, PeerState},
    resolve,
};
use crate::clock::{self, Sleep};

/// gotatun forgets a handshake with its session, after nine minutes at the latest.
const REMEMBER: Duration = Duration::from_secs(5);

/// As wireguard-tools' reresolve-dns does it from a timer.
const RESOLVE: Duration = Duration::from_secs(30);

/// When the last handshake with each peer was, since boot: a session grows old while the machine sleeps.
type Handshakes = HashMap<PublicKey, Duration>;

/// A device, with what it forgets.
pub(super) struct Watched {
    pub(super) device: Device,
    pub(super) death: Death,
    order: Vec<PublicKey>,
    handshakes: Mutex<Handshakes>,
}

impl Watched {
    /// Watches a device whose peers are shown in this order.
    pub(super) fn new(device: Device, death: Death, order: Vec<PublicKey>) -> Self {
        Self {
            device,
            death,
            order,
            handshakes: Mutex::default(),
        }
    }

    /// What is known about the peers.
    pub(super) async fn status(&self) -> Result<Vec<PeerStatus>, Error> {
        let mut peers = self.peers().await?;
        let place = |peer: &PeerState| self.order.iter().position(|key| *key == peer.public_key);
        peers.sort_by_key(place);
        Ok(peers.into_iter().map(PeerStatus::from).collect())
    }

    /// How long ago the last handshake with each peer was.
    pub(super) fn handshakes(&self) -> BTreeMap<String, Duration> {
        let handshakes = self.handshakes.lock();
        let handshakes = handshakes.unwrap_or_else(PoisonError::into_inner);
        let now = clock::since_boot();
        let known = handshakes.iter();
        known
            .map(|(key, time)| (key.to_string(), now.saturating_sub(*time)))
            .collect()
    }

    /// A device that somebody took away has none, and that is told.
    async fn peers(&self) -> Result<Vec<PeerState>, Error> {
        let mut peers = match &self.device {
            Device::Kernel(kernel) => match kernel.peers() {
                Err(Error::Link { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
                    self.death.tell(libc::ENODEV);
                    Vec::new()
                }
                peers => peers?,
            },
            Device::Embedded(embedded) => embedded.peers().await,
        };
        let handshakes = self.handshakes.lock();
        let mut handshakes = handshakes.unwrap_or_else(PoisonError::into_inner);
        remember(&mut handshakes, &mut peers, clock::since_boot());
        Ok(peers)
    }

    async fn resolve(&self, named: &[Named], mark: Option<u32>) {
        let Ok(peers) = self.peers().await else {
            return;
        };
        for peer in named {
            let state = peers
                .iter()
                .find(|state| state.public_key == peer.public_key);
            let age = state.and_then(|state| state.handshake_age);
            if age.is_some_and(|age| age < SESSION_LIFE) {
                continue;
            }
            let current = state.and_then(|state| state.endpoint);
            if let Err(error) = self.resolve_one(peer, current, mark).await {
                tracing::debug!(?error, "cannot look up a silent peer");
            }
        }
    }

    async fn resolve_one(
        &self,
        peer: &Named,
        current: Option<std::net::SocketAddr>,
        mark: Option<u32>,
    ) -> Result<(), Error> {
        let addresses = resolve::addresses(&peer.endpoint).await?;
        if current.is_some_and(|current| addresses.contains(&current)) {
            return Ok(());
        }
        let Some(address) = resolve::reachable(&addresses, mark) else {
            return Ok(());
        };
        tracing::debug!(%address, "a silent peer has another address");
        match &self.device {
            Device::Kernel(kernel) => kernel.set_endpoint(&peer.public_key, address),
            Device::Embedded(embedded) => embedded.set_endpoint(&peer.public_key, address).await,
        }
    }
}

/// Adds what the device knows at the time `now`, and what it has forgotten.
fn remember(handshakes: &mut Handshakes, peers: &mut [PeerState], now: Duration) {
    for peer in peers {
        if let Some(age) = peer.handshake_age {
            handshakes.insert(peer.public_key, now.saturating_sub(age));
        }
        let last = handshakes.get(&peer.public_key);
        peer.handshake_age = last.map(|time| now.saturating_sub(*time));
    }
}

/// Watches until the tunnel is gone.
pub(super) async fn run(watched: Weak<Watched>, named: Vec<Named>, mark: Option<u32>) {
    let mut remember = clock::every(REMEMBER);
    let mut resolve = clock::every(RESOLVE);
    // The addresses were looked up just now.
    resolve.reset();
    let mut sleep = Sleep::new();
    loop {
        tokio::select! {
            _ = remember.tick() => {
                let Some(watched) = watched.upgrade() else { return };
                if let Err(error) = watched.peers().await {
                    tracing::debug!(?error, "cannot look after a tunnel");
                }
                // Its sessions are over, and the far end may be elsewhere by now.
                if sleep.noticed().is_some() {
                    watched.resolve(&named, mark).await;
                }
            }
            _ = resolve.tick() => {
                let Some(watched) = watched.upgrade() else { return };
                watched.resolve(&named, mark).await;
            }
        }
    }
}

impl From<PeerState> for PeerStatus {
    fn from(state: PeerState) -> Self {
        Self {
            public_key: state.public_key.to_string(),
            endpoint: state.endpoint,
            allowed_ips: state.allowed_ips,
            handshake_age_seconds: state.handshake_age.map(|age| age.as_secs()),
            rx_bytes: state.rx_bytes,
            tx_bytes: state.tx_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshake_grows_old_while_the_machine_sleeps() {
        let seconds = Duration::from_secs;
        let peer = |handshake_age| PeerState {
            public_key: PublicKey::from_bytes([7; 32]),
            endpoint: None,
            allowed_ips: Vec::new(),
            handshake_age,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        let mut handshakes = Handshakes::new();
        let mut at = |now, known| {
            let mut peers = [peer(known)];
            remember(&mut handshakes, &mut peers, seconds(now));
            peers[0].handshake_age
        };

        assert_eq!(at(1000, None), None);
        assert_eq!(at(1000, Some(seconds(10))), Some(seconds(10)));
        // It has slept for a night, and the device has forgotten its session.
        assert_eq!(at(31_000, None), Some(seconds(30_010)));
        assert!(seconds(30_010) > SESSION_LIFE, "so it is asked anew");
    }
}
