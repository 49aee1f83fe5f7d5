//! What there is to tell, at one moment.

use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroU8,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lockne_core::{
    api::{TunnelKind, TunnelState},
    policy::{Action, PolicyId, Terms},
    tunnel::TunnelName,
};
use tracing::debug;

use super::{Samples, family as of};
use crate::{daemon::Daemon, error::Error};

impl Daemon {
    /// Reads every counter.
    pub(crate) async fn measure(&self) -> Result<Samples, Error> {
        let mut samples = Samples::default();
        samples.add(&of::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], true);
        self.measure_config(&mut samples);
        self.measure_policies(&mut samples)?;
        self.measure_tunnels(&mut samples).await?;
        self.measure_kernel(&mut samples)?;
        measure_process(&mut samples, self.started);
        Ok(samples)
    }

    fn measure_config(&self, samples: &mut Samples) {
        let Some(config) = self.configured.status() else {
            return;
        };
        samples.add(&of::RELOAD_OK, &[], config.problem.is_none());
        if let Some(applied) = self.configured.applied {
            samples.add(&of::RELOAD_TIME, &[], timestamp(applied));
        }
        for rule in &config.rules {
            let policy = rule.policy.map(|it| it.to_string()).unwrap_or_default();
            let labels = [&*policy, rule.name.as_str(), &via(&rule.terms)];
            samples.add(&of::RULE_INFO, &labels, true);
            let active = rule.missing.is_none() && rule.policy.is_some();
            samples.add(&of::RULE_ACTIVE, &[rule.name.as_str()], active);
        }
    }

    fn measure_policies(&self, samples: &mut Samples) -> Result<(), Error> {
        let mut processes: BTreeMap<PolicyId, u64> = BTreeMap::new();
        for (_, id) in self.kernel.policed() {
            *processes.entry(id).or_default() += 1;
        }
        for (id, terms) in &self.policies {
            let counters = self.kernel.counters(*id)?;
            let number = id.to_string();
            let rule = self.configured.first_rule(*id).unwrap_or_default();
            let labels = [&*number, rule, &via(terms)];
            samples.add(&of::TRANSMIT_PACKETS, &labels, counters.tx_packets);
            samples.add(&of::TRANSMIT_BYTES, &labels, counters.tx_bytes);
            if terms.action != Action::Direct {
                samples.add(&of::RECEIVE_PACKETS, &labels, counters.rx_packets);
                samples.add(&of::RECEIVE_BYTES, &labels, counters.rx_bytes);
            }
            samples.add(&of::REFUSED, &labels, counters.refused);
            let living = processes.get(id).copied().unwrap_or_default();
            samples.add(&of::PROCESSES, &labels, living);
            let now = self.effective(*id);
            let used = now.as_ref().and_then(|terms| terms.tunnels().next());
            for tunnel in terms.tunnels() {
                let labels = [&*number, rule, tunnel.as_str()];
                samples.add(&of::POLICY_TUNNEL, &labels, used == Some(tunnel));
            }
            if terms.has_choice() {
                samples.add(&of::SWITCHES, &labels, self.failover.switches(*id));
            }
        }
        let total = processes.values().sum();
        for fill in self.kernel.fills(total)? {
            samples.add(&of::MAP_ENTRIES, &[fill.map], fill.used);
            samples.add(&of::MAP_MAX_ENTRIES, &[fill.map], fill.room);
        }
        let rules = self.configured.assigned.rules.len();
        let policies = self.policies.len();
        for (map, used, room) in [
            ("POLICIES", policies, usize::from(NonZeroU8::MAX.get())),
            ("RULES", rules, crate::rules::MAX_RULES),
        ] {
            samples.add(&of::MAP_ENTRIES, &[map], used as u64);
            samples.add(&of::MAP_MAX_ENTRIES, &[map], room as u64);
        }
        Ok(())
    }

    async fn measure_tunnels(&self, samples: &mut Samples) -> Result<(), Error> {
        let carried = self.netlink.carried().await?;
        for tunnel in self.tunnel_statuses().await? {
            let name = tunnel.name.as_str();
            samples.add(&of::TUNNEL_INFO, &[name, kind(tunnel.kind)], true);
            samples.add(&of::TUNNEL_UP, &[name], tunnel.state == TunnelState::Up);
            if let Some((works, changes)) = self.failover.health(&tunnel.name) {
                samples.add(&of::TUNNEL_HEALTHY, &[name], works);
                samples.add(&of::HEALTH_CHANGES, &[name], changes);
            }
            if let Some(carried) = carried.get(name) {
                samples.add(&of::TUNNEL_TRANSMIT_PACKETS, &[name], carried.tx_packets);
                samples.add(&of::TUNNEL_TRANSMIT_BYTES, &[name], carried.tx_bytes);
                samples.add(&of::TUNNEL_RECEIVE_PACKETS, &[name], carried.rx_packets);
                samples.add(&of::TUNNEL_RECEIVE_BYTES, &[name], carried.rx_bytes);
            }
            let handshakes = self.handshakes(&tunnel.name);
            for peer in &tunnel.peers {
                let labels = [name, &*peer.public_key];
                samples.add(&of::PEER_TRANSMIT_BYTES, &labels, peer.tx_bytes);
                samples.add(&of::PEER_RECEIVE_BYTES, &labels, peer.rx_bytes);
                if let Some(time) = handshakes.get(&peer.public_key) {
                    let time = SystemTime::now() - *time;
                    // The time of the same handshake must stay the same.
                    samples.add(&of::HANDSHAKE, &labels, timestamp(time).round());
                }
            }
        }
        Ok(())
    }

    fn handshakes(&self, name: &TunnelName) -> BTreeMap<String, Duration> {
        let live = self.tunnels.get(name).and_then(|it| it.wireguard.as_ref());
        live.map_or_else(BTreeMap::new, |live| live.wireguard.handshakes())
    }

    fn measure_kernel(&self, samples: &mut Samples) -> Result<(), Error> {
        samples.add(&of::OVERFLOWED, &[], self.kernel.has_overflowed()?);
        samples.add(&of::STRICT, &[], self.kernel.is_strict()?);
        for runs in self.kernel.runs()? {
            let labels = [runs.program];
            samples.add(&of::RUN_SECONDS, &labels, runs.time.as_secs_f64());
            samples.add(&of::RUNS, &labels, runs.count);
        }
        Ok(())
    }
}

/// What a policy says, in one word: its tunnels in their order, `direct` or `block`.
fn via(terms: &Terms) -> String {
    match &terms.action {
        Action::Direct => "direct".to_owned(),
        Action::Block => "block".to_owned(),
        Action::Via(_) => {
            let mut names: Vec<&str> = terms.tunnels().map(TunnelName::as_str).collect();
            names.extend(terms.or_direct.then_some("direct"));
            names.join(",")
        }
    }
}

const fn kind(kind: TunnelKind) -> &'static str {
    match kind {
        TunnelKind::Interface => "interface",
        TunnelKind::WireguardKernel => "wireguard-kernel",
        TunnelKind::WireguardEmbedded => "wireguard-embedded",
    }
}

fn timestamp(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// What the daemon itself costs, by the names that all programs use for that.
fn measure_process(samples: &mut Samples, started: Instant) {
    let start = SystemTime::now() - started.elapsed();
    samples.add(&of::START_TIME, &[], timestamp(start).round());
    if let Some((seconds, bytes)) = usage() {
        samples.add(&of::CPU_SECONDS, &[], seconds);
        samples.add(&of::RESIDENT_BYTES, &[], bytes);
    } else {
        debug!("cannot read what the daemon itself uses");
    }
}

/// Seconds of processor time and bytes of memory of this process.
fn usage() -> Option<(f64, u64)> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = std::time::Duration::try_from(time).ok()?.as_secs_f64();
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|it| it.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = resident.trim().strip_suffix(" kB")?.parse().ok()?;
    Some((seconds, kibibytes << 10))
}
