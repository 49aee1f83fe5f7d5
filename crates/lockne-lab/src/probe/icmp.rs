//! Pings.

use std::{
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    time::{Duration, Instant},
};

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, icmpv4, icmpv6,
};
use socket2::Socket;

use super::{
    Action, Outcome, Probe,
    act::{Call, Result, received},
    option,
};

const HEADER: usize = 8;

/// Sends an echo request and waits for its reply.
pub(super) fn ping(
    probe: &Probe,
    socket: &Socket,
    destination: SocketAddr,
    patience: Duration,
) -> Result<Outcome> {
    // A port would be a protocol number to a raw socket.
    let destination = SocketAddr::new(destination.ip(), 0);
    let payload = format!("lockne {} {:?}", std::process::id(), Instant::now());
    let request = request(destination, payload.as_bytes());
    option::send(socket, &request, Some(destination), probe)?;

    let deadline = Instant::now() + patience;
    let mut buffer = [MaybeUninit::uninit(); 512];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Outcome::Silence);
        }
        socket.set_read_timeout(Some(left)).call("SO_RCVTIMEO")?;
        let message = match received(&mut buffer, |buffer| socket.recv(buffer)) {
            Ok(message) => message,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Outcome::Silence),
            Err(error) => return Err(error).call("recv"),
        };
        // Raw sockets of IPv4 give the IP header too, and all ICMP of the machine.
        let start = match (probe.action, destination, message.first()) {
            (Action::RawPing, SocketAddr::V4(_), Some(first)) => usize::from(first & 0x0f) * 4,
            _ => 0,
        };
        let is_reply = message.get(start).is_some_and(|kind| {
            *kind
                == if destination.is_ipv4() {
                    icmpv4::TYPE_ECHO_REPLY
                } else {
                    icmpv6::TYPE_ECHO_REPLY
                }
        });
        if is_reply && message.get(start + HEADER..) == Some(payload.as_bytes()) {
            return Ok(Outcome::Answered { saw: None });
        }
    }
}

pub(crate) fn request(destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let echo = IcmpEchoHeader { id: 1, seq: 1 };
    let mut bytes = Vec::new();
    if destination.is_ipv4() {
        let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), payload);
        bytes.extend(header.to_bytes());
    } else {
        // The kernel fills in the checksum, which depends on the source address.
        bytes.extend(Icmpv6Header::new(Icmpv6Type::EchoRequest(echo)).to_bytes());
    }
    bytes.extend(payload);
    bytes
}
