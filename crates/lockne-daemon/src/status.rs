//! What the daemon tells of itself.

use std::collections::BTreeSet;

use lockne_core::{
    api::{
        DaemonStatus, Lifetime, PolicyStatus, ProcessStatus, Status, TunnelKind, TunnelState,
        TunnelStatus,
    },
    plan::{self, LinkState},
    policy::PolicyId,
    tunnel::TunnelName,
};

use crate::{
    daemon::Daemon, error::Error, kernel::Reading, reconcile::tunnel_of, wireguard::Wireguard,
};

impl Daemon {
    /// Everything.
    pub(crate) async fn status(&self) -> Result<Status, Error> {
        let tunnels = self.tunnel_statuses().await?;
        let policies = self.policies.iter().map(|(id, terms)| {
            let device = self
                .effective(*id)
                .as_ref()
                .and_then(tunnel_of)
                .and_then(|name| tunnels.iter().find(|tunnel| tunnel.name == *name))
                .filter(|tunnel| tunnel.state == TunnelState::Up)
                .map(|tunnel| tunnel.name.to_string());
            policy_status(
                &self.kernel,
                *id,
                terms,
                self.options.field.mark(id.get()),
                device,
            )
        });
        Ok(Status {
            daemon: DaemonStatus::Running {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                uptime_seconds: self.started.elapsed().as_secs(),
                ephemeral: self.options.lifetime == Lifetime::UntilLastJob,
            },
            state_dir: self.options.state.path().to_owned(),
            mark_mask: self.options.field.mask(),
            policies: policies.collect::<Result<_, Error>>()?,
            tunnels,
            config: self.configured.status(),
            room: Some(self.kernel.room()?),
        })
    }

    /// Every tunnel that a policy names or that lockne brought up.
    pub(crate) async fn tunnel_statuses(&self) -> Result<Vec<TunnelStatus>, Error> {
        let mut statuses = Vec::new();
        let mut links = self.netlink.links().await?;
        for name in self.names() {
            let link = links.remove(name.as_str());
            statuses.push(self.describe(name, link).await?);
        }
        Ok(statuses)
    }

    /// A tunnel of lockne's own, or any interface.
    pub(crate) async fn tunnel_status(&self, name: &TunnelName) -> Result<TunnelStatus, Error> {
        let link = self.netlink.link(name).await?;
        if link.is_none() && !self.names().contains(name) {
            let mut known: BTreeSet<String> = self.netlink.link_names().await?;
            known.remove("lo");
            known.extend(self.names().iter().map(ToString::to_string));
            return Err(Error::UnknownTunnel {
                name: name.clone(),
                known: known.into_iter().collect(),
            });
        }
        self.describe(name.clone(), link).await
    }

    async fn describe(
        &self,
        name: TunnelName,
        link: Option<plan::Link>,
    ) -> Result<TunnelStatus, Error> {
        let ours = self.tunnels.get(&name);
        let wireguard = ours
            .and_then(|tunnel| tunnel.wireguard.as_ref())
            .map(|live| &live.wireguard);
        let peers = match wireguard {
            Some(wireguard) => wireguard
                .status()
                .await
                .map_err(|source| Error::Wireguard {
                    name: name.clone(),
                    source,
                })?,
            None => Vec::new(),
        };
        Ok(TunnelStatus {
            kind: wireguard.map_or(TunnelKind::Interface, Wireguard::kind),
            state: match link.as_ref().map(|link| link.state) {
                Some(LinkState::Up) if ours.is_none() || wireguard.is_some() => TunnelState::Up,
                Some(_) => TunnelState::Down,
                None => TunnelState::Gone,
            },
            ifindex: link.as_ref().map(|link| link.ifindex),
            mtu: link.as_ref().map(|link| link.mtu),
            addresses: link.map(|link| link.addresses).unwrap_or_default(),
            dns: ours
                .map(|tunnel| tunnel.config.dns.clone())
                .unwrap_or_default(),
            peers,
            name,
        })
    }
}

/// A policy with its living processes and its counters.
pub(crate) fn policy_status(
    kernel: &Reading,
    id: PolicyId,
    terms: &lockne_core::policy::Terms,
    mark: u32,
    device: Option<String>,
) -> Result<PolicyStatus, Error> {
    let processes = kernel.processes(id);
    Ok(PolicyStatus {
        id,
        terms: terms.clone(),
        mark,
        table: tunnel_of(terms).map(|_| plan::table(id)),
        device,
        direct_now: terms.or_direct && kernel.policy(id)?.is_direct(),
        resolvers: kernel.resolvers(id)?,
        processes: processes
            .into_iter()
            .map(|pid| ProcessStatus {
                pid,
                name: process_name(pid),
            })
            .collect(),
        traffic: kernel.counters(id)?.into(),
    })
}

fn process_name(pid: u32) -> String {
    // A process may end between the two looks.
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "?".to_owned(), |name| name.trim_end().to_owned())
}
