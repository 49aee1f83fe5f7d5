//! Makes guard, rules, routes and settings what policies and tunnels ask for.

use std::collections::{BTreeMap, BTreeSet};

use lockne_core::{
    plan,
    policy::{Action, PolicyId, Terms},
    tunnel::TunnelName,
};
use tracing::info;

use crate::{daemon::Daemon, error::Error, kernel};

impl Daemon {
    /// Computes what should be true as a whole and changes what is not.
    ///
    /// The guard comes before the routes: a device that is not the tunnel's any more is closed before a
    /// packet can be routed anew. So do the stamps: an answer can arrive on a new device at once.
    pub(crate) async fn reconcile(&mut self) -> Result<(), Error> {
        let observed = self
            .netlink
            .observe(self.options.field, &self.names())
            .await?;
        let tunnels: BTreeMap<TunnelName, plan::Tunnel> = observed
            .links
            .iter()
            .map(|(name, link)| (name.clone(), self.plan_tunnel(name, link)))
            .collect();
        let field = self.options.field;
        let policies = self.in_force();
        let desired = plan::Desired::new(field, &observed.families, &policies, &tunnels)
            .before(observed.first_foreign);
        for (id, guard) in &desired.devices {
            self.kernel.set_policy(*id, *guard)?;
        }
        for policy in &policies {
            self.kernel.set_lan(policy.id, &policy.terms.lan)?;
        }
        self.direct_questions(&observed.links)?;
        let stamped = self.stamp(&desired.stamps, &observed.links);
        let steps = plan::diff(&desired, &observed);
        for step in &steps {
            info!(%step, "routing");
        }
        self.netlink.apply(&steps).await?;
        stamped
    }

    /// Stamps what arrives through each tunnel with the mark of one of its policies.
    ///
    /// A device that was a tunnel, and got another name, still brings answers to what went out by it. The
    /// kernel's own replies to those, such as a reset, would leave by the default route: it stays stamped.
    fn stamp(
        &mut self,
        wanted: &BTreeMap<u32, PolicyId>,
        links: &BTreeMap<TunnelName, plan::Link>,
    ) -> Result<(), Error> {
        for ifindex in self.kernel.stamped()? {
            if !wanted.contains_key(&ifindex) && kernel::name_of(ifindex).is_none() {
                self.kernel.stamp(ifindex, "", None)?;
                self.stamps.remove(&ifindex);
            }
        }
        for (name, link) in links {
            let Some(id) = wanted.get(&link.ifindex) else {
                continue;
            };
            if self.stamps.get(&link.ifindex) == Some(id) {
                continue;
            }
            match self.kernel.stamp(link.ifindex, name.as_str(), Some(*id)) {
                Ok(()) => {
                    self.stamps.insert(link.ifindex, *id);
                }
                // It went since we looked; the news of that is on its way.
                Err(kernel::Error::Device { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Every tunnel that a policy names or that lockne brought up.
    pub(crate) fn names(&self) -> BTreeSet<TunnelName> {
        let named = self.policies.values().flat_map(Terms::tunnels).cloned();
        self.tunnels.keys().cloned().chain(named).collect()
    }

    fn plan_tunnel(&self, name: &TunnelName, link: &plan::Link) -> plan::Tunnel {
        match self.tunnels.get(name) {
            Some(ours) => {
                let peers = ours.config.peers.iter();
                plan::Tunnel::wireguard(link, peers.flat_map(|peer| peer.allowed_ips.clone()))
            }
            None => plan::Tunnel::foreign(link),
        }
    }
}

/// The tunnel that `terms` name, if any.
pub(crate) fn tunnel_of(terms: &Terms) -> Option<&TunnelName> {
    match &terms.action {
        Action::Via(name) => Some(name),
        Action::Direct | Action::Block => None,
    }
}
