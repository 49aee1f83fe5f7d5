//! What went over a wire, in few words.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, TransportSlice, icmpv4, icmpv6};

/// Packets that look the same, and how many there were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What they look like.
    pub packet: Packet,
    /// How many.
    pub packets: u64,
    /// Their bytes from the IP header on.
    pub bytes: u64,
}

/// What a packet looks like.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    /// Which way it went.
    pub direction: Direction,
    /// What it is.
    pub content: Content,
}

/// Which way a packet went, from the sight of the device that was watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// It came in: at the far end of a link, the near end sent it.
    Received,
    /// It went out.
    Sent,
}

/// What a packet is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// A packet of IPv4 or IPv6.
    Ip(Ip),
    /// A question for a link address, or the answer.
    Arp,
    /// Something else, or too broken to tell.
    Other {
        /// The number of its protocol in Ethernet.
        ethertype: u16,
    },
}

/// A packet of IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ip {
    /// Who sent it.
    pub source: IpAddr,
    /// Whom it is for.
    pub destination: IpAddr,
    /// What it carries.
    pub transport: Transport,
}

/// What a packet of IPv4 or IPv6 carries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A datagram of UDP.
    Udp {
        /// The sender's port.
        source: u16,
        /// The receiver's port.
        destination: u16,
    },
    /// A segment of TCP.
    Tcp {
        /// The sender's port.
        source: u16,
        /// The receiver's port.
        destination: u16,
        /// `SYN`, `SYN+ACK`, `RST` and the like.
        flags: TcpFlags,
    },
    /// A message of ICMP, of either family.
    Icmp {
        /// Its type.
        kind: u8,
        /// Its code.
        code: u8,
        /// The packet that an error is about.
        about: Option<Box<Ip>>,
    },
    /// Something else, or a fragment that does not say.
    Other {
        /// Its number.
        protocol: u8,
    },
}

/// The low six flags of TCP, as they stand in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpFlags(u8);

impl Packet {
    /// Whether it is an IP packet that is neither the network's own talk with its neighbours nor UDP
    /// of one of these tunnel endpoints.
    #[must_use]
    pub fn leaks(&self, endpoints: &[SocketAddr]) -> bool {
        match &self.content {
            Content::Arp => false,
            Content::Other { .. } => true,
            Content::Ip(ip) => !ip.is_neighbourly() && !ip.is_of_tunnel(endpoints),
        }
    }

    /// Reads the beginning of a packet, from the IP header on.
    pub(crate) fn parse(direction: Direction, ethertype: u16, bytes: &[u8]) -> Self {
        const ETH_P_ARP: u16 = 0x0806;
        const ETH_P_IP: u16 = 0x0800;
        const ETH_P_IPV6: u16 = 0x86dd;
        let other = Content::Other { ethertype };
        let content = match ethertype {
            ETH_P_ARP => Content::Arp,
            ETH_P_IP | ETH_P_IPV6 => Ip::parse(bytes).map_or(other, Content::Ip),
            _ => other,
        };
        Self { direction, content }
    }
}

impl Ip {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let sliced = LaxSlicedPacket::from_ip(bytes).ok()?;
        let (source, destination, protocol) = match sliced.net.as_ref()? {
            LaxNetSlice::Ipv4(ip) => {
                let header = ip.header();
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                    ip.payload().ip_number,
                )
            }
            LaxNetSlice::Ipv6(ip) => {
                let header = ip.header();
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                    ip.payload().ip_number,
                )
            }
            LaxNetSlice::Arp(_) => return None,
        };
        Some(Self {
            source,
            destination,
            transport: Transport::parse(sliced.transport.as_ref(), protocol),
        })
    }

    /// ARP's successors and multicast memberships, which every machine sends.
    fn is_neighbourly(&self) -> bool {
        match self.transport {
            Transport::Icmp { kind, .. } if self.source.is_ipv6() => {
                // RFC 4861, 2710 and 3810: neighbour discovery, and both multicast listener reports.
                matches!(kind, 130..=137 | 143)
            }
            Transport::Other { protocol } => protocol == IpNumber::IGMP.0,
            _ => false,
        }
    }

    fn is_of_tunnel(&self, endpoints: &[SocketAddr]) -> bool {
        match &self.transport {
            Transport::Udp {
                source,
                destination,
            } => {
                endpoints.contains(&SocketAddr::new(self.source, *source))
                    || endpoints.contains(&SocketAddr::new(self.destination, *destination))
            }
            Transport::Icmp { about, .. } => about
                .as_ref()
                .is_some_and(|about| about.is_of_tunnel(endpoints)),
            _ => false,
        }
    }
}

impl Transport {
    fn parse(transport: Option<&TransportSlice<'_>>, protocol: IpNumber) -> Self {
        match transport {
            Some(TransportSlice::Udp(udp)) => Self::Udp {
                source: udp.source_port(),
                destination: udp.destination_port(),
            },
            Some(TransportSlice::Tcp(tcp)) => Self::Tcp {
                source: tcp.source_port(),
                destination: tcp.destination_port(),
                flags: TcpFlags(tcp.slice()[13] & 0x3f),
            },
            Some(TransportSlice::Icmpv4(icmp)) => {
                let kind = icmp.type_u8();
                let is_error = matches!(
                    kind,
                    icmpv4::TYPE_DEST_UNREACH | icmpv4::TYPE_TIME_EXCEEDED | icmpv4::TYPE_REDIRECT
                );
                Self::icmp(kind, icmp.code_u8(), icmp.slice(), is_error)
            }
            Some(TransportSlice::Icmpv6(icmp)) => {
                let kind = icmp.type_u8();
                let is_error = kind < icmpv6::TYPE_ECHO_REQUEST;
                Self::icmp(kind, icmp.code_u8(), icmp.slice(), is_error)
            }
            _ => Self::Other {
                protocol: protocol.0,
            },
        }
    }

    fn icmp(kind: u8, code: u8, message: &[u8], is_error: bool) -> Self {
        let about = message
            .get(8..)
            .filter(|_| is_error)
            .and_then(Ip::parse)
            .map(Box::new);
        Self::Icmp { kind, code, about }
    }
}

impl TcpFlags {
    /// Whether the segment asks for a connection.
    #[must_use]
    pub const fn is_syn(self) -> bool {
        self.0 & 0x12 == 0x02
    }

    /// Whether the segment ends a write of its sender, and so has data.
    #[must_use]
    pub const fn is_push(self) -> bool {
        self.0 & 0x08 != 0
    }

    /// Whether the segment refuses or breaks a connection.
    #[must_use]
    pub const fn is_reset(self) -> bool {
        self.0 & 0x04 != 0
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}", self.packets, self.packet)
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            Content::Ip(ip) => ip.fmt(f),
            Content::Arp => f.write_str("ARP"),
            Content::Other { ethertype } => write!(f, "protocol {ethertype:#06x}"),
        }
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.source, self.destination);
        match &self.transport {
            Transport::Udp {
                source,
                destination,
            } => write!(
                f,
                "UDP {} > {}",
                SocketAddr::new(from, *source),
                SocketAddr::new(to, *destination)
            ),
            Transport::Tcp {
                source,
                destination,
                flags,
            } => write!(
                f,
                "TCP {} > {} {flags}",
                SocketAddr::new(from, *source),
                SocketAddr::new(to, *destination)
            ),
            Transport::Icmp { kind, code, about } => {
                write!(f, "ICMP {kind}/{code} {from} > {to}")?;
                about
                    .as_ref()
                    .map_or(Ok(()), |about| write!(f, " about {about}"))
            }
            Transport::Other { protocol } => write!(f, "protocol {protocol} {from} > {to}"),
        }
    }
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];
        let set = names
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.0 & (1 << bit) != 0);
        for (position, (_, name)) in set.enumerate() {
            write!(f, "{}{name}", if position == 0 { "" } else { "+" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const HOME: [u8; 4] = [192, 0, 2, 2];
    const PROVIDER: [u8; 4] = [198, 51, 100, 11];

    fn udp(source: [u8; 4], destination: [u8; 4], port: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(source, destination, 64)
            .udp(4000, port)
            .write(&mut bytes, b"hello")
            .unwrap();
        bytes
    }

    fn leaks(ethertype: u16, bytes: &[u8]) -> bool {
        let endpoint = SocketAddr::from((PROVIDER, 51820));
        Packet::parse(Direction::Received, ethertype, bytes).leaks(&[endpoint])
    }

    #[test]
    fn udp_to_the_endpoint_is_the_tunnels_own() {
        assert!(!leaks(0x0800, &udp(HOME, PROVIDER, 51820)));
    }

    #[test]
    fn udp_to_another_port_of_the_provider_leaks() {
        assert!(leaks(0x0800, &udp(HOME, PROVIDER, 53)));
    }

    #[test]
    fn error_about_the_tunnels_own_packet_is_not_a_leak_and_about_another_is() {
        let about = |port| {
            let mut bytes = Vec::new();
            PacketBuilder::ipv4(PROVIDER, HOME, 64)
                .icmpv4_raw(3, 3, [0; 4])
                .write(&mut bytes, &udp(HOME, PROVIDER, port))
                .unwrap();
            bytes
        };

        assert!(!leaks(0x0800, &about(51820)));
        assert!(leaks(0x0800, &about(53)));
    }

    #[test]
    fn neighbour_discovery_is_not_a_leak_and_a_ping_is() {
        let icmp = |kind| {
            let mut bytes = Vec::new();
            PacketBuilder::ipv6([1; 16], [2; 16], 64)
                .icmpv6_raw(kind, 0, [0; 4])
                .write(&mut bytes, &[0; 16])
                .unwrap();
            bytes
        };

        assert!(!leaks(0x86dd, &icmp(135)));
        assert!(leaks(0x86dd, &icmp(128)));
    }

    #[test]
    fn truncated_packet_is_still_told_apart() {
        let whole = udp(HOME, PROVIDER, 51820);

        assert!(!leaks(0x0800, &whole[..28]));
        assert!(leaks(0x0800, &whole[..10]), "too broken to tell");
    }
}
