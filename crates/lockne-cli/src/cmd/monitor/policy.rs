//! What marks mean, as whoever keeps the policies says it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hyper::Method;
use lockne_core::{api::Status, filter::Tunnel, policy::Action};
use lockne_daemon::observe::{Device, Packet};

use crate::{
    cli::Place,
    client::Client,
    cmd::status,
    failure::{Failure, Result},
};

/// How old the answer may be.
const FRESH: Duration = Duration::from_secs(1);

/// The policies and tunnels that there are.
pub(crate) struct Policies {
    status: Option<Status>,
    devices: Vec<Device>,
    read: Instant,
    /// When it was asked what a mark means that nobody knew.
    asked: BTreeMap<u32, Instant>,
}

impl Policies {
    /// Asks the daemon, or looks at what a dead one left. Without lockne, no mark means anything.
    pub(crate) fn read(place: &Place) -> Self {
        let status = Client::new(place).ok().and_then(|client| {
            match client.ask::<Status>(Method::GET, "/v1/status", &()) {
                Ok(Some(status)) => Some(status),
                _ => status::left(&client).ok().flatten(),
            }
        });
        Self {
            status,
            devices: Device::all().unwrap_or_default(),
            read: Instant::now(),
            asked: BTreeMap::new(),
        }
    }

    /// Asks again if the last answer is old, and says whether it did.
    pub(crate) fn refresh(&mut self, place: &Place) -> bool {
        let is_old = self.read.elapsed() > FRESH;
        if is_old {
            self.read_again(place);
        }
        is_old
    }

    fn read_again(&mut self, place: &Place) {
        *self = Self {
            asked: std::mem::take(&mut self.asked),
            ..Self::read(place)
        };
    }

    /// The policy of a packet. What came in by a tunnel, and was not stamped yet, has that of the tunnel.
    pub(crate) fn of(&mut self, place: &Place, packet: &Packet, device: &str) -> Option<Action> {
        let mark = packet.mark;
        let is_new = |asked: &Instant| asked.elapsed() <= FRESH;
        if mark != 0 && self.of_mark(mark).is_none() && !self.asked.get(&mark).is_some_and(is_new) {
            self.read_again(place);
            self.asked.insert(mark, Instant::now());
        }
        let by_device = || {
            let is_it =
                |action: &Action| matches!(action, Action::Via(via) if via.as_str() == device);
            let policies = &self.status.as_ref()?.policies;
            let actions = policies.iter().map(|policy| &policy.terms.action);
            actions.into_iter().find(|action| is_it(action))
        };
        let found = match self.of_mark(mark) {
            None if packet.has(Packet::INCOMING) => by_device(),
            found => found,
        };
        found.cloned()
    }

    /// What the policy in a mark does, if there is one.
    fn of_mark(&self, mark: u32) -> Option<&Action> {
        let status = self.status.as_ref()?;
        let mark = mark & status.mark_mask;
        let policy = status.policies.iter().find(|policy| policy.mark == mark)?;
        (mark != 0).then_some(&policy.terms.action)
    }

    /// Where the packets of a tunnel are; any device can be one.
    pub(crate) fn tunnel(&self, name: &str) -> Tunnel {
        let device = self.devices.iter().find(|device| device.name == name);
        let is_via =
            |action: &Action| matches!(action, Action::Via(via) if via.to_string() == name);
        let policies = self.status.iter().flat_map(|status| &status.policies);
        Tunnel {
            ifindex: device.map(|device| device.index),
            policies: policies
                .filter(|policy| is_via(&policy.terms.action))
                .map(|policy| policy.id.get())
                .collect(),
            mask: self.status.as_ref().map_or(0, |status| status.mark_mask),
        }
    }

    /// Fails if there is neither a tunnel nor a device of this name.
    pub(crate) fn require(&self, name: &str) -> Result<()> {
        let tunnels = self.status.iter().flat_map(|status| &status.tunnels);
        let mut tunnels: Vec<String> = tunnels.map(|tunnel| tunnel.name.to_string()).collect();
        let tunnel = self.tunnel(name);
        if tunnel.ifindex.is_some()
            || !tunnel.policies.is_empty()
            || tunnels.iter().any(|tunnel| tunnel == name)
        {
            return Ok(());
        }
        tunnels.sort();
        let hint = if tunnels.is_empty() {
            "no tunnel is up; `lockne tunnel up FILE` brings one up".to_owned()
        } else {
            format!("there is {}", tunnels.join(", "))
        };
        Err(Failure::new(format!("there is no tunnel `{name}`")).hint(hint))
    }
}
