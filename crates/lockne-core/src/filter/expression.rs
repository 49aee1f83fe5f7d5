//! The syntax tree of a filter, with every qualifier in its place.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

/// What a filter says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Every packet: the empty filter.
    Everything,
    /// What one word, or a few that belong together, say.
    Is(Primitive),
    /// Not this.
    Not(Box<Expression>),
    /// Both.
    And(Box<Expression>, Box<Expression>),
    /// One of them, or both.
    Or(Box<Expression>, Box<Expression>),
}

/// A single statement on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Primitive {
    /// The packet is of this protocol.
    Layer(Layer),
    /// It comes from, or goes to, an address or network.
    Address {
        /// Of which protocol; all that have addresses, if it is not said.
        layer: Option<Layer>,
        /// Which end.
        direction: Direction,
        /// The addresses.
        address: Address,
    },
    /// It has a port in this range.
    Port {
        /// Of which protocol; all that have ports, if it is not said.
        transport: Option<Transport>,
        /// Which end.
        direction: Direction,
        /// The ports.
        range: Range,
    },
    /// Its IP header names this protocol.
    Number {
        /// Of which version; both, if it is not said.
        family: Option<Family>,
        /// The number.
        number: u8,
    },
    /// It is so long.
    Length(Bound),
    /// It belongs to a process of this name.
    Name([u8; 16]),
    /// It belongs to this process.
    Pid(u32),
    /// It goes through this tunnel, or came through it.
    Tunnel(String),
}

/// A protocol that has a word of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Internet protocol version 4.
    Ip,
    /// Internet protocol version 6.
    Ip6,
    /// Address resolution.
    Arp,
    /// Reverse address resolution.
    Rarp,
    /// TCP, UDP or SCTP, over either IP.
    Transport(Transport),
    /// ICMP over IPv4.
    Icmp,
    /// `ICMPv6`.
    Icmp6,
}

impl Layer {
    /// Every one of them.
    pub const ALL: [Self; 9] = [
        Self::Ip,
        Self::Ip6,
        Self::Arp,
        Self::Rarp,
        Self::Transport(Transport::Tcp),
        Self::Transport(Transport::Udp),
        Self::Transport(Transport::Sctp),
        Self::Icmp,
        Self::Icmp6,
    ];

    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Arp => "arp",
            Self::Rarp => "rarp",
            Self::Transport(Transport::Tcp) => "tcp",
            Self::Transport(Transport::Udp) => "udp",
            Self::Transport(Transport::Sctp) => "sctp",
            Self::Icmp => "icmp",
            Self::Icmp6 => "icmp6",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Version 4.
    V4,
    /// Version 6.
    V6,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// Every one of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Its number in an IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Which end of a packet's way is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
    /// One of them.
    Either,
    /// Both of them.
    Both,
}

/// Addresses that are the same under a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4, for which the mask may have holes.
    V4 {
        /// The address.
        address: Ipv4Addr,
        /// Which of its bits count.
        mask: u32,
    },
    /// IPv6.
    V6 {
        /// The address.
        address: Ipv6Addr,
        /// Which of its bits count.
        mask: u128,
    },
}

/// Ports from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first one.
    pub first: u16,
    /// The last one.
    pub last: u16,
}

/// A length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// So long, or shorter.
    AtMost(u32),
    /// So long, or longer.
    AtLeast(u32),
}
