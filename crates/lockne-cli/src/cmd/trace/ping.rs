//! `lockne trace ping`: who pings this machine.

use std::{
    net::{IpAddr, Ipv6Addr},
    os::fd::AsFd as _,
    process::ExitCode,
    time::Duration,
};

use anstyle::Style;
use clap::Args;
use lockne_daemon::observe::{Device, Devices, News, Packet, Pings};
use serde::Serialize;

use crate::{
    cmd::monitor::failed,
    failure::{Failure, Result},
    output::{self, FAINT, STRONG, WARN},
    stream::{self, Clock, Lines, Loss, Next, Part, Watch},
};

#[derive(Args, Debug)]
pub(crate) struct Ping {
    /// Watch this device (again for more) [default: all of them]
    #[arg(long, short, value_name = "DEVICE")]
    iface: Vec<String>,
    /// Refuse pings from this address while this runs (again for more)
    #[arg(long, value_name = "ADDRESS")]
    drop_from: Vec<IpAddr>,
    /// Stop after this time: `10`, `10s`, `2m`
    #[arg(long, value_name = "TIME", value_parser = stream::duration)]
    duration: Option<Duration>,
    /// Print one JSON object for each ping, one a line
    #[arg(long)]
    json: bool,
}

/// A ping, as `docs/monitor.md` has it.
#[derive(Serialize)]
struct Json<'a> {
    time: String,
    device: &'a str,
    source: IpAddr,
    destination: IpAddr,
    id: u16,
    sequence: u16,
    length: u32,
    refused: bool,
}

impl<'a> Json<'a> {
    fn of(packet: &Packet, device: &'a str, clock: Clock) -> Self {
        Self {
            time: clock.rfc3339(packet.time),
            device,
            source: Ipv6Addr::from(packet.source).to_canonical(),
            destination: Ipv6Addr::from(packet.destination).to_canonical(),
            id: packet.destination_port,
            sequence: packet.sequence,
            length: packet.length,
            refused: packet.has(Packet::REFUSED),
        }
    }

    fn parts(&self, time: String) -> Vec<Part> {
        let plain = Style::new();
        let mut parts = vec![
            (FAINT, time),
            (plain, format!(" {:<8} ", self.device)),
            (STRONG, self.source.to_string()),
            (plain, format!(" > {}", self.destination)),
            (
                plain,
                format!(
                    " id {} seq {} {} bytes",
                    self.id, self.sequence, self.length
                ),
            ),
        ];
        if self.refused {
            parts.push((WARN, "  refused".to_owned()));
        }
        parts
    }
}

pub(crate) fn ping(args: &Ping) -> Result<ExitCode> {
    let devices = Devices::of(&args.iface);
    let watch = Watch::new(args.duration)?;
    let news = News::listen()
        .map_err(|error| Failure::new("cannot listen for new devices").because(&error))?;
    let mut pings = Pings::start(devices, &args.drop_from).map_err(failed)?;
    let mut lines = Lines::new();
    anstream::eprintln!("watching for pings; Ctrl-C ends it");
    let (mut seen, mut refused) = (0, 0);
    let mut told = Loss::default();
    loop {
        let next = watch.wait(&[pings.fd(), news.as_fd()])?;
        news.clear();
        pings.look_for_devices().map_err(failed)?;
        let devices = Device::all().unwrap_or_default();
        let clock = Clock::now();
        let mut goes_on = true;
        pings.drain(|packet| {
            let device = devices.iter().find(|device| device.index == packet.ifindex);
            let ping = Json::of(packet, device.map_or("gone", |device| &device.name), clock);
            seen += 1;
            refused += u64::from(ping.refused);
            goes_on = if args.json {
                lines.json(&ping)
            } else {
                lines.parts(&ping.parts(clock.time_of_day(packet.time)))
            };
            goes_on
        });
        goes_on &= lines.flush();
        if !goes_on || next == Next::Stop {
            break;
        }
        told.tell(pings.counts().map_err(failed)?.lost, "ping");
    }
    let lost = pings.counts().map_err(failed)?.lost;
    drop(pings);
    lines.end()?;
    stream::summary(
        &format!("{}, {refused} refused", output::count(seen, "ping")),
        lost,
    );
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_ping_is_told_as_such() {
        let packet = Packet {
            time: 45_296_123_456_789,
            source: "::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap().octets(),
            destination: "::ffff:192.0.2.2".parse::<Ipv6Addr>().unwrap().octets(),
            destination_port: 7,
            sequence: 3,
            length: 98,
            flags: Packet::REFUSED,
            ..Packet::default()
        };
        let ping = Json::of(&packet, "eth0", Clock::EPOCH);

        let parts = ping.parts(Clock::EPOCH.time_of_day(packet.time));
        let line: String = parts.into_iter().map(|(_, text)| text).collect();
        let json = serde_json::to_string(&ping).unwrap();

        insta::assert_snapshot!(format!("{line}\n{json}"));
        let value = serde_json::to_value(&ping).unwrap();
        crate::documented::assert_fields("monitor.md", "**`lockne trace ping --json`**", &[value]);
    }
}
