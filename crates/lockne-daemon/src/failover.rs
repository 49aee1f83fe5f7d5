//! Policies with several tunnels use the first that works.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use lockne_core::{
    api::{TunnelKind, TunnelState, TunnelStatus},
    failover::{self, Health, Sign, Watched},
    policy::{Action, PolicyId, Terms},
    tunnel::TunnelName,
};
use tracing::{info, warn};

use crate::{clock, daemon::Daemon, error::Error, ping::Ping};

/// How often the tunnels are looked at, while a policy has several.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// In how many looks one pings.
const PING: u32 = 2;
/// A session of WireGuard that is older than this is none any more (`REJECT_AFTER_TIME`).
const SESSION: u64 = 180;

/// What is known of tunnels that stand in for each other.
#[derive(Default)]
pub(crate) struct Failover {
    looks: u32,
    watched: Watched,
    health: BTreeMap<TunnelName, Health>,
    /// Which way each policy takes that has a choice.
    chosen: BTreeMap<PolicyId, Action>,
    /// The policies by which pings go into a tunnel.
    ways: BTreeMap<TunnelName, PolicyId>,
    /// How often each tunnel failed or worked again.
    changes: BTreeMap<TunnelName, u64>,
    /// How often the programs of each policy went another way.
    switches: BTreeMap<PolicyId, u64>,
    pings: BTreeMap<TunnelName, Ping>,
}

impl Failover {
    /// The way that a policy takes now, if it has a choice.
    pub(crate) fn chosen(&self, id: PolicyId) -> Option<&Action> {
        self.chosen.get(&id)
    }

    /// Chooses a tunnel for a policy that is new, by what is known already. What it has open goes direct only after
    /// it was cut, so that is for the next look.
    pub(crate) fn choose_first(&mut self, id: PolicyId, policies: &BTreeMap<PolicyId, Terms>) {
        let terms = policies.get(&id).filter(|terms| terms.has_choice());
        let now = self.watched.time();
        let chosen = terms.and_then(|terms| failover::choose(terms, &self.health, None, now));
        match chosen.filter(|it| *it != Action::Direct) {
            Some(way) => self.chosen.insert(id, way),
            None => self.chosen.remove(&id),
        };
    }

    /// Whether a tunnel works, and how often that changed; of those that are looked at.
    pub(crate) fn health(&self, name: &TunnelName) -> Option<(bool, u64)> {
        let health = self.health.get(name)?;
        let changes = self.changes.get(name).copied().unwrap_or_default();
        Some((health.works(), changes))
    }

    /// How often the programs of a policy went another way.
    pub(crate) fn switches(&self, id: PolicyId) -> u64 {
        self.switches.get(&id).copied().unwrap_or_default()
    }

    /// Whether pings need a policy.
    pub(crate) fn uses(&self, id: PolicyId) -> bool {
        self.ways.values().any(|it| *it == id)
    }
}

impl Daemon {
    /// Whether a policy has a choice of ways.
    pub(crate) fn has_choice(&self) -> bool {
        self.policies.values().any(Terms::has_choice)
    }

    /// Looks at the tunnels of policies that have a choice, and moves those whose tunnel fails.
    pub(crate) async fn look_at_tunnels(&mut self) {
        let choices = self.policies.values().filter(|terms| terms.has_choice());
        let names: BTreeSet<TunnelName> = choices.flat_map(Terms::tunnels).cloned().collect();
        if self.failover.watched.look(clock::since_boot()) {
            self.failover.health.values_mut().for_each(Health::wake);
        }
        self.failover.looks = self.failover.looks.wrapping_add(1);
        let keep = |name: &TunnelName| names.contains(name);
        self.failover.health.retain(|name, _| keep(name));
        self.failover.ways.retain(|name, _| keep(name));
        self.failover.pings.retain(|name, _| keep(name));
        self.failover.changes.retain(|name, _| keep(name));
        for name in &names {
            let Ok(status) = self.tunnel_status(name).await else {
                self.observe(name, Sign::default());
                continue;
            };
            let sign = self.sign(&status).await;
            self.observe(name, sign);
        }
        if let Err(error) = self.keep_ways().await {
            let error = error.refusal();
            warn!(?error, "cannot keep late answers of a tunnel in it");
        }
        if let Err(error) = self.choose().await {
            let error = error.refusal();
            warn!(?error, "cannot move programs to a tunnel that works");
        }
    }

    fn observe(&mut self, name: &TunnelName, sign: Sign) {
        let health = self.failover.health.entry(name.clone()).or_default();
        let before = *health;
        health.observe(self.failover.watched.time(), sign);
        if before.was_up() && before.works() != health.works() {
            let state = if health.works() {
                "works again"
            } else {
                "does not work"
            };
            info!(tunnel = %name, "{state}");
            *self.failover.changes.entry(name.clone()).or_default() += 1;
        }
    }

    async fn sign(&mut self, status: &TunnelStatus) -> Sign {
        let name = &status.name;
        let up = status.state == TunnelState::Up;
        let is_ours = status.kind != TunnelKind::Interface;
        let sum = |f: fn(&lockne_core::api::PeerStatus) -> u64| status.peers.iter().map(f).sum();
        let probe = self.configured.tunnel(name).and_then(|it| it.probe);
        let works = self.failover.health.get(name).is_none_or(Health::works);
        let has_session = status
            .peers
            .iter()
            .any(|peer| peer.handshake_age_seconds.is_some_and(|age| age < SESSION));
        // One that is idle says nothing of itself, and one that failed must be asked to be heard again.
        let must_ask = is_ours && !(works && has_session);
        let live = self.tunnels.get(name).and_then(|it| it.wireguard.as_ref());
        let keepalives = live.map_or(0, |live| live.wireguard.keepalives());
        let mut sign = Sign {
            up,
            traffic: is_ours.then(|| (sum(|it| it.tx_bytes), sum(|it| it.rx_bytes) + keepalives)),
            ..Sign::default()
        };
        let address = probe.or_else(|| must_ask.then(|| somebody_behind(status)).flatten());
        let Some(address) = address else {
            self.failover.pings.remove(name);
            return sign;
        };
        if !up || !self.failover.looks.is_multiple_of(PING) {
            return sign;
        }
        match self.ping(name, address).await {
            Ok(answered) => {
                sign.asked = is_ours;
                sign.ping = answered.filter(|_| probe.is_some());
            }
            Err(error) => {
                let error = error.refusal();
                warn!(tunnel = %name, ?error, "cannot ping through the tunnel");
            }
        }
        sign
    }

    /// What arrives late by a tunnel, for connections that were cut when programs went past it, is answered by the
    /// kernel with the mark of a policy. That must be one that never leaves the tunnel.
    async fn keep_ways(&mut self) -> Result<(), Error> {
        let terms = self.policies.values().filter(|terms| terms.or_direct);
        let names: BTreeSet<TunnelName> = terms.flat_map(Terms::tunnels).cloned().collect();
        for name in names {
            if !self.failover.ways.contains_key(&name) {
                self.only(&name).await?;
            }
        }
        Ok(())
    }

    /// The policy that is this tunnel and nothing else.
    async fn only(&mut self, name: &TunnelName) -> Result<PolicyId, Error> {
        let id = self.policy(Terms::new(Action::Via(name.clone()))).await?;
        self.failover.ways.insert(name.clone(), id);
        Ok(id)
    }

    async fn ping(&mut self, name: &TunnelName, address: IpAddr) -> Result<Option<bool>, Error> {
        let id = self.only(name).await?;
        let is_other = |ping: &Ping| ping.address() != address;
        if self.failover.pings.get(name).is_none_or(is_other) {
            let mark = self.options.field.mark(id.get());
            let ping = Ping::new(address, mark).map_err(Error::Ping)?;
            self.failover.pings.insert(name.clone(), ping);
        }
        Ok(self.failover.pings.get_mut(name).and_then(Ping::again))
    }

    /// Chooses anew for every policy, and moves those that have to.
    pub(crate) async fn choose(&mut self) -> Result<(), Error> {
        let mut chosen = BTreeMap::new();
        let mut moved = Vec::new();
        let mut past = BTreeSet::new();
        let time = self.failover.watched.time();
        for (id, terms) in self.policies.iter().filter(|(_, it)| it.has_choice()) {
            let before = self.failover.chosen.get(id);
            let Some(now) = failover::choose(terms, &self.failover.health, before, time) else {
                continue;
            };
            let before = before.unwrap_or(&terms.action);
            if *before != now {
                match (&now, before) {
                    (Action::Direct, _) => {
                        warn!(policy = %id, "programs go direct now, as no tunnel of it is healthy");
                    }
                    (_, Action::Direct) => warn!(policy = %id, "programs go {now} again"),
                    _ => warn!(policy = %id, "programs go {now} now"),
                }
                if [before, &now].contains(&&Action::Direct) {
                    past.insert(*id);
                }
                moved.push(*id);
            }
            chosen.insert(*id, now);
        }
        // The kernel tells the far end of a connection that it is cut. Nothing of a tunnel may leave past it, and
        // nothing of outside by it, not even that.
        for id in &past {
            self.cut_elsewhere(*id);
        }
        for id in &moved {
            *self.failover.switches.entry(*id).or_default() += 1;
        }
        // A number that is given anew begins anew.
        let switches = &mut self.failover.switches;
        switches.retain(|id, _| chosen.contains_key(id));
        self.failover.chosen = chosen;
        if moved.is_empty() {
            return Ok(());
        }
        self.reconcile().await?;
        // They have the address of the other tunnel, so they are silent until that one is used again.
        for id in moved {
            if past.contains(&id) || !self.keeps_connections_of(id) {
                self.cut_elsewhere(id);
            }
        }
        Ok(())
    }
}

/// An address that packets reach only through the tunnel, whether anybody is there or not: a WireGuard peer
/// says that it is there when it gets anything.
fn somebody_behind(status: &TunnelStatus) -> Option<IpAddr> {
    let neighbour = status.addresses.iter().next().map(|net| match net.addr() {
        IpAddr::V4(it) => IpAddr::V4((u32::from(it) ^ 1).into()),
        IpAddr::V6(it) => IpAddr::V6((u128::from(it) ^ 1).into()),
    });
    let is_routed = |address: &IpAddr| {
        let mut prefixes = status.peers.iter().flat_map(|peer| &peer.allowed_ips);
        prefixes.any(|prefix| prefix.contains(address))
    };
    status.dns.iter().copied().chain(neighbour).find(is_routed)
}
