//! News of changes that others make.

use std::{
    collections::VecDeque,
    io,
    task::{Poll, ready},
};

use futures_util::{Stream, stream};
use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{AsyncSocket as _, Socket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use rtnetlink::MulticastGroup;
use rustix::io::Errno;

use super::{Error, Netlink, is};

/// Something changed, by us or by others; what it is like now is for
/// [`observe`](Netlink::observe) to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// An interface came, went, or changed.
    Link,
    /// An address came or went.
    Address,
    /// A route came or went. The kernel says nothing of IPv4 routes that go with their interface.
    Route,
    /// A rule came or went.
    Rule,
    /// There were more changes than the kernel could keep for us.
    Overflow,
}

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

impl Netlink {
    /// Reports changes of interfaces, addresses, routes and rules of both families.
    ///
    /// They come one by one and often many at once, so the caller waits a moment before it acts.
    /// The stream ends only if the socket breaks.
    ///
    /// # Errors
    ///
    /// If the kernel gives no netlink socket.
    pub fn watch() -> Result<impl Stream<Item = Change> + Unpin, Error> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(Error::Open)?;
        let groups = GROUPS
            .iter()
            .fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
        let address = SocketAddr::new(0, groups);
        socket.socket_mut().bind(&address).map_err(Error::Open)?;
        let mut pending = VecDeque::new();
        Ok(stream::poll_fn(move |context| {
            loop {
                if let Some(change) = pending.pop_front() {
                    return Poll::Ready(Some(change));
                }
                let error = match ready!(socket.poll_recv_from_full(context)) {
                    Ok((bytes, _)) => {
                        pending.extend(changes(&bytes));
                        continue;
                    }
                    Err(error) if is(&error, Errno::NOBUFS) => match empty(socket.socket_ref()) {
                        Ok(()) => return Poll::Ready(Some(Change::Overflow)),
                        Err(error) => error,
                    },
                    Err(error) => error,
                };
                tracing::error!(%error, "no more news of routes and interfaces");
                return Poll::Ready(None);
            }
        }))
    }
}

/// Reads `socket` until nothing is left.
///
/// The kernel drops on, without a word, until the socket was read empty (`netlink_overrun` and
/// `netlink_rcv_wake`). So what is left is not worth telling, and only after it nothing is missed.
fn empty(socket: &Socket) -> io::Result<()> {
    loop {
        match socket.recv_from_full() {
            Err(error) if is(&error, Errno::WOULDBLOCK) => return Ok(()),
            Err(error) if !is(&error, Errno::NOBUFS) => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
}

fn changes(mut bytes: &[u8]) -> Vec<Change> {
    let mut changes = Vec::new();
    while let Ok(message) = NetlinkBuffer::new_checked(bytes) {
        changes.extend(change(message.message_type()));
        let length = message.length() as usize;
        // Messages start at multiples of four.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    changes
}

/// Values from `linux/rtnetlink.h`.
fn change(message_type: u16) -> Option<Change> {
    match message_type {
        16 | 17 => Some(Change::Link),
        20 | 21 => Some(Change::Address),
        24 | 25 => Some(Change::Route),
        32 | 33 => Some(Change::Rule),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_messages_in_one_read_are_all_told() {
        let message = |kind: u16, length: u32| {
            let mut bytes = vec![0; length.next_multiple_of(4) as usize];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes
        };
        let bytes = [message(16, 18), message(99, 16), message(33, 20)].concat();

        assert_eq!(changes(&bytes), [Change::Link, Change::Rule]);
        assert_eq!(changes(&bytes[..30]), [Change::Link]);
    }
}
