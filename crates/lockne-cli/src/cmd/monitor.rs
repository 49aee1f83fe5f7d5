//! `lockne monitor`: packets, and the process each one belongs to.

mod file;
mod policy;
mod show;

use std::{os::fd::AsFd as _, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, ValueHint};
use lockne_core::filter::{Expression, Program};
use lockne_daemon::observe::{self, Devices, MAX_CAPTURE, News};

use self::{file::File, policy::Policies, show::Packet};
use crate::{
    cli::Place,
    failure::{Failure, Result},
    output,
    stream::{self, Clock, Lines, Loss, Next, Watch},
};

#[derive(Args, Debug)]
#[command(after_help = "\
The filter is tcpdump's language, with numbers only, and three words more:
  sudo lockne monitor tcp port 443 and not host 192.0.2.1
  sudo lockne monitor --iface eth0 proc firefox or pid 4711
  sudo lockne monitor -w leak.pcapng 'tunnel work and (udp or icmp6)'")]
pub(crate) struct Monitor {
    /// Watch this device (again for more) [default: all of them]
    #[arg(long, short, value_name = "DEVICE")]
    iface: Vec<String>,
    /// Stop after this time: `10`, `10s`, `2m`
    #[arg(long, value_name = "TIME", value_parser = stream::duration)]
    duration: Option<Duration>,
    /// Stop after so many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Write packets to this file as pcapng, with the process in the comment (`-` for stdout)
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(conflicts_with = "json")]
    write: Option<PathBuf>,
    /// Write at most so many bytes of each packet
    #[arg(long, value_name = "BYTES", requires = "write", default_value_t = MAX_CAPTURE)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CAPTURE)))]
    snaplen: u32,
    /// Print one JSON object for each packet, one a line
    #[arg(long)]
    json: bool,
    /// Which packets
    filter: Vec<String>,
}

pub(crate) fn monitor(place: &Place, args: &Monitor) -> Result<ExitCode> {
    let expression = read(&args.filter.join(" "))?;
    let mut policies = Policies::read(place);
    let program = compile(&expression, &policies)?;
    let devices = Devices::of(&args.iface);
    let watch = Watch::new(args.duration)?;
    let news = News::listen()
        .map_err(|error| Failure::new("cannot listen for new devices").because(&error))?;
    let capture = if args.write.is_some() {
        args.snaplen
    } else {
        0
    };
    let asks = expression.asks_for_process();
    let mut monitor = observe::Monitor::start(&program, asks, capture, devices).map_err(failed)?;
    let mut sink = Sink::open(args)?;
    let count = output::count(monitor.devices().count() as u64, "device");
    anstream::eprintln!("watching {count}; Ctrl-C ends it");

    let mut names = Names::of(&monitor);
    let mut program = program;
    let mut shown = 0;
    let mut told = Loss::default();
    loop {
        let next = watch.wait(&[monitor.fd(), news.as_fd()])?;
        let clock = Clock::now();
        let mut goes_on = true;
        monitor.drain(|packet, bytes| {
            goes_on = args.limit.is_none_or(|limit| shown < limit);
            if !goes_on {
                return false;
            }
            shown += 1;
            let device = names.get(packet.ifindex);
            let packet = Packet {
                policy: policies.of(place, packet, &device),
                device,
                seen: packet,
            };
            goes_on =
                sink.take(&packet, bytes, clock) && args.limit.is_none_or(|limit| shown < limit);
            goes_on
        });
        goes_on &= sink.flush();
        if !goes_on || next == Next::Stop {
            break;
        }
        told.tell(monitor.counts().map_err(failed)?.lost, "packet");
        news.clear();
        monitor.look_for_devices().map_err(failed)?;
        names = Names::of(&monitor);
        // A tunnel may have come, or a policy that goes through it.
        if policies.refresh(place) && !expression.tunnels().is_empty() {
            let new = compile(&expression, &policies).unwrap_or_else(|_| program.clone());
            if new != program {
                monitor.set_filter(&new).map_err(failed)?;
                program = new;
            }
        }
    }
    let lost = monitor.counts().map_err(failed)?.lost;
    drop(monitor);
    sink.end()?;
    stream::summary(&output::count(shown, "packet"), lost);
    Ok(ExitCode::SUCCESS)
}

/// As clap has it for what it reads itself.
const WRONG_USAGE: u8 = 2;

fn read(text: &str) -> Result<Expression> {
    text.parse().map_err(|error: lockne_core::filter::Error| {
        let failure = Failure::new(format!("cannot read the filter `{text}`"))
            .because(&error)
            .code(WRONG_USAGE);
        match error.problem.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}

fn compile(expression: &Expression, policies: &Policies) -> Result<Program> {
    for name in expression.tunnels() {
        policies.require(name)?;
    }
    Program::new(expression, &|name| policies.tunnel(name))
        .map_err(|error| Failure::new("the filter is too long").because(&error))
}

pub(crate) fn failed(error: observe::Error) -> Failure {
    if let observe::Error::Device { name, index: 0, .. } = &error {
        return Failure::new(format!("there is no device `{name}`"))
            .hint("`ip link` lists the devices");
    }
    let failure = Failure::new("cannot watch").because(&error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The names of devices, those that are gone too.
struct Names(Vec<(u32, String)>);

impl Names {
    fn of(monitor: &observe::Monitor) -> Self {
        Self(
            monitor
                .devices()
                .map(|device| (device.index, device.name.clone()))
                .collect(),
        )
    }

    fn get(&self, index: u32) -> String {
        let found = self.0.iter().find(|(of, _)| *of == index);
        found.map_or_else(|| format!("if{index}"), |(_, name)| name.clone())
    }
}

/// Where packets go.
enum Sink {
    Text(Lines),
    Json(Lines),
    File(File),
}

impl Sink {
    fn open(args: &Monitor) -> Result<Self> {
        Ok(match &args.write {
            Some(path) => Self::File(File::create(path, args.snaplen)?),
            None if args.json => Self::Json(Lines::new()),
            None => Self::Text(Lines::new()),
        })
    }

    /// Says whether there is somebody to take the next one.
    fn take(&mut self, packet: &Packet<'_>, bytes: &[u8], clock: Clock) -> bool {
        match self {
            Self::Text(lines) => lines.parts(&packet.parts(clock)),
            Self::Json(lines) => lines.json(&packet.json(clock)),
            Self::File(file) => file.add(packet, bytes, clock),
        }
    }

    fn flush(&mut self) -> bool {
        match self {
            Self::Text(lines) | Self::Json(lines) => lines.flush(),
            Self::File(file) => file.flush(),
        }
    }

    fn end(self) -> Result<()> {
        match self {
            Self::Text(lines) | Self::Json(lines) => lines.end(),
            Self::File(file) => file.end(),
        }
    }
}
