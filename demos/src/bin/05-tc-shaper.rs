//! Limits the rate of one address or one program, and shows the rate before and after.

use std::{
    io::{Write as _, stdout},
    net::IpAddr,
    process::ExitCode,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray},
    programs::TcAttachType,
};
use clap::Parser;
use demos::{Interface, Length, Stop, bytes, cgroup::Cgroup, program, queue};
use demos_ebpf::tc_shaper::{DROPPED, Limit, PACE, POLICE, SENT};
use tokio::time::{MissedTickBehavior, interval};

/// Limit the rate of one address or one program, and show the rate before and after
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    iface: Interface,
    #[command(flatten)]
    length: Length,
    /// The limit, such as `8mbit` or `500kbit`
    #[arg(long, value_name = "RATE", default_value = "8mbit")]
    rate: Rate,
    /// How long to measure before the limit is set
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "3s")]
    before: Duration,
    /// Limit what goes to this address
    #[arg(long, value_name = "ADDRESS")]
    to: Option<IpAddr>,
    /// Limit what this command sends, which is started
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn main() -> ExitCode {
    demos::run(demo)
}

async fn demo(options: Options) -> Result<()> {
    let iface = &options.iface.name;
    let index = program::device(iface)?;
    let method = if queue::has_fq(index).await? {
        writeln!(
            stdout(),
            "{iface} has the queueing discipline fq, which will hold back what is too early"
        )?;
        PACE
    } else {
        writeln!(
            stdout(),
            "{iface} has no queueing discipline fq, so what is too early will be dropped"
        )?;
        POLICE
    };
    let cgroup = match &*options.command {
        [] => None,
        _ => Some(Cgroup::create("tc-shaper")?),
    };
    let mut limit = Limit {
        rate: 0,
        cgroup: cgroup.as_ref().map_or(Ok(0), Cgroup::id)?,
        destination: options.to.map_or([0; 16], bytes),
        method,
    };

    let mut ebpf = Ebpf::load(demos::object!("05-tc-shaper"))?;
    let mut shaper = Shaper::take(&mut ebpf)?;
    shaper.limit.set(0, limit, 0)?;
    let link = program::attach_tc(&mut ebpf, "shape", iface, TcAttachType::Egress)?;
    let mut stop = Stop::new(options.length)?;
    demos::ready(&format!("measuring what leaves by {iface}"), options.length);
    let command = cgroup.as_ref().map(|cgroup| cgroup.start(&options.command));
    let mut command = command.transpose()?;

    let start = Instant::now();
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    seconds.tick().await;
    let mut before = None;
    let (mut last, mut at) = (shaper.sent()?, Instant::now());
    let (mut first, mut since) = (last, at);
    loop {
        tokio::select! {
            // The last second without the limit is told before the limit is.
            biased;
            _ = seconds.tick() => {
                let now = shaper.sent()?;
                writeln!(stdout(), "{}", rate(now - last, at.elapsed()))?;
                (last, at) = (now, Instant::now());
            }
            () = tokio::time::sleep_until((start + options.before).into()), if before.is_none() => {
                before = Some(rate(shaper.sent()? - first, since.elapsed()));
                limit.rate = options.rate.0;
                shaper.limit.set(0, limit, 0)?;
                (first, since) = (shaper.sent()?, Instant::now());
                writeln!(stdout(), "limited to {}", Mbit(limit.rate))?;
            }
            status = wait(&mut command) => {
                tracing::info!("the command ended: {}", status?);
                break;
            }
            () = stop.wait() => break,
        }
    }
    let after = rate(shaper.sent()? - first, since.elapsed());
    let dropped: u64 = shaper.counters.get(&DROPPED, 0)?.iter().sum();
    drop(link);
    match before {
        Some(before) => writeln!(
            stdout(),
            "before {before}, after {after}, {dropped} packets dropped"
        )?,
        None => writeln!(stdout(), "{after}; the limit was never set")?,
    }
    Ok(())
}

async fn wait(command: &mut Option<tokio::process::Child>) -> Result<std::process::ExitStatus> {
    match command {
        Some(command) => Ok(command.wait().await?),
        None => std::future::pending().await,
    }
}

struct Shaper {
    limit: Array<MapData, Limit>,
    counters: PerCpuArray<MapData, u64>,
}

impl Shaper {
    fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut take = |name| ebpf.take_map(name).context("a map is not in the object");
        Ok(Self {
            limit: take("LIMIT")?.try_into()?,
            counters: take("COUNTERS")?.try_into()?,
        })
    }

    fn sent(&self) -> Result<u64> {
        Ok(self.counters.get(&SENT, 0)?.iter().sum())
    }
}

/// Bytes per second, shown as the bits of those who sell them.
struct Mbit(u64);

impl std::fmt::Display for Mbit {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} Mbit/s", self.0 as f64 * 8.0 / 1e6)
    }
}

fn rate(bytes: u64, time: Duration) -> Mbit {
    let nanos = time.as_nanos().max(1);
    Mbit(u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX))
}

/// Bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate(u64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let end = text.find(|letter: char| !letter.is_ascii_digit());
        let (number, unit) = text.split_at(end.unwrap_or(text.len()));
        let factor = match unit {
            "bit" => 1,
            "kbit" => 1_000,
            "mbit" => 1_000_000,
            "gbit" => 1_000_000_000,
            _ => return Err("the unit must be bit, kbit, mbit or gbit".to_owned()),
        };
        let bits = number
            .parse()
            .ok()
            .and_then(|number: u64| number.checked_mul(factor));
        match bits {
            Some(bits) if bits >= 8 => Ok(Self(bits / 8)),
            _ => Err("not a rate above zero".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_bits() {
        assert_eq!("8mbit".parse(), Ok(Rate(1_000_000)));
        assert_eq!("500kbit".parse(), Ok(Rate(62_500)));
        for text in ["8", "mbit", "0mbit", "8mb", "99999999999gbit"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
