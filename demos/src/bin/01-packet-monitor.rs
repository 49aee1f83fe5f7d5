//! Shows each packet that leaves by a network device.

use std::{
    io::{Write as _, stdout},
    net::SocketAddr,
    process::ExitCode,
};

use anyhow::Result;
use aya::{Ebpf, programs::TcAttachType};
use clap::Parser;
use demos::{Events, Interface, Length, Stop, address, program, protocol};
use demos_ebpf::packet_monitor::Packet;

/// Show each packet that leaves by a network device
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    iface: Interface,
    #[command(flatten)]
    length: Length,
}

fn main() -> ExitCode {
    demos::run(demo)
}

async fn demo(options: Options) -> Result<()> {
    let mut ebpf = Ebpf::load(demos::object!("01-packet-monitor"))?;
    let mut packets: Events<Packet> = Events::take(&mut ebpf, "PACKETS")?;
    let iface = &options.iface.name;
    let link = program::attach_tc(&mut ebpf, "monitor", iface, TcAttachType::Egress)?;
    let mut stop = Stop::new(options.length)?;
    demos::ready(&format!("watching what leaves by {iface}"), options.length);

    let mut seen = Seen::default();
    loop {
        tokio::select! {
            packet = packets.next() => seen.show(&packet?)?,
            () = stop.wait() => break,
        }
    }
    // Detached first, so that the sum says what was shown.
    drop(link);
    while let Some(packet) = packets.ready()? {
        seen.show(&packet)?;
    }
    writeln!(
        stdout(),
        "{} packets, {} bytes, {} not shown",
        seen.packets,
        seen.bytes,
        packets.lost()?
    )?;
    Ok(())
}

#[derive(Default)]
struct Seen {
    packets: u64,
    bytes: u64,
}

impl Seen {
    fn show(&mut self, packet: &Packet) -> Result<()> {
        self.packets += 1;
        self.bytes += u64::from(packet.len);
        writeln!(stdout(), "{}", line(packet))?;
        Ok(())
    }
}

fn line(packet: &Packet) -> String {
    let len = packet.len;
    if packet.protocol == 0 {
        return format!("ethertype {:#06x}, {len} bytes", packet.ethertype);
    }
    let protocol = protocol(packet.protocol);
    let (from, to) = (address(packet.source), address(packet.destination));
    if packet.destination_port == 0 {
        return format!("{protocol} {from} -> {to}, {len} bytes");
    }
    let from = SocketAddr::new(from, packet.source_port);
    let to = SocketAddr::new(to, packet.destination_port);
    format!("{protocol} {from} -> {to}, {len} bytes")
}
