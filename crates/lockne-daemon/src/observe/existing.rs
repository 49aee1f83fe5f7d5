//! Connections that were there before somebody watched, as the kernel lists its sockets.

use std::{collections::HashMap, fs, io, net::IpAddr};

use lockne_abi::{
    flow::{self, Flow},
    observe::Owner,
};

use super::owner;
use crate::{
    process,
    socket::{self, Listed},
};

/// `TCP_ESTABLISHED`, which a connected UDP socket has too.
const ESTABLISHED: u8 = 1;
/// `TCP_TIME_WAIT`: not a socket any more.
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// Lists those of the network namespace of the calling thread. `started` is left to the caller.
pub(super) fn connections() -> io::Result<Vec<Flow>> {
    let owners = owners();
    let is_connection = |socket: &Listed| {
        if socket.is_tcp() {
            ![TIME_WAIT, CLOSE, LISTEN].contains(&socket.tcp_state)
        } else {
            socket.tcp_state == ESTABLISHED
        }
    };
    let sockets = socket::all()?;
    let connections = sockets.iter().filter(|socket| is_connection(socket));
    Ok(connections
        .map(|socket| flow(socket, owners.get(&socket.inode)))
        .collect())
}

fn flow(socket: &Listed, owner: Option<&Owner>) -> Flow {
    let id = &socket.id;
    let cookie = u64::from_ne_bytes(id.cookie);
    let remote = bytes(id.destination_address);
    let is_tcp = socket.is_tcp();
    let words = [0, 8].map(|at| {
        let half = remote[at..at + 8].try_into().expect("eight bytes");
        u64::from_ne_bytes(half)
    });
    Flow {
        key: flow::key(cookie, (!is_tcp).then_some((words, id.destination_port))),
        mark: socket.mark,
        pid: owner.map_or(0, |owner| owner.pid),
        uid: socket.uid,
        cookie,
        local: bytes(id.source_address),
        remote,
        local_port: id.source_port,
        remote_port: id.destination_port,
        protocol: socket.protocol,
        state: if is_tcp { socket.tcp_state } else { 0 },
        flags: Flow::EXISTING,
        name: owner.map_or([0; 16], |owner| owner.name),
        ..Flow::default()
    }
}

fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Who has which socket open, by the socket's inode, of several the eldest. Processes that end meanwhile have none.
fn owners() -> HashMap<u64, Owner> {
    let mut owners = HashMap::new();
    for pid in process::eldest_first().unwrap_or_default() {
        let mut owner = None;
        let links = fs::read_dir(format!("/proc/{pid}/fd"));
        let links = links.into_iter().flatten();
        for link in links.flatten() {
            let target = fs::read_link(link.path()).unwrap_or_default();
            let inode = target
                .to_str()
                .and_then(|it| it.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            let Some(inode) = inode else { continue };
            let owner = *owner.get_or_insert_with(|| owner::owner_of(pid).unwrap_or_default());
            owners.entry(inode).or_insert(owner);
        }
    }
    owners
}
