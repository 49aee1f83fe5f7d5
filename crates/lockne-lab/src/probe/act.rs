//! The actions themselves.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::errno::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Action, Form, Outcome, Probe, Report, SocketFrom, hammer, icmp, option, process};

/// A download that nobody cuts ends by itself, so that a test cannot hang.
const HELD_AT_MOST: Duration = Duration::from_mins(2);

/// A call that failed.
pub(crate) struct Failed {
    pub(crate) call: &'static str,
    pub(crate) error: io::Error,
}

pub(super) type Result<T> = std::result::Result<T, Failed>;

/// Gives a failed call its name.
pub(crate) trait Call<T> {
    fn call(self, call: &'static str) -> Result<T>;
}

impl<T, E: Into<io::Error>> Call<T> for std::result::Result<T, E> {
    fn call(self, call: &'static str) -> Result<T> {
        self.map_err(|error| Failed {
            call,
            error: error.into(),
        })
    }
}

pub(super) fn act(probe: &Probe) -> Report {
    let mut started = Instant::now();
    let mut local = None;
    let outcome = attempt(probe, &mut started, &mut local).unwrap_or_else(Outcome::from);
    Report {
        outcome,
        local,
        elapsed_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        pid: std::process::id(),
    }
}

fn attempt(
    probe: &Probe,
    started: &mut Instant,
    local: &mut Option<SocketAddr>,
) -> Result<Outcome> {
    let destination = destination(probe);
    if let Action::Forks(children) = probe.action {
        return Ok(fork_senders(probe, children));
    }
    if probe.action == Action::Hammer {
        return Ok(hammer::hammer(probe));
    }

    let patience = Duration::from_millis(probe.patience_ms);
    let socket = match probe.socket {
        SocketFrom::New => open(probe)?,
        SocketFrom::BeforeGo | SocketFrom::ConnectedBeforeGo => {
            let socket = open(probe)?;
            if probe.socket == SocketFrom::ConnectedBeforeGo {
                connect(&socket, destination, patience)?;
            }
            process::say_ready();
            process::wait_for_go().call("read")?;
            socket
        }
        SocketFrom::AfterGo => {
            process::say_ready();
            process::wait_for_go().call("read")?;
            open(probe)?
        }
        SocketFrom::Inherited(number) | SocketFrom::InheritedConnected(number) => {
            // SAFETY: whoever starts the probe left this descriptor open for it, and nobody here
            // knows of it.
            let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(number) });
            option::apply(&socket, probe)?;
            socket
        }
        SocketFrom::Received => {
            process::say_ready();
            let received = process::wait_for_go().call("recvmsg")?;
            let socket = received.ok_or(io::ErrorKind::NotFound).call("recvmsg")?;
            let socket = Socket::from(socket);
            option::apply(&socket, probe)?;
            socket
        }
    };
    *started = Instant::now();

    let outcome = exchange(probe, &socket, destination, patience);
    *local = socket.local_addr().ok().and_then(|it| it.as_socket());
    outcome
}

fn exchange(
    probe: &Probe,
    socket: &Socket,
    destination: SocketAddr,
    patience: Duration,
) -> Result<Outcome> {
    let needs_connection = matches!(
        probe.action,
        Action::Tcp | Action::Mptcp | Action::Hold | Action::UdpConnected
    );
    if needs_connection && !probe.socket.is_connected() {
        connect(socket, destination, patience)?;
    }
    socket
        .set_read_timeout(Some(patience))
        .call("SO_RCVTIMEO")?;
    match probe.action {
        Action::Tcp | Action::Mptcp => read_answer(socket),
        Action::Hold => hold(socket),
        Action::UdpConnected => {
            option::send(socket, b"?", None, probe)?;
            read_answer(socket)
        }
        Action::UdpUnconnected => {
            option::send(socket, b"?", Some(destination), probe)?;
            read_answer(socket)
        }
        Action::Ping | Action::RawPing => icmp::ping(probe, socket, destination, patience),
        Action::Forks(_) | Action::Hammer => unreachable!("it has no socket of its own"),
    }
}

/// Makes the socket for the action, with all that is asked of it.
pub(super) fn open(probe: &Probe) -> Result<Socket> {
    let domain = Domain::for_address(destination(probe));
    let icmp = if domain == Domain::IPV4 {
        Protocol::ICMPV4
    } else {
        Protocol::ICMPV6
    };
    let (kind, protocol) = match probe.action {
        Action::Tcp | Action::Hold => (Type::STREAM, Protocol::TCP),
        Action::Mptcp => (Type::STREAM, Protocol::MPTCP),
        Action::UdpConnected | Action::UdpUnconnected | Action::Forks(_) | Action::Hammer => {
            (Type::DGRAM, Protocol::UDP)
        }
        Action::Ping => (Type::DGRAM, icmp),
        Action::RawPing => (Type::RAW, icmp),
    };
    let socket = Socket::new(domain, kind, Some(protocol)).call("socket")?;
    option::apply(&socket, probe)?;
    Ok(socket)
}

pub(super) fn destination(probe: &Probe) -> SocketAddr {
    match (probe.options.form, probe.to) {
        (Form::V4Mapped, SocketAddr::V4(to)) => {
            SocketAddr::new(to.ip().to_ipv6_mapped().into(), to.port())
        }
        (_, to) => to,
    }
}

fn connect(socket: &Socket, destination: SocketAddr, patience: Duration) -> Result<()> {
    socket
        .connect_timeout(&SockAddr::from(destination), patience)
        .call("connect")
}

/// Reads `ADDRESS PORT\n`.
fn read_answer(socket: &Socket) -> Result<Outcome> {
    let mut answer = Vec::new();
    let mut buffer = [MaybeUninit::uninit(); 64];
    while !answer.ends_with(b"\n") {
        let bytes = received(&mut buffer, |buffer| socket.recv(buffer)).call("recv")?;
        if bytes.is_empty() {
            return Ok(ended(answer.len() as u64, "closed"));
        }
        answer.extend_from_slice(bytes);
    }

    let text = String::from_utf8_lossy(&answer);
    let mut words = text.split_ascii_whitespace();
    let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
    let port = words.next().and_then(|word| word.parse().ok());
    let saw = address.zip(port).map(SocketAddr::from);
    Ok(Outcome::Answered { saw })
}

fn hold(socket: &Socket) -> Result<Outcome> {
    socket
        .send(b"GET /bytes/endless/1000000 HTTP/1.1\r\nHost: origin\r\n\r\n")
        .call("send")?;
    let deadline = Instant::now() + HELD_AT_MOST;
    let mut total = 0;
    let mut buffer = [MaybeUninit::uninit(); 1 << 13];
    while Instant::now() < deadline {
        // What comes after it shows that it lives.
        let is_over = total > 0 && process::is_told_to_go(Duration::ZERO);
        match received(&mut buffer, |buffer| socket.recv(buffer)) {
            Ok([]) => return Ok(ended(total, "closed")),
            Ok(bytes) => {
                if total == 0 {
                    process::say_ready();
                }
                total += bytes.len() as u64;
                if is_over {
                    return Ok(ended(total, "alive"));
                }
            }
            Err(error) if is_silence(&error) => return Ok(ended(total, "silence")),
            Err(error) => return Ok(ended(total, &errno_name(&error))),
        }
    }
    Ok(ended(total, "too long"))
}

fn fork_senders(probe: &Probe, children: u32) -> Outcome {
    let send_one = || -> Result<()> {
        let socket = open(probe)?;
        option::send(&socket, b"?", Some(destination(probe)), probe)
    };
    let mut sent = 0;
    for _ in 0..children {
        let outcome = process::fork_and_wait(|| u8::from(send_one().is_err()));
        sent += u32::from(outcome == Ok(Some(0)));
    }
    Outcome::Sent {
        sent,
        refused: children - sent,
    }
}

/// What `receive` wrote to `buffer`.
pub(super) fn received(
    buffer: &mut [MaybeUninit<u8>],
    receive: impl FnOnce(&mut [MaybeUninit<u8>]) -> io::Result<usize>,
) -> io::Result<&[u8]> {
    let length = receive(buffer)?;
    let read = &buffer[..length];
    // SAFETY: the kernel wrote so many bytes.
    Ok(unsafe { std::slice::from_raw_parts(read.as_ptr().cast(), read.len()) })
}

fn ended(bytes: u64, why: &str) -> Outcome {
    Outcome::Ended {
        bytes,
        why: why.to_owned(),
    }
}

fn is_silence(error: &io::Error) -> bool {
    // `connect_timeout` makes up an error of its own; the kernel's has a number.
    error.kind() == io::ErrorKind::WouldBlock
        || error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none()
}

pub(crate) fn errno_name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("{:?}", Errno::from_raw(number)),
        None => error.kind().to_string(),
    }
}

impl From<Failed> for Outcome {
    fn from(failed: Failed) -> Self {
        if is_silence(&failed.error) {
            return Self::Silence;
        }
        Self::Refused {
            call: failed.call.to_owned(),
            errno: errno_name(&failed.error),
        }
    }
}

/// The IPv4 address that stands for any on a socket of IPv6 that speaks IPv4.
pub(super) const ANY_MAPPED: std::net::Ipv6Addr = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
