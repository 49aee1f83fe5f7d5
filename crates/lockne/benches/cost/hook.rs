//! What each program costs each time it runs, by the kernel's own statistics.
//!
//! The kernel's clock costs more than most programs do. So beside each of ours sits one that does
//! nothing, before it in one round and behind it in the next, and what that one takes is subtracted.

use std::{
    env,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use lockne_lab::{Namespace, internet::PLAIN_V4};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::{
    bpf::{self, Empty, Hook, Runs},
    figure::Figure,
    place::{Place, TUNNEL},
};

/// The argument that makes a process of this program do one batch of work.
pub(crate) const CHILD: &str = "--child";

const ROUNDS: usize = 20;
const BATCHES: usize = 9;
/// So short that being interrupted in one of ours is the exception, which a median leaves out.
const PACKETS: usize = 4000;
const SOCKETS: usize = 4000;
const PROCESSES: usize = 100;

const FAR_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);
const PORT: u16 = 4000;

const HOOKS: [(&str, Hook); 5] = [
    ("guard_egress", Hook::Packet(1)),
    ("count_ingress", Hook::Packet(0)),
    ("mark_socket", Hook::Socket),
    ("follow_fork", Hook::Tracepoint(c"sched_process_fork")),
    ("forget_exit", Hook::Tracepoint(c"sched_process_exit")),
];

/// Work that makes programs run.
#[derive(Clone, Copy)]
enum Work {
    /// A policed process sends: its packets are policed, but not where they arrive.
    Send,
    /// The tunnel's far end sends to a socket that nobody reads: the reverse.
    Receive,
    /// A process under a policy does this.
    Policed(&'static str),
    /// A process without one does this.
    Free(&'static str),
}

/// What is measured: index in `HOOKS`, fewest runs, nanoseconds it may cost, and the name.
type Case = (usize, usize, Option<f64>, &'static str);

const CASES: [(Work, &[Case]); 7] = [
    (
        Work::Send,
        &[
            (0, PACKETS, Some(8.0), "guard_egress, policed packet"),
            (1, PACKETS, Some(2.0), "count_ingress, other packet"),
        ],
    ),
    (
        Work::Receive,
        &[
            (0, PACKETS, Some(2.0), "guard_egress, other packet"),
            (1, PACKETS, Some(8.0), "count_ingress, policed packet"),
        ],
    ),
    (
        Work::Policed("sockets"),
        &[(2, SOCKETS, Some(200.0), "mark_socket, policed process")],
    ),
    (
        Work::Free("sockets"),
        &[(2, SOCKETS, Some(200.0), "mark_socket, other process")],
    ),
    (
        Work::Policed("processes"),
        &[
            (3, PROCESSES, None, "follow_fork, policed process"),
            (4, PROCESSES, None, "forget_exit, policed process"),
        ],
    ),
    // Last: once such a program has made a socket, the guard stays strict.
    (
        Work::Policed("send-as-root"),
        &[(0, PACKETS, None, "strict guard_egress, policed packet")],
    ),
    (
        Work::Receive,
        &[(0, PACKETS, None, "strict guard_egress, other packet")],
    ),
];

/// Our programs, in the order of `HOOKS`.
fn programs(place: &Place) -> Result<Vec<OwnedFd>> {
    let pins = HOOKS.iter().map(|(name, _)| place.pins().join(name));
    pins.map(|pin| bpf::program_of_link(&pin)).collect()
}

/// Measures all of them.
pub(crate) fn measure(place: &Place) -> Result<Vec<Figure>> {
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime)?;
    let mut figures: Vec<_> = CASES
        .iter()
        .flat_map(|(_, cases)| *cases)
        .map(|&(_, _, goal, name)| Figure {
            name,
            unit: "ns",
            goal,
            values: Vec::new(),
        })
        .collect();
    let attach_empty = || {
        HOOKS
            .map(|(_, hook)| Empty::attach(hook))
            .into_iter()
            .collect()
    };
    for round in 0..ROUNDS {
        let before: Option<Vec<_>> = (round % 2 == 0).then(attach_empty).transpose()?;
        let _daemon = place.daemon()?;
        let empty: Vec<_> = before.map_or_else(attach_empty, Ok)?;
        let ours = programs(place)?;
        let mut figure = figures.iter_mut();
        for (work, cases) in CASES {
            let figures: Vec<_> = figure.by_ref().take(cases.len()).collect();
            let mut batches = vec![Vec::new(); cases.len()];
            for _ in 0..BATCHES {
                let read = || -> Result<Vec<_>> {
                    let pair = |at: &Case| -> Result<_> {
                        Ok((Runs::of(&ours[at.0])?, Runs::of(empty[at.0].program())?))
                    };
                    cases.iter().map(pair).collect()
                };
                let sink = Sink::open(place)?;
                let earlier = read()?;
                work.run(place)?;
                let later = read()?;
                drop(sink);
                for (at, case) in cases.iter().enumerate() {
                    let least = u64::try_from(case.1)?;
                    let our = later[at].0.each_since(earlier[at].0, least);
                    let none = later[at].1.each_since(earlier[at].1, least);
                    let (our, none) = our
                        .zip(none)
                        .with_context(|| format!("{} ran too rarely", case.3))?;
                    batches[at].push(our - none);
                }
            }
            for (figure, mut batch) in figures.into_iter().zip(batches) {
                batch.sort_by(f64::total_cmp);
                let median = batch[BATCHES / 2];
                // Who runs first also pays for cold caches: one figure is of a round of each kind.
                match figure.values.last_mut() {
                    Some(first) if round % 2 == 1 => *first = f64::midpoint(*first, median),
                    _ => figure.values.push(median),
                }
            }
        }
    }
    Ok(figures)
}

/// Sockets at both ends of the tunnel that take packets and are never read.
struct Sink {
    _near: UdpSocket,
    _far: UdpSocket,
}

impl Sink {
    fn open(place: &Place) -> Result<Self> {
        let bind = |namespace: &Namespace, address: Ipv4Addr| -> Result<_> {
            Ok(namespace.run(|| UdpSocket::bind((address, PORT)))??)
        };
        Ok(Self {
            _near: bind(&place.lab.home, PLAIN_V4)?,
            _far: bind(place.lab.provider_a.namespace(), FAR_V4)?,
        })
    }
}

impl Work {
    fn run(self, place: &Place) -> Result<()> {
        let this = env::current_exe()?;
        let this = this.to_str().context("the path is not UTF-8")?;
        let policed = |work| place.lockne(&["run", "--via", TUNNEL, "--", this, CHILD, work]);
        let mut command = match self {
            Self::Send => policed("send"),
            Self::Policed(work) => policed(work),
            Self::Receive => {
                let far = place.lab.provider_a.namespace();
                return far.run(|| send(PLAIN_V4))?;
            }
            Self::Free(work) => {
                let mut command = place.lab.home.command(this);
                command.args([CHILD, work]);
                command
            }
        };
        let output = command.stdout(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {said}");
        Ok(())
    }
}

/// Does one batch of work in this process.
pub(crate) fn child(work: &str) -> Result<()> {
    if work != "send-as-root" {
        // As most programs are; those that can mark packets make the guard strict.
        let mut sets = capabilities(None)?;
        sets.effective
            .remove(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW);
        set_capabilities(None, sets)?;
    }
    match work {
        "send" | "send-as-root" => send(FAR_V4),
        "sockets" => (0..SOCKETS).try_for_each(|_| {
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
                .map(drop)
                .context("no socket")
        }),
        "processes" => (0..PROCESSES).try_for_each(|_| {
            Command::new("true")
                .status()
                .map(drop)
                .context("no process")
        }),
        _ => bail!("unknown work `{work}`"),
    }
}

fn send(to: Ipv4Addr) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let to = SocketAddr::new(IpAddr::V4(to), PORT);
    for _ in 0..PACKETS {
        socket.send_to(b"a small packet", to)?;
    }
    Ok(())
}
