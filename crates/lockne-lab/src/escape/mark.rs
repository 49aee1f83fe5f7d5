//! Marks that a program sets by itself.

use io_uring::IoUring;
use socket2::{SockAddr, Socket};

use super::{
    Attempt, Result, Way,
    socket::{PAYLOAD, send_with, set},
    transport,
};
use crate::probe::Call;

/// A mark without our bits, as wg-quick's.
const OTHER: u32 = 0xca6c;

pub(super) const WAYS: &[Way] = &[
    Way::new(
        "mark-none",
        "a socket whose mark is taken away (`SO_MARK`)",
        |it| {
            let socket = it.udp()?;
            mark(&socket, 0)?;
            it.send(&socket)
        },
    ),
    Way::new("mark-other", "a connection with another mark", |it| {
        let socket = it.tcp()?;
        mark(&socket, OTHER)?;
        it.connect(&socket)
    }),
    Way::new("mark-ping", "an echo request without a mark", |it| {
        let socket = it.ping()?;
        mark(&socket, 0)?;
        socket
            .send_to(&it.echo(), &it.host())
            .call("sendto")
            .map(drop)
    }),
    Way::new("mark-raw", "a raw socket without a mark", |it| {
        let socket = it.raw_ping()?;
        mark(&socket, 0)?;
        socket
            .send_to(&it.echo(), &it.host())
            .call("sendto")
            .map(drop)
    }),
    Way::new(
        "mark-connected",
        "a connected socket whose mark is taken away",
        |it| {
            let socket = it.udp()?;
            socket.connect(&it.to.into()).call("connect")?;
            mark(&socket, 0)?;
            it.bind_device(&socket)?;
            socket.send(PAYLOAD).call("send").map(drop)
        },
    ),
    Way::new(
        "mark-io-uring",
        "a socket whose mark `io_uring` takes away",
        |it| {
            let mut ring = transport::ring(it, &IoUring::builder())?;
            let socket = ring.socket()?;
            ring.set(&socket, libc::SO_MARK, &0_u32.to_ne_bytes(), "SO_MARK")?;
            ring.send(&socket)
        },
    ),
    Way::new(
        "mark-datagram",
        "a datagram without a mark (`SO_MARK` beside it)",
        |it| marked(it, &it.udp()?, PAYLOAD, &it.to.into(), 0),
    ),
    Way::new(
        "mark-datagram-other",
        "a datagram with another mark",
        |it| marked(it, &it.udp()?, PAYLOAD, &it.to.into(), OTHER),
    ),
    Way::new(
        "mark-datagram-ping",
        "an echo request without a mark",
        |it| marked(it, &it.ping()?, &it.echo(), &it.host(), 0),
    ),
    Way::new("mark-datagram-raw", "a raw packet without a mark", |it| {
        marked(it, &it.raw_ping()?, &it.echo(), &it.host(), 0)
    }),
];

fn mark(socket: &Socket, mark: u32) -> Result {
    set(
        socket,
        libc::SOL_SOCKET,
        libc::SO_MARK,
        &mark.to_ne_bytes(),
        "SO_MARK",
    )
}

fn marked(it: &Attempt<'_>, socket: &Socket, payload: &[u8], to: &SockAddr, mark: u32) -> Result {
    let control = (libc::SOL_SOCKET, libc::SO_MARK, &mark.to_ne_bytes()[..]);
    send_with(it, socket, payload, to, control)
}
