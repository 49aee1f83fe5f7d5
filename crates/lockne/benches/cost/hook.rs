//! What each program costs each time it runs, by the kernel's own statistics.
//!
//! The kernel's clock costs more than most programs do. So beside each of ours sits one that does
//! nothing, before it in one round and behind it in the next, and what that one takes is subtracted.

use std::{
    env,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::process::CommandExt as _,
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddr, UnixDatagram},
    },
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use lockne_lab::{Namespace, internet::PLAIN_V4};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::{
    bpf::{self, Empty, Hook, Pair},
    figure::{Figure, median},
    place::{Daemon, Place, Rules, TRUE, TUNNEL},
    scale, watch,
};

/// The argument that makes a process of this program do one batch of work.
pub(crate) const CHILD: &str = "--child";

/// How often all is measured, unless the command says otherwise.
pub(crate) const ROUNDS: usize = 10;
/// Each figure of a round is the middle one of so many.
pub(crate) const BATCHES: usize = 9;
/// So short that being interrupted in one of ours is the exception, which a median leaves out.
pub(crate) const PACKETS: usize = 4000;
const SOCKETS: usize = 4000;
const CALLS: usize = 4000;
const PROCESSES: usize = 100;

const FAR_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);
const PORT: u16 = 4000;

const HOOKS: [(&str, Hook); 11] = [
    ("guard_egress", Hook::Packet),
    ("mark_socket", Hook::Socket),
    ("follow_fork", Hook::Tracepoint(c"sched_wakeup_new")),
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
    /// The tunnel's far end sends to a socket that nobody reads.
    Receive,
    /// A process under a policy does this.
    Policed(&'static str),
    /// A process without one does this, which no rule names.
    Free(&'static str),
}

impl Work {
    /// The reverse of [`Receive`](Self::Receive): packets are policed, but not where they arrive.
    pub(crate) const SEND: Self = Self::Policed("send");
}

/// What is measured: program of `HOOKS`, fewest runs, nanoseconds it may cost, and the name.
pub(crate) type Case = (&'static str, usize, Option<f64>, &'static str);

/// The rules, the work, and what is measured of it.
const CASES: [(Rules, Work, &[Case]); 20] = [
    (
        Rules::Files(0),
        Work::SEND,
        &[
            (
                "guard_egress",
                PACKETS,
                Some(8.0),
                "guard_egress, policed packet",
            ),
            (
                "sendmsg4",
                PACKETS,
                Some(300.0),
                "sendmsg4, policed process",
            ),
        ],
    ),
    (
        Rules::Files(0),
        Work::Receive,
        &[
            (
                "guard_egress",
                PACKETS,
                Some(2.0),
                "guard_egress, other packet",
            ),
            ("sendmsg4", PACKETS, Some(300.0), "sendmsg4, other process"),
        ],
    ),
    (
        Rules::Files(0),
        Work::Policed("sockets"),
        &[(
            "mark_socket",
            SOCKETS,
            Some(200.0),
            "mark_socket, policed process",
        )],
    ),
    (
        Rules::Files(0),
        Work::Free("sockets"),
        &[(
            "mark_socket",
            SOCKETS,
            Some(200.0),
            "mark_socket, other process",
        )],
    ),
    (
        Rules::Files(0),
        Work::Policed("connects"),
        &[("connect4", CALLS, Some(300.0), "connect4, policed process")],
    ),
    (
        Rules::Files(0),
        Work::Free("connects"),
        &[("connect4", CALLS, Some(300.0), "connect4, other process")],
    ),
    (
        Rules::Files(0),
        Work::Free("receives"),
        &[("recvmsg4", CALLS, Some(300.0), "recvmsg4, other process")],
    ),
    (
        Rules::Files(0),
        Work::Free("names"),
        &[(
            "getpeername4",
            CALLS,
            Some(300.0),
            "getpeername4, other process",
        )],
    ),
    (
        Rules::Files(0),
        Work::Free("options"),
        &[("keep_mark", CALLS, Some(300.0), "keep_mark, other process")],
    ),
    (
        Rules::Files(0),
        Work::Free("local"),
        &[(
            "connect_unix",
            CALLS,
            Some(300.0),
            "connect_unix, other process",
        )],
    ),
    (
        Rules::Files(0),
        Work::Policed("processes"),
        &[
            (
                "follow_fork",
                PROCESSES,
                None,
                "follow_fork, policed process",
            ),
            (
                "forget_exit",
                PROCESSES,
                None,
                "forget_exit, policed process",
            ),
        ],
    ),
    (
        Rules::Files(0),
        Work::Free("processes"),
        &[
            ("follow_fork", PROCESSES, None, "follow_fork, other process"),
            ("forget_exit", PROCESSES, None, "forget_exit, other process"),
            (
                "decide_exec",
                PROCESSES,
                Some(300.0),
                "decide_exec, no rules",
            ),
        ],
    ),
    (
        Rules::Files(10),
        Work::Free("processes"),
        &[(
            "decide_exec",
            PROCESSES,
            Some(300.0),
            "decide_exec, 10 rules",
        )],
    ),
    (
        Rules::Files(1000),
        Work::Free("processes"),
        &[(
            "decide_exec",
            PROCESSES,
            Some(300.0),
            "decide_exec, 1000 rules",
        )],
    ),
    (
        Rules::Mixed(1000),
        Work::Free("processes"),
        &[(
            "decide_exec",
            PROCESSES,
            Some(300.0),
            "decide_exec, 1000 mixed rules",
        )],
    ),
    (
        Rules::Named(1000),
        Work::Free("processes"),
        &[(
            "decide_exec",
            PROCESSES,
            Some(300.0),
            "decide_exec, named by the last of 1000",
        )],
    ),
    (
        Rules::Files(1000),
        Work::Policed("sockets"),
        &[(
            "mark_socket",
            SOCKETS,
            Some(200.0),
            "mark_socket, policed, 1000 rules",
        )],
    ),
    // Rules, which no packet may notice.
    (
        Rules::Files(1000),
        Work::SEND,
        &[(
            "guard_egress",
            PACKETS,
            Some(8.0),
            "guard_egress, policed, 1000 rules",
        )],
    ),
    // Last: once such a program has made a socket, the guard stays strict.
    (
        Rules::Files(1000),
        Work::Policed("send-as-root"),
        &[(
            "guard_egress",
            PACKETS,
            None,
            "strict guard_egress, policed packet",
        )],
    ),
    (
        Rules::Files(1000),
        Work::Receive,
        &[(
            "guard_egress",
            PACKETS,
            None,
            "strict guard_egress, other packet",
        )],
    ),
];

/// Our programs, in the order of `HOOKS`.
fn programs(place: &Place) -> Result<Vec<OwnedFd>> {
    let pins = HOOKS.iter().map(|(name, _)| place.pins().join(name));
    pins.map(|pin| bpf::program_of_link(&pin)).collect()
}

/// Measures those that have `only` in their names.
pub(crate) fn measure(place: &Place, rounds: usize, only: &str) -> Result<Vec<Figure>> {
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime)?;
    let wanted = |cases: &[Case]| -> Vec<Case> {
        let wanted = cases.iter().filter(|(.., name)| name.contains(only));
        wanted.copied().collect()
    };
    let mut cases = CASES
        .map(|(rules, work, cases)| (rules, work, wanted(cases)))
        .to_vec();
    cases.retain(|(_, _, cases)| !cases.is_empty());
    let mut figures: Vec<_> = cases
        .iter()
        .flat_map(|(_, _, cases)| cases)
        .map(|&(_, _, goal, name)| Figure::new(name, "ns", goal))
        .collect();
    for round in 0..rounds {
        let bench = Bench::start(place, round)?;
        let mut figure = figures.iter_mut();
        let mut in_force = Rules::Files(0);
        for (rules, work, cases) in &cases {
            if *rules != in_force {
                bench.daemon.rules(*rules)?;
                in_force = *rules;
            }
            let medians = bench.medians(*work, cases)?;
            for (median, figure) in medians.into_iter().zip(figure.by_ref()) {
                figure.add(round, median);
            }
        }
    }
    Ok(figures)
}

/// Our programs at work, and those that do nothing.
pub(crate) struct Bench<'a> {
    place: &'a Place,
    daemon: Daemon<'a>,
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
            daemon,
        })
    }

    /// What each of `cases` costs, net.
    pub(crate) fn medians(&self, work: Work, cases: &[Case]) -> Result<Vec<f64>> {
        let pairs: Vec<_> = cases
            .iter()
            .map(|&(program, least, _, name)| {
                let mut hooks = HOOKS.iter();
                let at = hooks.position(|(of, _)| *of == program);
                let at = at.with_context(|| format!("no hook of `{program}`"))?;
                Ok(Pair {
                    ours: &self.ours[at],
                    empty: &self.empty[at],
                    least,
                    name,
                })
            })
            .collect::<Result<_>>()?;
        let mut batches = vec![Vec::new(); cases.len()];
        for _ in 0..BATCHES {
            let sink = Sink::open(self.place)?;
            let net = bpf::net(&pairs, || work.run(self.place))?;
            drop(sink);
            for (batch, net) in batches.iter_mut().zip(net) {
                batch.push(net);
            }
        }
        Ok(batches.into_iter().map(median).collect())
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
        let mut command = match self {
            Self::Receive => {
                let far = place.lab.provider_a.namespace();
                return far.run(|| send(PLAIN_V4))?;
            }
            Self::Policed(work) => place.lockne(&["run", "--via", TUNNEL, "--", this, CHILD, work]),
            Self::Free(work) => {
                let mut command = place.lab.home.command(this);
                command.args([CHILD, work]);
                command
            }
        };
        if !matches!(self, Self::Policed("send-as-root")) {
            // As most programs are; those that can mark packets make the guard strict.
            drop_rights(&mut command);
        }
        let output = command.stdout(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {said}");
        Ok(())
    }
}

/// Lets a command run without the rights to mark packets.
fn drop_rights(command: &mut Command) {
    // SAFETY: the closure makes system calls only.
    unsafe {
        command.pre_exec(|| {
            for right in [CapabilitySet::NET_ADMIN, CapabilitySet::NET_RAW] {
                remove_capability_from_bounding_set(right)?;
            }
            Ok(())
        });
    }
}

/// Does one batch of work in this process.
pub(crate) fn child(work: &str) -> Result<()> {
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
        watch::CHILD_WORK => watch::send_from_many(),
        "processes" => (0..PROCESSES)
            .try_for_each(|_| Command::new(TRUE).status().map(drop).context("no process")),
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
