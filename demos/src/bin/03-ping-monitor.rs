//! Shows each ping that arrives, and drops those of one sender.

use std::{
    io::{Write as _, stdout},
    net::IpAddr,
    process::ExitCode,
};

use anyhow::Result;
use aya::{EbpfLoader, programs::TcAttachType};
use clap::Parser;
use demos::{Events, Interface, Length, Stop, address, bytes, program};
use demos_ebpf::ping_monitor::Ping;

/// Show each ping that arrives
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    iface: Interface,
    #[command(flatten)]
    length: Length,
    /// Drop the pings of this address
    #[arg(long, value_name = "ADDRESS")]
    drop_from: Option<IpAddr>,
}

fn main() -> ExitCode {
    demos::run(demo)
}

async fn demo(options: Options) -> Result<()> {
    let drop_from = options.drop_from.map_or([0; 16], bytes);
    let mut ebpf = EbpfLoader::new()
        .override_global("DROP_FROM", &drop_from, true)
        .load(demos::object!("03-ping-monitor"))?;
    let mut pings: Events<Ping> = Events::take(&mut ebpf, "PINGS")?;
    let iface = &options.iface.name;
    let link = program::attach_tc(&mut ebpf, "watch_pings", iface, TcAttachType::Ingress)?;
    let mut stop = Stop::new(options.length)?;
    demos::ready(
        &format!("watching pings that arrive at {iface}"),
        options.length,
    );

    let mut seen = Seen::default();
    loop {
        tokio::select! {
            ping = pings.next() => seen.show(&ping?)?,
            () = stop.wait() => break,
        }
    }
    drop(link);
    while let Some(ping) = pings.ready()? {
        seen.show(&ping)?;
    }
    let Seen {
        pings: count,
        dropped,
    } = seen;
    let lost = pings.lost()?;
    writeln!(
        stdout(),
        "{count} pings, {dropped} dropped, {lost} not shown"
    )?;
    Ok(())
}

#[derive(Default)]
struct Seen {
    pings: u64,
    dropped: u64,
}

impl Seen {
    fn show(&mut self, ping: &Ping) -> Result<()> {
        self.pings += 1;
        self.dropped += u64::from(ping.dropped);
        let Ping { id, sequence, .. } = ping;
        let (from, to) = (address(ping.source), address(ping.destination));
        let end = if ping.dropped == 1 { ", dropped" } else { "" };
        writeln!(
            stdout(),
            "ping {from} -> {to}, id {id}, sequence {sequence}{end}"
        )?;
        Ok(())
    }
}
