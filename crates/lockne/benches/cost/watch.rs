//! What a packet costs while somebody watches, with one socket and with many.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    bpf::{self, Empty, Hook, Pair},
    figure::{Figure, median},
    hook::{BATCHES, CHILD},
    place::Place,
    scale::{COUNT, count},
};

/// The child that has sockets, and sends from each in turn.
pub(crate) const CHILD_WORK: &str = "send-from-many";

/// How many sockets, what a packet may cost, and the name of that.
const SOCKETS: [(usize, f64, &str); 2] = [
    (1, 30.0, "meter_out, one socket"),
    (8000, 100.0, "meter_out, 8000 sockets"),
];
const PACKETS: usize = 16_000;

/// Measures both.
pub(crate) fn measure(place: &Place, rounds: usize) -> Result<Vec<Figure>> {
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime)?;
    let mut figures = SOCKETS.map(|(_, goal, name)| Figure::new(name, "ns", Some(goal)));
    for round in 0..rounds {
        let attach_empty = || Empty::attach(Hook::Packet);
        let before = round.is_multiple_of(2).then(attach_empty).transpose()?;
        let watcher = Watcher::start(place)?;
        let empty = before.map_or_else(attach_empty, Ok)?;
        let ours = watcher.program("meter_out")?;
        for ((count, _, name), figure) in SOCKETS.into_iter().zip(&mut figures) {
            let mut sender = Sender::start(place, count)?;
            let pair = [Pair {
                ours: &ours,
                empty: &empty,
                least: PACKETS,
                name,
            }];
            let mut batches = Vec::new();
            for _ in 0..BATCHES {
                batches.extend(bpf::net(&pair, || sender.send())?);
            }
            figure.add(round, median(batches));
        }
    }
    Ok(figures.into())
}

/// A command that watches all connections.
struct Watcher {
    child: Child,
    _said: BufReader<ChildStderr>,
}

impl Watcher {
    fn start(place: &Place) -> Result<Self> {
        let mut child = place
            .lockne(&["flows", "--follow"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut said = BufReader::new(child.stderr.take().context("it has a stderr")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        let watcher = Self { child, _said: said };
        ensure!(line.starts_with("watching"), "{line}");
        Ok(watcher)
    }

    /// The program of this name that it has in the kernel; others may watch, too.
    fn program(&self, name: &str) -> Result<OwnedFd> {
        let mut held = BTreeSet::new();
        for info in fs::read_dir(format!("/proc/{}/fdinfo", self.child.id()))?.flatten() {
            let text = fs::read_to_string(info.path()).unwrap_or_default();
            let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
            held.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
        }
        let info = aya::programs::loaded_programs()
            .flatten()
            .find(|it| held.contains(&it.id()) && it.name_as_str() == Some(name))
            .with_context(|| format!("no program `{name}`"))?;
        Ok(info.fd()?.as_fd().try_clone_to_owned()?)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A process that sends when it is told to.
struct Sender {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Sender {
    fn start(place: &Place, count: usize) -> Result<Self> {
        let mut command: Command = place.lab.home.command(env::current_exe()?);
        let mut child = command
            .args([CHILD, CHILD_WORK])
            .env(COUNT, count.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut sender = Self {
            input: child.stdin.take().context("it has an input")?,
            output: BufReader::new(child.stdout.take().context("it has an output")?),
            child,
        };
        sender.wait()?;
        Ok(sender)
    }

    fn send(&mut self) -> Result<()> {
        self.input.write_all(b"\n")?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line == "done\n", "it cannot send");
        Ok(())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Makes the sockets and sends from each, then again whenever a line comes.
pub(crate) fn send_from_many() -> Result<()> {
    let count = count()?;
    let sink = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut sockets = Vec::new();
    for _ in 0..count {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(sink.local_addr()?)?;
        // Now its connection has a place.
        socket.send(b"a small packet")?;
        sockets.push(socket);
    }
    let mut lines = io::stdin().lines();
    loop {
        writeln!(io::stdout(), "done")?;
        if lines.next().transpose()?.is_none() {
            return Ok(());
        }
        for socket in sockets.iter().cycle().take(PACKETS) {
            socket.send(b"a small packet")?;
        }
    }
}
