//! What has to be done from time to time: remember handshakes, and look up silent peers again.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Mutex, PoisonError, Weak},
    time::{self, Duration},
};

use lockne_core::{api::PeerStatus, wgquick::PublicKey};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    Device, Error, SESSION_LIFE,
    death::Death,
    peer::{Named, PeerState},
    resolve,
};

/// gotatun forgets a handshake with its session, after nine minutes at the latest.
const REMEMBER: Duration = Duration::from_secs(5);

/// As wireguard-tools' reresolve-dns does it from a timer.
const RESOLVE: Duration = Duration::from_secs(30);

/// A device, with what it forgets.
pub(super) struct Watched {
    pub(super) device: Device,
    pub(super) death: Death,
    order: Vec<PublicKey>,
    handshakes: Mutex<HashMap<PublicKey, Instant>>,
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

    /// When the last handshake with each peer was.
    pub(super) fn handshakes(&self) -> BTreeMap<String, time::Instant> {
        let handshakes = self.handshakes.lock();
        let handshakes = handshakes.unwrap_or_else(PoisonError::into_inner);
        let known = handshakes.iter();
        known
            .map(|(key, time)| (key.to_string(), time.into_std()))
            .collect()
    }

    async fn peers(&self) -> Result<Vec<PeerState>, Error> {
        let mut peers = match &self.device {
            Device::Kernel(kernel) => kernel.peers()?,
            Device::Embedded(embedded) => embedded.peers().await,
        };
        let now = Instant::now();
        let handshakes = self.handshakes.lock();
        let mut handshakes = handshakes.unwrap_or_else(PoisonError::into_inner);
        for peer in &mut peers {
            if let Some(time) = peer.handshake_age.and_then(|age| now.checked_sub(age)) {
                handshakes.insert(peer.public_key, time);
            }
            let last = handshakes.get(&peer.public_key);
            peer.handshake_age = last.map(|time| now.duration_since(*time));
        }
        Ok(peers)
    }

    async fn look(&self) {
        if let Err(Error::Link { source, .. }) = self.peers().await
            && source.raw_os_error() == Some(libc::ENODEV)
        {
            self.death.fatal(io::Error::from_raw_os_error(libc::ENODEV));
        }
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

/// Watches until the tunnel is gone.
pub(super) async fn run(watched: Weak<Watched>, named: Vec<Named>, mark: Option<u32>) {
    let mut remember = interval(REMEMBER);
    let mut resolve = interval(RESOLVE);
    remember.set_missed_tick_behavior(MissedTickBehavior::Delay);
    resolve.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The addresses were looked up just now.
    resolve.reset();
    loop {
        tokio::select! {
            _ = remember.tick() => {
                let Some(watched) = watched.upgrade() else { return };
                watched.look().await;
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
