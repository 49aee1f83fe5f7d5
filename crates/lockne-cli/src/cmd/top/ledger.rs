//! What each process has sent and received, which way, and how fast.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    path::Path,
    rc::Rc,
};

use lockne_core::policy::PolicyId;
use lockne_daemon::observe::Flow;

use crate::{
    flow::{Book, Way},
    stream::{shown, until_zero},
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
    pub(super) history: History,
    round: ByWay,
    /// Rounds without a connection.
    idle: usize,
}

/// Bytes of the last rounds.
pub(super) type History = VecDeque<u64>;

fn push(history: &mut History, bytes: u64) {
    history.push_back(bytes);
    if history.len() > HISTORY {
        history.pop_front();
    }
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

/// A connection that is there.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) who: Rc<Who>,
    pub(super) flow: Flow,
    /// What the program calls the other end.
    pub(super) name: Option<Rc<str>>,
    pub(super) rate: u64,
    /// When it was over, in nanoseconds.
    pub(super) ended: Option<u64>,
}

/// What goes into a tunnel.
#[derive(Clone, Debug, Default)]
pub(super) struct Inside {
    pub(super) rate: u64,
    pub(super) history: History,
    round: u64,
}

/// What was known of a connection when it was last looked at.
struct Seen {
    bytes: u64,
    who: Rc<Who>,
}

/// All of it.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) processes: BTreeMap<Rc<Who>, Sums>,
    pub(super) live: Vec<Live>,
    /// By the index of their devices.
    pub(super) tunnels: BTreeMap<u32, Inside>,
    seen: HashMap<u64, Seen>,
    ended: Vec<Live>,
}

/// How many connections that ended in a round are shown in it.
const SHOWN: usize = 1000;

impl Ledger {
    /// Notes what a connection had sent and received when it ended.
    pub(super) fn end(&mut self, flow: &Flow, time: u64, book: &mut Book) {
        let (who, rate) = self.note(flow, book);
        self.seen.remove(&flow.key);
        if self.ended.len() < SHOWN {
            self.ended.push(Live {
                who,
                flow: *flow,
                name: book.name(flow),
                rate,
                ended: Some(time),
            });
        }
    }

    /// Adds what is new, and says whose it is and how much.
    fn note(&mut self, flow: &Flow, book: &mut Book) -> (Rc<Who>, u64) {
        let bytes = flow.tx_bytes + flow.rx_bytes;
        let before = self.seen.get(&flow.key);
        let new = bytes.saturating_sub(before.map_or(0, |seen| seen.bytes));
        let policy = book.policy(flow.mark).map(|policy| policy.id);
        let who = match before {
            Some(seen) if seen.who.policy == policy => Rc::clone(&seen.who),
            _ => Rc::new(who(flow, policy, book)),
        };
        let seen = Seen {
            bytes,
            who: Rc::clone(&who),
        };
        self.seen.insert(flow.key, seen);
        let sums = self.processes.entry(Rc::clone(&who)).or_default();
        let way = book.way(flow);
        sums.total[way as usize] += new;
        sums.round[way as usize] += new;
        sums.idle = 0;
        if way == Way::Tunnelled {
            self.tunnels.entry(flow.ifindex).or_default().round += new;
        }
        (who, new)
    }

    /// Ends a round: what was new in it is the rate.
    pub(super) fn tick(&mut self, live: &[Flow], book: &mut Book) {
        self.live = std::mem::take(&mut self.ended);
        for flow in live {
            let (who, rate) = self.note(flow, book);
            self.live.push(Live {
                who,
                flow: *flow,
                name: book.name(flow),
                rate,
                ended: None,
            });
        }
        let keys: HashSet<u64> = live.iter().map(|flow| flow.key).collect();
        self.seen.retain(|key, _| keys.contains(key));
        for sums in self.processes.values_mut() {
            sums.rate = std::mem::take(&mut sums.round);
            push(&mut sums.history, sums.rate.iter().sum());
            sums.idle += 1;
        }
        for inside in self.tunnels.values_mut() {
            inside.rate = std::mem::take(&mut inside.round);
            push(&mut inside.history, inside.rate);
        }
        self.put_together();
    }

    /// Makes one line of processes that ended long ago: a shell script has thousands.
    fn put_together(&mut self) {
        let ended: Vec<_> = self
            .processes
            .iter()
            .filter(|(who, sums)| who.pid != 0 && sums.idle > HISTORY && !who.runs())
            .map(|(who, _)| Rc::clone(who))
            .collect();
        for who in ended {
            let Some(sums) = self.processes.remove(&who) else {
                continue;
            };
            let together = Who {
                pid: 0,
                ..Who::clone(&who)
            };
            let entry = self.processes.entry(Rc::new(together)).or_default();
            entry.add(&sums);
        }
    }
}

impl Who {
    /// Whether the process is there.
    pub(super) fn runs(&self) -> bool {
        self.pid != 0 && Path::new(&format!("/proc/{}", self.pid)).exists()
    }
}

fn who(flow: &Flow, policy: Option<PolicyId>, book: &mut Book) -> Who {
    let program = book.program(flow);
    let short = program.as_deref().and_then(|it| it.rsplit('/').next());
    let name = || shown(until_zero(&flow.name));
    Who {
        policy,
        program: short.map_or_else(name, ToOwned::to_owned),
        pid: flow.pid,
    }
}

/// The place of a way in [`ByWay`].
pub(super) const TUNNELLED: usize = Way::Tunnelled as usize;
pub(super) const DIRECT: usize = Way::Direct as usize;
pub(super) const REFUSED: usize = Way::Refused as usize;
pub(super) const LOCAL: usize = Way::Local as usize;
