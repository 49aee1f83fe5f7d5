//! A packet as a line, and as a JSON object.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use anstyle::{AnsiColor, Style};
use lockne_core::policy::Action;
use lockne_daemon::observe;
use serde::Serialize;

use crate::{
    output::{FAINT, GOOD, STRONG, WARN},
    stream::{Clock, Part, shown, until_zero},
};

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;
const IPV6: u16 = 0x86dd;

/// A packet, with what its numbers mean.
pub(crate) struct Packet<'a> {
    pub(crate) seen: &'a observe::Packet,
    pub(crate) device: String,
    pub(crate) policy: Option<Action>,
}

/// The fields of a packet, as `docs/monitor.md` has them.
#[derive(Serialize)]
pub(crate) struct Json<'a> {
    time: String,
    device: &'a str,
    direction: &'static str,
    protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_port: Option<u16>,
    length: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp_flags: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_type: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    mark: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a Action>,
}

impl Packet<'_> {
    /// The line, in parts.
    pub(crate) fn parts(&self, clock: Clock) -> Vec<Part> {
        const SOURCE: Style = AnsiColor::Cyan.on_default();
        let packet = self.seen;
        let plain = Style::new();
        let (direction, style) = match self.direction() {
            "in" => ("in ", GOOD),
            _ => ("out", WARN),
        };
        let mut parts = vec![
            (FAINT, clock.time_of_day(packet.time)),
            (plain, format!(" {:<8} ", self.device)),
            (style, direction.to_owned()),
            (plain, format!(" {:<6} ", self.protocol())),
        ];
        if let Some((source, destination)) = self.ends() {
            parts.extend([
                (SOURCE, source),
                (plain, " > ".to_owned()),
                (SOURCE, destination),
                (plain, " ".to_owned()),
            ]);
        }
        let mut rest = String::new();
        if let Some(kind) = self.kind() {
            let _ = write!(rest, "{kind} ");
        }
        let _ = write!(rest, "{} bytes", packet.length);
        if let Some(vlan) = self.vlan() {
            let _ = write!(rest, " vlan {vlan}");
        }
        parts.push((plain, rest));
        if packet.pid != 0 {
            parts.push((STRONG, format!("  {}", self.name())));
            parts.push((FAINT, format!(" {}", packet.pid)));
        }
        if let Some(policy) = &self.policy {
            parts.push((GOOD, format!("  {policy}")));
        }
        parts
    }

    pub(crate) fn json(&self, clock: Clock) -> Json<'_> {
        let packet = self.seen;
        let port = |port| packet.has(observe::Packet::PORTS).then_some(port);
        let kind = packet.has(observe::Packet::KIND).then_some(packet.kind);
        let is_tcp = packet.protocol == 6;
        let has_process = packet.pid != 0;
        Json {
            time: clock.rfc3339(packet.time),
            device: &self.device,
            direction: self.direction(),
            protocol: self.protocol(),
            source: self.has_ends().then(|| address(packet.source)),
            source_port: port(packet.source_port),
            destination: self.has_ends().then(|| address(packet.destination)),
            destination_port: port(packet.destination_port),
            length: packet.length,
            tcp_flags: kind.filter(|_| is_tcp).map(tcp_flags),
            icmp_type: kind.filter(|_| !is_tcp),
            vlan: self.vlan(),
            pid: has_process.then_some(packet.pid),
            name: has_process.then(|| self.name()),
            mark: packet.mark,
            policy: self.policy.as_ref(),
        }
    }

    /// What a capture file says of the packet.
    pub(crate) fn comment(&self) -> Option<String> {
        let process =
            (self.seen.pid != 0).then(|| format!("process {} pid {}", self.name(), self.seen.pid));
        let policy = self
            .policy
            .as_ref()
            .map(|policy| format!("policy {policy}"));
        let parts: Vec<String> = process.into_iter().chain(policy).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    pub(crate) fn direction(&self) -> &'static str {
        if self.seen.has(observe::Packet::INCOMING) {
            "in"
        } else {
            "out"
        }
    }

    pub(crate) fn name(&self) -> String {
        shown(until_zero(&self.seen.name))
    }

    fn vlan(&self) -> Option<u16> {
        let is_tagged = self.seen.has(observe::Packet::TAGGED);
        is_tagged.then_some(self.seen.vlan & 0xfff)
    }

    fn has_ends(&self) -> bool {
        matches!(self.seen.ethertype, IPV4 | IPV6 | ARP | RARP)
    }

    fn ends(&self) -> Option<(String, String)> {
        let packet = self.seen;
        let end = |bytes, port| {
            let address = address(bytes);
            if packet.has(observe::Packet::PORTS) {
                SocketAddr::new(address, port).to_string()
            } else {
                address.to_string()
            }
        };
        self.has_ends().then(|| {
            (
                end(packet.source, packet.source_port),
                end(packet.destination, packet.destination_port),
            )
        })
    }

    fn protocol(&self) -> String {
        match (self.seen.ethertype, self.seen.behind) {
            (ARP, _) => "arp".to_owned(),
            (RARP, _) => "rarp".to_owned(),
            (IPV4, 1) => "icmp".to_owned(),
            (IPV6, 58) => "icmp6".to_owned(),
            (IPV4 | IPV6, 6) => "tcp".to_owned(),
            (IPV4 | IPV6, 17) => "udp".to_owned(),
            (IPV4 | IPV6, 132) => "sctp".to_owned(),
            (IPV4, number) => format!("ip proto {number}"),
            (IPV6, number) => format!("ip6 proto {number}"),
            (ethertype, _) => format!("0x{ethertype:04x}"),
        }
    }

    /// What kind of TCP or ICMP packet it is.
    fn kind(&self) -> Option<String> {
        let packet = self.seen;
        if !packet.has(observe::Packet::KIND) {
            return None;
        }
        let (id, sequence) = (packet.destination_port, packet.sequence);
        Some(match (packet.protocol, packet.kind) {
            (6, flags) => format!("[{}]", tcp_flags(flags)),
            (1, 8) | (58, 128) => format!("echo request id {id} seq {sequence}"),
            (1, 0) | (58, 129) => format!("echo reply id {id} seq {sequence}"),
            (1, 3) | (58, 1) => "unreachable".to_owned(),
            (58, 133) => "router solicitation".to_owned(),
            (58, 134) => "router advertisement".to_owned(),
            (58, 135) => "neighbour solicitation".to_owned(),
            (58, 136) => "neighbour advertisement".to_owned(),
            (_, kind) => format!("type {kind}"),
        })
    }
}

/// As tcpdump writes them.
fn tcp_flags(flags: u8) -> String {
    const LETTERS: [(u8, char); 8] = [
        (1, 'F'),
        (2, 'S'),
        (4, 'R'),
        (8, 'P'),
        (16, '.'),
        (32, 'U'),
        (64, 'E'),
        (128, 'W'),
    ];
    let set = LETTERS.iter().filter(|(bit, _)| flags & bit != 0);
    set.map(|(_, letter)| letter).collect()
}

fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

#[cfg(test)]
mod tests {
    use lockne_core::filter::{Link, packet};

    use super::*;

    fn tcp() -> observe::Packet {
        let mut bytes = vec![2; 12];
        bytes.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
        bytes.extend([192, 0, 2, 1, 192, 0, 2, 2, 0xc0, 0, 1, 0xbb]);
        bytes.extend([0; 9]);
        bytes.extend([0x12, 0, 0, 0, 0, 0, 0]);
        let mut packet = packet(&bytes, Link::Ethernet);
        packet.time = 45_296_123_456_789;
        packet.pid = 4711;
        packet.name[..7].copy_from_slice(b"curl\x1b[m");
        packet
    }

    fn ping() -> observe::Packet {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 8, 58, 64];
        for last in [1, 2] {
            bytes.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        bytes.extend([128, 0, 0, 0, 0, 7, 0, 9]);
        let mut packet = packet(&bytes, Link::Bare);
        packet.flags |= observe::Packet::INCOMING;
        packet
    }

    fn shown_as(packet: &observe::Packet, policy: Option<Action>) -> String {
        let packet = Packet {
            seen: packet,
            device: "eth0".to_owned(),
            policy,
        };
        let line: String = packet
            .parts(Clock::EPOCH)
            .into_iter()
            .map(|(_, text)| text)
            .collect();
        let json = serde_json::to_string(&packet.json(Clock::EPOCH)).unwrap();
        format!("{line}\n{json}\n{:?}", packet.comment())
    }

    #[test]
    fn packet_is_shown_with_its_process() {
        let via = Action::Via("work".parse().unwrap());

        insta::assert_snapshot!(shown_as(&tcp(), Some(via)));
    }

    #[test]
    fn docs_name_every_field() {
        let mut tagged = tcp();
        tagged.flags |= observe::Packet::TAGGED;
        let via = Action::Via("work".parse().unwrap());
        let json = |seen: &observe::Packet| {
            let packet = Packet {
                seen,
                device: "eth0".to_owned(),
                policy: Some(via.clone()),
            };
            serde_json::to_value(packet.json(Clock::EPOCH)).unwrap()
        };

        let values = [json(&tagged), json(&ping())];

        crate::documented::assert_fields("monitor.md", "**`lockne monitor --json`**", &values);
    }

    #[test]
    fn packet_without_a_process_is_shown_without_one() {
        insta::assert_snapshot!(shown_as(&ping(), None));
    }

    #[test]
    fn unknown_protocols_are_shown_by_number() {
        let odd = observe::Packet {
            ethertype: 0x88cc,
            length: 60,
            vlan: 0x2005,
            flags: observe::Packet::TAGGED,
            ..observe::Packet::default()
        };
        let gre = observe::Packet {
            ethertype: IPV4,
            protocol: 47,
            behind: 47,
            length: 60,
            ..observe::Packet::default()
        };

        insta::assert_snapshot!([shown_as(&odd, None), shown_as(&gre, None)].join("\n"));
    }
}
