//! Sockets that somebody else made, or that were there before the policy.

use std::{
    io::{BufRead, BufReader, ErrorKind, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use socket2::Socket;

use super::{
    Attempt, Family, Result, Target, Way, Who,
    helper::{Kind, Wish},
    raw,
    socket::{PAYLOAD, check},
    transport,
};
use crate::probe::Call;

/// So many callers wait in line that the kernel need not answer them by `SYN` cookies, which belong to no
/// socket.
const ROOMY: i32 = 1024;
/// How long somebody has to call.
const CALLED_WITHIN: Duration = Duration::from_secs(8);
const ROOTS: &[Who] = &[Who::RootWithoutNetAdmin, Who::Root];

pub(super) const WAYS: &[Way] = &[
    Way::new(
        "passed-udp",
        "a socket that another program hands over (`SCM_RIGHTS`)",
        |it| it.send(&it.handed_over(Kind::Udp)?),
    ),
    Way::new("passed-tcp", "the same for a connection to be made", |it| {
        it.connect(&it.handed_over(Kind::Tcp)?)
    }),
    Way::new(
        "passed-fast-open",
        "the same with data in the first segment",
        |it| transport::fast_open(it, &it.handed_over(Kind::Tcp)?),
    ),
    Way::new("passed-bound", "the same, bound to the device", |it| {
        let socket = it.handed_over(Kind::Udp)?;
        it.bind_device(&socket)?;
        it.send(&socket)
    }),
    Way::new(
        "passed-connected-udp",
        "a connected socket that another program hands over",
        |it| {
            it.handed_over(Kind::ConnectedUdp)?
                .send(PAYLOAD)
                .call("send")
                .map(drop)
        },
    )
    .open_for(&Who::ALL),
    Way::new(
        "passed-ping",
        "a ping socket that another program hands over",
        |it| {
            let socket = it.handed_over(Kind::Ping)?;
            socket
                .send_to(&it.echo(), &it.host())
                .call("sendto")
                .map(drop)
        },
    )
    .open_for(&Who::ALL),
    Way::new(
        "passed-raw",
        "a raw socket that another program hands over",
        |it| {
            let socket = it.handed_over(Kind::RawPing)?;
            socket
                .send_to(&it.echo(), &it.host())
                .call("sendto")
                .map(drop)
        },
    )
    .open_for(&Who::ALL),
    Way::new(
        "passed-packet",
        "a packet socket that another program hands over",
        |it| raw::frame(it, &it.handed_over(Kind::Packet)?, libc::SOCK_RAW),
    )
    .open_for(&Who::ALL),
    Way::new(
        "taken-udp",
        "a socket taken out of another program (`pidfd_getfd`)",
        |it| it.send(&it.taken(Kind::Udp)?),
    ),
    Way::new(
        "taken-connected-udp",
        "a connected socket taken out of another program",
        |it| {
            it.taken(Kind::ConnectedUdp)?
                .send(PAYLOAD)
                .call("send")
                .map(drop)
        },
    )
    .open_for(ROOTS),
    Way::new(
        "inherited-udp",
        "a socket that was open before the policy",
        |it| it.send(&it.inherited()?),
    )
    .with(|it| it.udp()),
    Way::new(
        "inherited-tcp",
        "the same for a connection to be made",
        |it| it.connect(&it.inherited()?),
    )
    .with(|it| it.tcp()),
    Way::new(
        "inherited-fast-open",
        "the same with data in the first segment",
        |it| transport::fast_open(it, &it.inherited()?),
    )
    .with(|it| it.tcp()),
    Way::new("inherited-ping", "the same for echo requests", |it| {
        it.inherited()?
            .send_to(&it.echo(), &it.host())
            .call("sendto")
            .map(drop)
    })
    .with(|it| it.ping()),
    Way::new(
        "inherited-bound",
        "a socket that was bound to the device before the policy",
        |it| it.send(&it.inherited()?),
    )
    .with(|it| {
        let socket = it.udp()?;
        it.bind_device(&socket)?;
        Ok(socket)
    }),
    Way::new(
        "inherited-connected-udp",
        "a connected socket that was open before the policy",
        |it| it.inherited()?.send(PAYLOAD).call("send").map(drop),
    )
    .with(|it| {
        let socket = it.udp()?;
        socket.connect(&it.to.into()).call("connect")?;
        Ok(socket)
    }),
    Way::new(
        "inherited-packet",
        "a packet socket that was open before the policy",
        |it| raw::frame(it, &it.inherited()?, libc::SOCK_RAW),
    )
    .with(|_| raw::packet_socket(libc::SOCK_RAW))
    .open_for(&Who::ALL),
    Way::new(
        "accepted",
        "an answer to somebody who calls from the link",
        |it| {
            let listener = it.tcp()?;
            listener.set_reuse_address(true).call("SO_REUSEADDR")?;
            listener.bind(&it.source(it.to.port())).call("bind")?;
            accept(&listener, ROOMY)
        },
    )
    .to(Target::Caller)
    .in_the_lab(),
    Way::new("accepted-bound", "the same, bound to the device", |it| {
        let listener = it.tcp()?;
        it.bind_device(&listener)?;
        listener.bind(&it.source(it.to.port())).call("bind")?;
        accept(&listener, ROOMY)
    })
    .to(Target::Caller)
    .in_the_lab(),
    Way::new(
        "accepted-cookie",
        "the same while the line of callers is full, so that the kernel answers by `SYN` cookies",
        |it| {
            let listener = it.tcp()?;
            it.bind_device(&listener)?;
            listener.bind(&it.source(it.to.port())).call("bind")?;
            accept(&listener, 1)
        },
    )
    .to(Target::Caller)
    .only(&[Family::V4])
    .in_the_lab()
    .open_for(&Who::ALL),
    Way::new(
        "inherited-listener",
        "the same by a socket that listened before the policy",
        |it| accept(&it.inherited()?, ROOMY),
    )
    .with(|it| {
        let listener = it.tcp()?;
        listener.bind(&it.source(it.to.port())).call("bind")?;
        Ok(listener)
    })
    .to(Target::Caller)
    .in_the_lab(),
];

fn accept(listener: &Socket, backlog: i32) -> Result {
    listener.listen(backlog).call("listen")?;
    listener.set_nonblocking(true).call("O_NONBLOCK")?;
    let deadline = Instant::now() + CALLED_WITHIN;
    loop {
        match listener.accept() {
            Ok((caller, _)) => return caller.send(PAYLOAD).call("send").map(drop),
            Err(error) if error.kind() != ErrorKind::WouldBlock || Instant::now() > deadline => {
                return Err(error).call("accept");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

impl Attempt<'_> {
    fn ask(&self, kind: Kind) -> Result<std::os::unix::net::UnixStream> {
        let path = self
            .scene
            .helper
            .as_ref()
            .ok_or(ErrorKind::NotFound)
            .call("helper")?;
        let mut stream = std::os::unix::net::UnixStream::connect(path).call("connect to helper")?;
        let wish = Wish { kind, to: self.to };
        let json = serde_json::to_string(&wish).expect("a wish is plain data");
        writeln!(stream, "{json}").call("write to helper")?;
        Ok(stream)
    }

    fn handed_over(&self, kind: Kind) -> Result<Socket> {
        let stream = self.ask(kind)?;
        let received = crate::probe::receive_fd(&stream).call("recvmsg")?;
        Ok(received.ok_or(ErrorKind::NotFound).call("recvmsg")?.into())
    }

    fn taken(&self, kind: Kind) -> Result<Socket> {
        let stream = self.ask(kind)?;
        // The byte that the socket came with stays here; behind it stands where the original is.
        let handed = crate::probe::receive_fd(&stream).call("recvmsg")?;
        drop(handed);
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).call("read")?;
        let mut words = line.split_ascii_whitespace();
        let mut number = || -> Result<libc::c_int> {
            let number = words.next().and_then(|word| word.parse().ok());
            number.ok_or(ErrorKind::InvalidData).call("read")
        };
        let (pid, fd) = (number()?, number()?);
        // SAFETY: makes a descriptor.
        let pidfd = check(
            unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) },
            "pidfd_open",
        )?;
        // SAFETY: makes a descriptor.
        let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, fd, 0) };
        let taken = check(taken, "pidfd_getfd")?;
        let taken = libc::c_int::try_from(taken).expect("descriptors are small");
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        Ok(unsafe { OwnedFd::from_raw_fd(taken) }.into())
    }

    fn inherited(&self) -> Result<Socket> {
        let fd = self
            .case
            .inherited
            .ok_or(ErrorKind::NotFound)
            .call("inherit")?;
        // SAFETY: whoever prepared the attempt left this descriptor open for it alone.
        let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(fd) });
        debug_assert_eq!(socket.as_raw_fd(), fd);
        Ok(socket)
    }
}
