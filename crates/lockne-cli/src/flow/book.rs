//! What numbers mean: marks, processes and users.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::unix::fs::MetadataExt as _,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use hyper::Method;
use lockne_core::{
    api::{PolicyStatus, Status},
    policy::{Action, PolicyId},
};
use lockne_daemon::observe::{Answer, Device, Flow};

use super::{Way, names::Names};
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
    /// By mark, those that have gone too: what they sent is still told of.
    policies: BTreeMap<u32, PolicyStatus>,
    /// The first rule with a policy, likewise.
    rules: BTreeMap<PolicyId, String>,
    /// Which record of the daemon's there was before the last answer: it writes another one with each policy.
    record: Option<(u64, SystemTime)>,
    /// Marks that the last answer did not have.
    strange: BTreeSet<u32>,
    devices: BTreeMap<String, u32>,
    users: BTreeMap<u32, String>,
    programs: HashMap<(u32, [u8; 16]), Option<String>>,
    names: Names,
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
        let mut book = Self {
            devices: BTreeMap::from([(device.to_owned(), index)]),
            ..Self::default()
        };
        book.note(status);
        book
    }

    /// Asks again where the last answer is old.
    pub(crate) fn refresh(&mut self, place: &Place) {
        if self.read.is_none_or(|read| read.elapsed() >= FRESH) {
            self.strange.clear();
            self.ask(place);
        }
    }

    /// Asks at once where a mark is younger than the last answer.
    pub(crate) fn learn(&mut self, mark: u32, place: &Place) {
        let mark = mark & self.mask();
        if mark == 0 || self.policies.contains_key(&mark) {
            return;
        }
        if self.strange.insert(mark) || self.record != record(place) {
            self.ask(place);
        }
    }

    fn ask(&mut self, place: &Place) {
        self.record = record(place);
        let status = Client::new(place).ok().and_then(|client| {
            match client.ask::<Status>(Method::GET, "/v1/status", &()) {
                Ok(Some(status)) => Some(status),
                _ => status::left(&client).ok().flatten(),
            }
        });
        let devices = Device::all().unwrap_or_default();
        self.devices.extend(
            devices
                .into_iter()
                .map(|device| (device.name, device.index)),
        );
        self.status = None;
        if let Some(status) = status {
            self.note(status);
        }
        self.read = Some(Instant::now());
    }

    fn note(&mut self, status: Status) {
        for policy in &status.policies {
            self.policies.insert(policy.mark, policy.clone());
            self.rules.remove(&policy.id);
        }
        let rules = status.config.iter().flat_map(|config| &config.rules);
        for (rule, policy) in rules.filter_map(|rule| Some((rule, rule.policy?))) {
            let name = || rule.name.to_string();
            self.rules.entry(policy).or_insert_with(name);
        }
        self.status = Some(status);
    }

    /// Without lockne, no bit means anything yet.
    fn mask(&self) -> u32 {
        self.status
            .as_ref()
            .map_or(u32::MAX, |status| status.mark_mask)
    }

    /// The policy that a mark names.
    pub(crate) fn policy(&self, mark: u32) -> Option<&PolicyStatus> {
        self.policies.get(&(mark & self.mask()))
    }

    /// The first rule with this policy.
    pub(crate) fn rule(&self, policy: PolicyId) -> Option<String> {
        self.rules.get(&policy).cloned()
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
            _ if policy.direct_now => Way::Direct,
            // Before its first packet, it has none.
            Action::Via(_) if flow.ifindex == 0 || device == Some(&flow.ifindex) => Way::Tunnelled,
            Action::Via(_) if is_lan => Way::Direct,
            Action::Via(_) | Action::Block => Way::Refused,
        }
    }

    /// Remembers what a name server answered.
    pub(crate) fn hear(&mut self, answer: &Answer, packet: &[u8]) {
        let mark = answer.mark & self.mask();
        self.names.hear(answer, packet, mark);
    }

    /// What the program calls the other end of a flow, from the answers that were seen.
    pub(crate) fn name(&self, flow: &Flow) -> Option<Rc<str>> {
        self.names.of(flow, flow.mark & self.mask())
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

fn record(place: &Place) -> Option<(u64, SystemTime)> {
    let about = fs::metadata(place.state().record()).ok()?;
    Some((about.ino(), about.modified().ok()?))
}

/// What the process runs, if its name is still that of the one which made the socket.
fn executable(flow: &Flow) -> Option<String> {
    let path = fs::read_link(format!("/proc/{}/exe", flow.pid)).ok()?;
    Some(crate::stream::shown(path.as_os_str().as_encoded_bytes()))
}
