//! Connections with everything that the machine knows of them.

mod book;
mod names;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lockne_daemon::observe::Flow;
use serde::Serialize;

pub(crate) use self::book::Book;
use crate::stream::{Clock, shown, until_zero};

/// A connection, as `docs/flows.md` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Connection {
    /// The executable of the process, while there is one.
    pub(crate) program: Option<String>,
    /// The name of the process.
    pub(crate) name: String,
    pub(crate) pid: Option<u32>,
    pub(crate) uid: u32,
    pub(crate) user: Option<String>,
    pub(crate) rule: Option<String>,
    pub(crate) policy: Option<u8>,
    /// What the policy says.
    pub(crate) action: Option<String>,
    pub(crate) tunnel: Option<String>,
    pub(crate) way: Way,
    pub(crate) protocol: String,
    pub(crate) local: String,
    pub(crate) remote: String,
    /// What the program called the other end when it asked for its address, where that was seen.
    pub(crate) remote_name: Option<String>,
    pub(crate) state: &'static str,
    pub(crate) tx_packets: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_packets: u64,
    pub(crate) rx_bytes: u64,
    /// Whether it was there before, so that what came before is not counted.
    pub(crate) existing: bool,
    pub(crate) start: String,
    pub(crate) end: Option<String>,
}

/// Where the packets of a connection go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    /// Into the tunnel of its policy.
    Tunnelled,
    /// Out by a device that is none.
    Direct,
    /// Nowhere: the policy does not allow the device.
    Refused,
    /// To this machine itself.
    Local,
}

impl Way {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Tunnelled => "tunnelled",
            Self::Direct => "direct",
            Self::Refused => "refused",
            Self::Local => "local",
        }
    }
}

impl Connection {
    /// What is known of a flow; `end` is when it was over.
    pub(crate) fn new(flow: &Flow, end: Option<u64>, book: &mut Book, clock: Clock) -> Self {
        let policy = book.policy(flow.mark).map(|policy| {
            let rule = book.rule(policy.id);
            (policy.id.get(), policy.terms.to_string(), rule)
        });
        let (policy, action, rule) = match policy {
            Some((id, action, rule)) => (Some(id), Some(action), rule),
            None => (None, None, None),
        };
        let way = book.way(flow);
        Self {
            program: book.program(flow),
            name: shown(until_zero(&flow.name)),
            pid: (flow.pid != 0).then_some(flow.pid),
            uid: flow.uid,
            user: book.user(flow.uid),
            rule,
            policy,
            action,
            tunnel: (way == Way::Tunnelled)
                .then(|| book.tunnel(flow.mark))
                .flatten(),
            way,
            protocol: protocol(flow.protocol),
            local: address(flow.local, flow.local_port),
            remote: address(flow.remote, flow.remote_port),
            remote_name: book.name(flow).map(|name| name.to_string()),
            state: if end.is_some() { "closed" } else { state(flow) },
            tx_packets: flow.tx_packets,
            tx_bytes: flow.tx_bytes,
            rx_packets: flow.rx_packets,
            rx_bytes: flow.rx_bytes,
            existing: flow.flags & Flow::EXISTING != 0,
            start: clock.rfc3339(flow.started),
            end: end.map(|end| clock.rfc3339(end)),
        }
    }

    /// The other end, with its name where there is one.
    pub(crate) fn far(&self) -> String {
        match &self.remote_name {
            Some(name) => format!("{} ({name})", self.remote),
            None => self.remote.clone(),
        }
    }

    /// The program's name, without its folder.
    pub(crate) fn short(&self) -> &str {
        let file = self.program.as_deref().and_then(|it| it.rsplit('/').next());
        match file {
            Some(file) if !file.is_empty() => file,
            _ if self.name.is_empty() => "-",
            _ => &self.name,
        }
    }
}

pub(crate) fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmp6".to_owned(),
        33 => "dccp".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

/// `enum` of the kernel's `include/net/tcp_states.h`.
pub(crate) fn state(flow: &Flow) -> &'static str {
    match flow.state {
        1 => "established",
        2 => "syn-sent",
        3 | 12 => "syn-received",
        4 => "fin-wait-1",
        5 => "fin-wait-2",
        6 => "time-wait",
        7 => "closed",
        8 => "close-wait",
        9 => "last-ack",
        11 => "closing",
        _ => "open",
    }
}

pub(crate) fn address(bytes: [u8; 16], port: u16) -> String {
    let address = IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical();
    if port == 0 {
        address.to_string()
    } else {
        SocketAddr::new(address, port).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_shown_as_ipv4() {
        let mapped = "::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap().octets();
        let other = "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets();

        assert_eq!(address(mapped, 443), "192.0.2.1:443");
        assert_eq!(address(mapped, 0), "192.0.2.1");
        assert_eq!(address(other, 53), "[2001:db8::1]:53");
    }

    #[test]
    fn flow_without_lockne_is_direct_and_has_no_policy() {
        let flow = Flow {
            mark: 0x0100_0000,
            ifindex: 7,
            protocol: 17,
            name: *b"a\x1bb\0\0\0\0\0\0\0\0\0\0\0\0\0",
            started: 5_000_000_000,
            ..Flow::default()
        };

        let connection = Connection::new(&flow, None, &mut Book::default(), Clock::EPOCH);

        assert_eq!(connection.way, Way::Direct);
        assert_eq!((connection.policy, connection.pid), (None, None));
        assert_eq!(connection.name, "a\\u{1b}b");
        assert_eq!((connection.state, &*connection.protocol), ("open", "udp"));
        assert_eq!(connection.start, "1970-01-01T00:00:05.000000000Z");
    }
}
