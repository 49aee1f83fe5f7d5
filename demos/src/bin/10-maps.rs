//! Shows what each kind of map answers, and what the answer costs.

use std::{
    io::{Write as _, stdout},
    net::UdpSocket,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{
        Array, HashMap, LpmTrie, Map, MapError, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage,
        lpm_trie::Key,
    },
    programs::{SchedClassifier, TcAttachType},
    sys::{Stats, enable_stats},
};
use clap::Parser;
use demos::{
    Length, Stop, bytes, namespace, program,
    results::{self, Figure, Statistic},
};

/// Show what each kind of map answers, and what the answer costs per packet
///
/// Sends packets to itself, in a network namespace of its own. --duration cuts the measurement short.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    length: Length,
    /// How many packets to send for each map
    #[arg(long, default_value_t = 100_000)]
    packets: u32,
    /// How many sockets send them, in turns
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1000))]
    sockets: u16,
    /// Keep the costs in this file, as `bench/README.md` describes it
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The program, and the question that its map answers.
const MAPS: [(&str, &str); 9] = [
    ("nothing", "none: reads the packet"),
    ("array", "how much of each protocol?"),
    ("per_cpu_array", "the same, no CPU in another's way"),
    ("hash", "which socket sent how much?"),
    ("per_cpu_hash", "the same, no CPU in another's way"),
    ("lru", "the same, and forget the oldest"),
    ("lpm", "how much to which network?"),
    ("ring", "what exactly happened?"),
    ("storage", "what do I know of this socket?"),
];

/// As many records as are sure to fit into the ring buffer.
const BATCH: u32 = 1000;

fn main() -> ExitCode {
    demos::run(demo)
}

async fn demo(options: Options) -> Result<()> {
    namespace::enter_new().await?;
    let mut ebpf = Ebpf::load(demos::object!("10-maps"))?;
    let any_v4 = Key::new(96, bytes([0; 4].into()));
    LpmTrie::try_from(map(&mut ebpf, "LPM")?)?.insert(&any_v4, 0_u64, 0)?;
    // Switches the measurement on, for the whole machine, as long as this is held.
    let _stats =
        enable_stats(Stats::RunTime).context("cannot switch on the run-time statistics")?;
    let load = Load::new(options.sockets)?;
    let mut stop = Stop::new(options.length)?;
    demos::ready(
        "measuring in a network namespace of its own",
        options.length,
    );
    writeln!(
        stdout(),
        "{:<14} {:<34} {:>9} {:>8} {:>9}",
        "MAP",
        "QUESTION",
        "COUNTED",
        "ENTRIES",
        "COST"
    )?;

    let mut base = Duration::ZERO;
    let mut figures = Vec::new();
    for (name, question) in MAPS {
        let measured = tokio::select! {
            biased;
            () = stop.wait() => break,
            measured = measure(&mut ebpf, name, &load, options.packets) => measured?,
        };
        let Measured {
            counted,
            entries,
            cost,
        } = measured;
        if name == "nothing" {
            base = cost;
        }
        let cost = u32::try_from(cost.saturating_sub(base).as_nanos())?;
        writeln!(
            stdout(),
            "{name:<14} {question:<34} {counted:>9} {entries:>8} {cost:>6} ns"
        )?;
        figures.push(Figure {
            name: name.to_owned(),
            unit: "ns per packet",
            statistic: Statistic::Least,
            value: cost.into(),
        });
    }
    writeln!(
        stdout(),
        "reading the packet, and the clock that measures: {} ns",
        base.as_nanos()
    )?;
    match options.json {
        Some(path) => results::keep(
            &path,
            &format!(
                "10-maps --packets {} --sockets {}",
                options.packets, options.sockets
            ),
            &figures,
        ),
        None => Ok(()),
    }
}

struct Measured {
    counted: u64,
    entries: usize,
    cost: Duration,
}

/// Attaches one program, sends packets past it, and takes it away again.
async fn measure(ebpf: &mut Ebpf, name: &str, load: &Load, packets: u32) -> Result<Measured> {
    let link = program::attach_tc(ebpf, name, "lo", TcAttachType::Egress)?;
    let (mut records, mut cost) = (0, Duration::MAX);
    let mut before = runs(ebpf, name)?;
    for start in (0..packets).step_by(BATCH as usize) {
        load.send(BATCH.min(packets - start))?;
        if name == "ring" {
            let mut ring = RingBuf::try_from(map(ebpf, "RING")?)?;
            while ring.next().is_some() {
                records += 1;
            }
        }
        // The fastest batch is the one that nobody disturbed.
        let after = runs(ebpf, name)?;
        let times = u32::try_from(after.0 - before.0)?.max(1);
        cost = cost.min(after.1.saturating_sub(before.1) / times);
        before = after;
        // Lets Ctrl-C and the time have their say.
        tokio::task::yield_now().await;
    }
    drop(link);
    let (counted, entries) = match name {
        "nothing" => (before.0, 0),
        "array" => count(Array::<_, u64>::try_from(map(ebpf, "ARRAY")?)?.iter())?,
        "per_cpu_array" => {
            let array = PerCpuArray::<_, u64>::try_from(map(ebpf, "PER_CPU_ARRAY")?)?;
            count(array.iter().map(|cpus| Ok(cpus?.iter().sum())))?
        }
        "hash" | "lru" => {
            let map = map(ebpf, &name.to_uppercase())?;
            values(HashMap::<_, u16, u64>::try_from(map)?.iter())?
        }
        "per_cpu_hash" => {
            let hash = PerCpuHashMap::<_, u16, u64>::try_from(map(ebpf, "PER_CPU_HASH")?)?;
            let sums = hash.iter().map(|entry| {
                let (port, cpus) = entry?;
                Ok((port, cpus.iter().sum()))
            });
            values(sums)?
        }
        "lpm" => {
            let trie = LpmTrie::<_, [u8; 16], u64>::try_from(map(ebpf, "LPM")?)?;
            values(trie.iter())?
        }
        "ring" => (records, 0),
        _ => {
            let storage = SkStorage::<_, u64>::try_from(map(ebpf, "STORAGE")?)?;
            count(load.sockets.iter().map(|socket| storage.get(socket, 0)))?
        }
    };
    Ok(Measured {
        counted,
        entries,
        cost,
    })
}

/// How often the program ran, and how long in all.
fn runs(ebpf: &mut Ebpf, name: &str) -> Result<(u64, Duration)> {
    let program: &mut SchedClassifier = program::find(ebpf, name)?;
    let info = program.info()?;
    Ok((info.run_count(), info.run_time()))
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Map> {
    ebpf.map_mut(name)
        .with_context(|| format!("the object has no map `{name}`"))
}

/// The sum, and how many are not zero.
fn count(counts: impl Iterator<Item = Result<u64, MapError>>) -> Result<(u64, usize)> {
    let (mut sum, mut entries) = (0, 0);
    for count in counts {
        let count = count?;
        sum += count;
        entries += usize::from(count > 0);
    }
    Ok((sum, entries))
}

fn values<K>(entries: impl Iterator<Item = Result<(K, u64), MapError>>) -> Result<(u64, usize)> {
    count(entries.map(|entry| Ok(entry?.1)))
}

/// Sockets that send to one that nobody reads.
struct Load {
    sockets: Vec<UdpSocket>,
    _sink: UdpSocket,
}

impl Load {
    fn new(count: u16) -> Result<Self> {
        let sink = UdpSocket::bind("127.0.0.1:0")?;
        let to = sink.local_addr()?;
        let sockets = (0..count)
            .map(|_| {
                let socket = UdpSocket::bind("127.0.0.1:0")?;
                socket.connect(to)?;
                Ok(socket)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            sockets,
            _sink: sink,
        })
    }

    fn send(&self, packets: u32) -> Result<()> {
        for (_, socket) in (0..packets).zip(self.sockets.iter().cycle()) {
            socket.send(&[0; 64])?;
        }
        Ok(())
    }
}
