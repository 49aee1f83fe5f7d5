//! What a packet costs while a policy has many sockets, or many processes: the same, or the guard is wrong.

use std::{
    env,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdin, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use lockne_lab::hold::{self, Thing};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{
    figure::Figure,
    hook::{Bench, CHILD, PACKETS, Work},
    place::{Place, TUNNEL},
};

/// What a policed process holds meanwhile, how many of them, and the name of that.
const HELD: [(&str, usize, &str); 7] = [
    ("hold-sockets", 10, "guard_egress, policed, 10 sockets"),
    ("hold-sockets", 1000, "guard_egress, policed, 1000 sockets"),
    (
        "hold-sockets",
        10_000,
        "guard_egress, policed, 10000 sockets",
    ),
    (
        "hold-sockets",
        100_000,
        "guard_egress, policed, 100000 sockets",
    ),
    ("hold-processes", 10, "guard_egress, policed, 10 processes"),
    (
        "hold-processes",
        1000,
        "guard_egress, policed, 1000 processes",
    ),
    (
        "hold-processes",
        10_000,
        "guard_egress, policed, 10000 processes",
    ),
];

/// The variable that says how many.
pub(crate) const COUNT: &str = "LOCKNE_BENCH_COUNT";

/// Measures all of them in turn.
pub(crate) fn measure(place: &Place, rounds: usize) -> Result<Vec<Figure>> {
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime)?;
    let mut figures = HELD.map(|(_, _, name)| Figure::new(name, "ns", Some(8.0)));
    for round in 0..rounds {
        let bench = Bench::start(place, round)?;
        for ((what, count, name), figure) in HELD.into_iter().zip(&mut figures) {
            let holder = Holder::start(place, what, count)?;
            let case = ("guard_egress", PACKETS, None, name);
            figure.add(round, bench.medians(Work::SEND, &[case])?[0]);
            holder.end()?;
        }
    }
    Ok(figures.into())
}

/// A policed process that holds things.
struct Holder {
    child: Child,
    input: ChildStdin,
}

impl Holder {
    fn start(place: &Place, what: &str, count: usize) -> Result<Self> {
        let this = env::current_exe()?;
        let this = this.to_str().context("the path is not UTF-8")?;
        let mut child = place
            .lockne(&["run", "--via", TUNNEL, "--", this, CHILD, what])
            .env(COUNT, count.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let input = child.stdin.take().context("it has an input")?;
        let output = child.stdout.take().context("it has an output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line == "ready\n", "{what}: cannot hold {count}");
        Ok(Self { child, input })
    }

    fn end(mut self) -> Result<()> {
        drop(self.input);
        self.child.wait()?;
        Ok(())
    }
}

/// How many this process is to have, which may have as many descriptors then.
pub(crate) fn count() -> Result<usize> {
    let count = env::var(COUNT)?.parse()?;
    let most = Some(count as u64 + 100);
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit)?;
    Ok(count)
}

/// Holds things in this process until its input ends.
pub(crate) fn hold(what: &str) -> Result<()> {
    let thing = if what == "hold-sockets" {
        Thing::Sockets
    } else {
        Thing::Processes
    };
    let count = env::var(COUNT)?.parse()?;
    hold::until_end_of_input(thing, count).with_context(|| format!("cannot hold {count} of them"))
}
