//! What each program costs each time it runs, by the kernel's own statistics.
//!
//! The kernel's clock costs more than most programs do. So beside each of ours sits one that does
//! nothing, before it in one round and behind it in the next, and what that one takes is subtracted.

use std::{
    env,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddr, UnixDatagram},
    },
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use lockne_lab::{Namespace, internet::PLAIN_V4};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::{
    bpf::{self, Empty, Hook, Runs},
    figure::Figure,
    place::{Daemon, Place, TUNNEL},
    scale,
};

/// The argument that makes a process of this program do one batch of work.
pub(crate) const CHILD: &str = "--child";

/// How often all is measured, unless the command says otherwise.
pub(crate) const ROUNDS: usize = 20;
const BATCHES: usize = 9;
/// So short that being interrupted in one of ours is the exception, which a median leaves out.
pub(crate) const PACKETS: usize = 4000;
const SOCKETS: usize = 4000;
const CALLS: usize = 4000;
const PROCESSES: usize = 100;

const FAR_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);
const PORT: u16 = 4000;

const HOOKS: [(&str, Hook); 12] = [
    ("guard_egress", Hook::Packet(1)),
    ("count_ingress", Hook::Packet(0)),
    ("mark_socket", Hook::Socket),
    ("follow_fork", Hook::Tracepoint(c"sched_process_fork")),
    ("forget_exit", Hook::Tracepoint(c"sched_process_exit")),
    ("decide_exec", Hook::Tracepoint(c"sched_process_exec")),
    ("connect4", Hook::Call(10)),
    ("sendmsg4", Hook::Call(14)),
    ("recvmsg4", Hook::Call(19)),
    ("getpeername4", Hook::Call(29)),
    ("keep_mark", Hook::Option),
    ("connect_unix", Hook::Call(49)),
];

/// Work that makes programs run.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// A policed process sends: its packets are policed, but not where they arrive.
    Send,
    /// The tunnel's far end sends to a socket that nobody reads: the reverse.
    Receive,
    /// A process under a policy does this.
    Policed(&'static str),
    /// A process without one does this.
    Free(&'static str),
    /// A process that none of so many rules names starts others.
    Ruled(usize),
}

/// What is measured: index in `HOOKS`, fewest runs, nanoseconds it may cost, and the name.
pub(crate) type Case = (usize, usize, Option<f64>, &'static str);

const CASES: [(Work, &[Case]); 17] = [
    (
        Work::Send,
        &[
            (0, PACKETS, Some(8.0), "guard_egress, policed packet"),
            (1, PACKETS, Some(2.0), "count_ingress, other packet"),
            (7, PACKETS, Some(300.0), "sendmsg4, policed process"),
        ],
    ),
    (
        Work::Receive,
        &[
            (0, PACKETS, Some(2.0), "guard_egress, other packet"),
            (1, PACKETS, Some(8.0), "count_ingress, policed packet"),
            (7, PACKETS, Some(300.0), "sendmsg4, other process"),
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
        Work::Policed("connects"),
        &[(6, CALLS, Some(300.0), "connect4, policed process")],
    ),
    (
        Work::Free("connects"),
        &[(6, CALLS, Some(300.0), "connect4, other process")],
    ),
    (
        Work::Free("receives"),
        &[(8, CALLS, Some(300.0), "recvmsg4, other process")],
    ),
    (
        Work::Free("names"),
        &[(9, CALLS, Some(300.0), "getpeername4, other process")],
    ),
    (
        Work::Free("options"),
        &[(10, CALLS, Some(300.0), "keep_mark, other process")],
    ),
    (
        Work::Free("local"),
        &[(11, CALLS, Some(300.0), "connect_unix, other process")],
    ),
    (
        Work::Policed("processes"),
        &[
            (3, PROCESSES, None, "follow_fork, policed process"),
            (4, PROCESSES, None, "forget_exit, policed process"),
        ],
    ),
    (
        Work::Free("processes"),
        &[
            (3, PROCESSES, None, "follow_fork, other process"),
            (4, PROCESSES, None, "forget_exit, other process"),
            (5, PROCESSES, Some(300.0), "decide_exec, no rules"),
        ],
    ),
    (
        Work::Ruled(10),
        &[(5, PROCESSES, Some(300.0), "decide_exec, 10 rules")],
    ),
    (
        Work::Ruled(1000),
        &[(5, PROCESSES, Some(300.0), "decide_exec, 1000 rules")],
    ),
    // With the rules above in force, which no packet may notice.
    (
        Work::Send,
        &[(0, PACKETS, Some(8.0), "guard_egress, policed, 1000 rules")],
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
pub(crate) fn measure(place: &Place, rounds: usize) -> Result<Vec<Figure>> {
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
    for round in 0..rounds {
        place.rules(0)?;
        let bench = Bench::start(place, round)?;
        let mut figure = figures.iter_mut();
        for (work, cases) in CASES {
            let figures: Vec<_> = figure.by_ref().take(cases.len()).collect();
            if let Work::Ruled(count) = work {
                place.rules(count)?;
            }
            for (figure, median) in figures.into_iter().zip(bench.medians(work, cases)?) {
                figure.add(round, median);
            }
        }
    }
    Ok(figures)
}

/// Our programs at work, and those that do nothing.
pub(crate) struct Bench<'a> {
    place: &'a Place,
    _daemon: Daemon<'a>,
    empty: Vec<Empty>,
    ours: Vec<OwnedFd>,
}

impl<'a> Bench<'a> {
    /// Who runs first changes from one round to the next.
    pub(crate) fn start(place: &'a Place, round: usize) -> Result<Self> {
        let attach_empty = || -> Result<Vec<_>> {
            let hooks = HOOKS.map(|(_, hook)| Empty::attach(hook));
            hooks.into_iter().collect()
        };
        let before = round.is_multiple_of(2).then(attach_empty).transpose()?;
        let daemon = place.daemon()?;
        Ok(Self {
            empty: before.map_or_else(attach_empty, Ok)?,
            ours: programs(place)?,
            place,
            _daemon: daemon,
        })
    }

    /// What each of `cases` costs, net.
    pub(crate) fn medians(&self, work: Work, cases: &[Case]) -> Result<Vec<f64>> {
        let mut batches = vec![Vec::new(); cases.len()];
        for _ in 0..BATCHES {
            let sink = Sink::open(self.place)?;
            let earlier = self.read(cases)?;
            work.run(self.place)?;
            let later = self.read(cases)?;
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
        Ok(batches
            .into_iter()
            .map(|mut batch| {
                batch.sort_by(f64::total_cmp);
                batch[BATCHES / 2]
            })
            .collect())
    }

    fn read(&self, cases: &[Case]) -> Result<Vec<(Runs, Runs)>> {
        let pair = |at: &Case| -> Result<_> {
            Ok((
                Runs::of(&self.ours[at.0])?,
                Runs::of(self.empty[at.0].program())?,
            ))
        };
        cases.iter().map(pair).collect()
    }
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
            Self::Free(_) | Self::Ruled(_) => {
                let work = if let Self::Free(work) = self {
                    work
                } else {
                    "processes"
                };
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
        "connects" => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            (0..CALLS).try_for_each(|_| socket.connect((FAR_V4, PORT)).context("no connection"))
        }
        "receives" => {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            let own = socket.local_addr()?;
            (0..CALLS).try_for_each(|_| {
                socket.send_to(b"a small packet", own)?;
                socket.recv_from(&mut [0; 16]).map(drop).context("nothing")
            })
        }
        "names" => {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect(socket.local_addr()?)?;
            (0..CALLS).try_for_each(|_| socket.peer_addr().map(drop).context("no name"))
        }
        "options" => {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            (0..CALLS).try_for_each(|_| socket.set_ttl(64).context("not set"))
        }
        "local" => {
            let name = format!("lockne-bench-{}", std::process::id());
            let name = UnixAddr::from_abstract_name(name)?;
            let _listener = UnixDatagram::bind_addr(&name)?;
            let socket = UnixDatagram::unbound()?;
            (0..CALLS).try_for_each(|_| socket.connect_addr(&name).context("no connection"))
        }
        "hold-sockets" | "hold-processes" => scale::hold(work),
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
