//! What numbers mean: marks, processes and users.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    time::{Duration, Instant},
};

use hyper::Method;
use lockne_core::{
    api::{PolicyStatus, Status},
    policy::{Action, PolicyId},
};
use lockne_daemon::observe::{Device, Flow};

use super::Way;
use crate::{
    cli::Place,
    client::Client,
    cmd::{status, trace},
};

const LOOPBACK: u32 = 1;
/// How old the daemon's answer may be.
const FRESH: Duration = Duration::from_secs(1);
/// How many processes are remembered before all are forgotten.
const MANY: usize = 1 << 16;

/// What numbers mean, as the daemon, the kernel and passwd(5) say it.
#[derive(Default)]
pub(crate) struct Book {
    pub(crate) status: Option<Status>,
    devices: BTreeMap<String, u32>,
    users: BTreeMap<u32, String>,
    programs: HashMap<(u32, [u8; 16]), Option<String>>,
    read: Option<Instant>,
}

impl Book {
    /// Asks all of them. Without lockne, no mark means anything.
    pub(crate) fn read(place: &Place) -> Self {
        let mut book = Self {
            users: trace::users(&fs::read_to_string("/etc/passwd").unwrap_or_default()),
            ..Self::default()
        };
        book.refresh(place);
        book
    }

    /// What is known without asking, for tests: an answer, and a device.
    #[cfg(test)]
    pub(crate) fn of(status: Status, device: &str, index: u32) -> Self {
        Self {
            status: Some(status),
            devices: BTreeMap::from([(device.to_owned(), index)]),
            ..Self::default()
        }
    }

    /// Asks again where the last answer is old.
    pub(crate) fn refresh(&mut self, place: &Place) {
        if self.read.is_some_and(|read| read.elapsed() < FRESH) {
            return;
        }
        self.status = Client::new(place).ok().and_then(|client| {
            match client.ask::<Status>(Method::GET, "/v1/status", &()) {
                Ok(Some(status)) => Some(status),
                _ => status::left(&client).ok().flatten(),
            }
        });
        let devices = Device::all().unwrap_or_default();
        self.devices = devices
            .into_iter()
            .map(|device| (device.name, device.index))
            .collect();
        self.read = Some(Instant::now());
    }

    /// The policy that a mark names.
    pub(crate) fn policy(&self, mark: u32) -> Option<&PolicyStatus> {
        let status = self.status.as_ref()?;
        let mark = mark & status.mark_mask;
        let mut policies = status.policies.iter();
        policies.find(|policy| mark != 0 && policy.mark == mark)
    }

    /// The first rule with this policy.
    pub(crate) fn rule(&self, policy: PolicyId) -> Option<String> {
        let config = self.status.as_ref()?.config.as_ref()?;
        let mut rules = config.rules.iter();
        let rule = rules.find(|rule| rule.policy == Some(policy))?;
        Some(rule.name.to_string())
    }

    /// The device of the policy's tunnel.
    pub(crate) fn tunnel(&self, mark: u32) -> Option<String> {
        let policy = self.policy(mark)?;
        match policy.terms.action {
            Action::Via(_) => policy.device.clone(),
            Action::Direct | Action::Block => None,
        }
    }

    /// Where the packets of a flow go.
    pub(crate) fn way(&self, flow: &Flow) -> Way {
        if flow.ifindex == LOOPBACK {
            return Way::Local;
        }
        let Some(policy) = self.policy(flow.mark) else {
            return Way::Direct;
        };
        let device = policy.device.as_ref();
        let device = device.and_then(|name| self.devices.get(name));
        let remote = std::net::Ipv6Addr::from(flow.remote);
        let remote = std::net::IpAddr::V6(remote).to_canonical();
        let is_lan = policy.terms.lan.iter().any(|lan| lan.contains(&remote));
        match policy.terms.action {
            Action::Direct => Way::Direct,
            // Before its first packet, it has none.
            Action::Via(_) if flow.ifindex == 0 || device == Some(&flow.ifindex) => Way::Tunnelled,
            Action::Via(_) if is_lan => Way::Direct,
            Action::Via(_) | Action::Block => Way::Refused,
        }
    }

    /// The name of a user.
    pub(crate) fn user(&self, uid: u32) -> Option<String> {
        self.users.get(&uid).cloned()
    }

    /// The executable of the flow's process, remembered for when it has ended.
    pub(crate) fn program(&mut self, flow: &Flow) -> Option<String> {
        if flow.pid == 0 {
            return None;
        }
        if self.programs.len() > MANY {
            self.programs.clear();
        }
        let entry = self.programs.entry((flow.pid, flow.name));
        let program = entry.or_insert_with(|| executable(flow));
        program.clone()
    }
}

/// What the process runs, if its name is still that of the one which made the socket.
fn executable(flow: &Flow) -> Option<String> {
    let path = fs::read_link(format!("/proc/{}/exe", flow.pid)).ok()?;
    Some(crate::stream::shown(path.as_os_str().as_encoded_bytes()))
}
