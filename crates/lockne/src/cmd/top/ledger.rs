//! What each process has sent and received, which way, and how fast.

use std::collections::{BTreeMap, HashMap, VecDeque};

use lockne_core::policy::{PolicyId, Terms};
use lockne_daemon::observe::Flow;

use crate::{
    flow::{Book, Connection, Way},
    stream::Clock,
};

/// How many rounds a sparkline shows.
pub(super) const HISTORY: usize = 12;

/// Who is meant: the policy, the program, the process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Who {
    pub(super) policy: Option<PolicyId>,
    pub(super) program: String,
    pub(super) pid: u32,
}

/// Bytes by [`Way`], in the order of its variants.
pub(super) type ByWay = [u64; 4];

/// The figures of a process.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    pub(super) total: ByWay,
    pub(super) rate: ByWay,
    pub(super) history: VecDeque<u64>,
    round: ByWay,
}

impl Sums {
    pub(super) fn add(&mut self, other: &Self) {
        for way in 0..4 {
            self.total[way] += other.total[way];
            self.rate[way] += other.rate[way];
        }
        if self.history.len() < other.history.len() {
            self.history.resize(other.history.len(), 0);
        }
        for (mine, other) in self.history.iter_mut().zip(&other.history) {
            *mine += other;
        }
    }
}

/// A connection that is there, and how old it is.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) who: Who,
    pub(super) connection: Connection,
    pub(super) age: u64,
    pub(super) rate: u64,
}

/// All of it.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) processes: BTreeMap<Who, Sums>,
    pub(super) live: Vec<Live>,
    pub(super) terms: HashMap<PolicyId, Terms>,
    seen: HashMap<u64, u64>,
}

impl Ledger {
    /// Notes what a connection had sent and received when it ended.
    pub(super) fn end(&mut self, flow: &Flow, book: &mut Book) {
        self.note(flow, book);
        self.seen.remove(&flow.key);
    }

    /// Adds what is new, and says whose it is and how much.
    fn note(&mut self, flow: &Flow, book: &mut Book) -> (Who, u64) {
        let bytes = flow.tx_bytes + flow.rx_bytes;
        let before = self.seen.insert(flow.key, bytes).unwrap_or(0);
        let new = bytes.saturating_sub(before);
        let program = book.program(flow);
        let name = crate::stream::shown(crate::stream::until_zero(&flow.name));
        let short = program.as_deref().and_then(|it| it.rsplit('/').next());
        let who = Who {
            policy: book.policy(flow.mark).map(|policy| policy.id),
            program: short.map_or(name, ToOwned::to_owned),
            pid: flow.pid,
        };
        let sums = self.processes.entry(who.clone()).or_default();
        let way = book.way(flow) as usize;
        sums.total[way] += new;
        sums.round[way] += new;
        (who, new)
    }

    /// Ends a round: what was new in it is the rate.
    pub(super) fn tick(&mut self, live: &[Flow], book: &mut Book, now: u64) {
        let clock = Clock::now();
        self.live.clear();
        for flow in live {
            let (who, rate) = self.note(flow, book);
            self.live.push(Live {
                who,
                connection: Connection::new(flow, None, book, clock),
                age: now.saturating_sub(flow.started) / 1_000_000_000,
                rate,
            });
        }
        let keys: std::collections::HashSet<u64> = live.iter().map(|flow| flow.key).collect();
        self.seen.retain(|key, _| keys.contains(key));
        for sums in self.processes.values_mut() {
            sums.rate = std::mem::take(&mut sums.round);
            sums.history.push_back(sums.rate.iter().sum());
            if sums.history.len() > HISTORY {
                sums.history.pop_front();
            }
        }
        for policy in book.status.iter().flat_map(|status| &status.policies) {
            self.terms.insert(policy.id, policy.terms.clone());
        }
    }
}

/// The place of a way in [`ByWay`].
pub(super) const TUNNELLED: usize = Way::Tunnelled as usize;
pub(super) const DIRECT: usize = Way::Direct as usize;
pub(super) const REFUSED: usize = Way::Refused as usize;
pub(super) const LOCAL: usize = Way::Local as usize;
