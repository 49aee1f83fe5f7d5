//! Sends by every way that needs no answer, again and again.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use socket2::{SockAddr, Socket};

use super::{
    Action, Outcome, Probe,
    act::{Call, Result, destination, open},
    icmp, option, process,
};

/// How many TCP connections are open at a time: a handshake needs a moment on a busy machine.
const CONNECTIONS: usize = 300;
/// At least so long between two rounds, so that nobody's queue overflows.
const PAUSE: Duration = Duration::from_millis(10);
/// At most.
const LONG_PAUSE: Duration = Duration::from_millis(250);
/// A round is such a part of its pause: where sending is slow, so are those that carry it. In an emulated machine with the
/// kernel's WireGuard, sending is some five times as fast as the provider, who then has the packets of minutes to work off.
const PART: u32 = 100;

/// Hammers until standard input has something, or ends.
pub(super) fn hammer(probe: &Probe) -> Outcome {
    let mut hammer = Hammer {
        to: destination(probe),
        probe,
        older: None,
        connected: None,
        connections: VecDeque::new(),
    };
    let (mut sent, mut refused, mut is_first) = (0, 0, true);
    loop {
        let start = Instant::now();
        for result in hammer.round() {
            match result {
                Ok(()) => sent += 1,
                Err(_) => refused += 1,
            }
        }
        if std::mem::take(&mut is_first) {
            process::say_ready();
        }
        let pause = (start.elapsed() * PART).clamp(PAUSE, LONG_PAUSE);
        if process::is_told_to_go(pause) {
            return Outcome::Sent { sent, refused };
        }
    }
}

struct Hammer<'a> {
    probe: &'a Probe,
    to: SocketAddr,
    /// Made in the first round and used ever since.
    older: Option<Socket>,
    /// The same, with the route that it chose when it connected.
    connected: Option<Socket>,
    connections: VecDeque<Socket>,
}

impl Hammer<'_> {
    fn round(&mut self) -> [Result<()>; 6] {
        [
            self.udp_by_older_socket(),
            self.udp_by_connected_socket(),
            self.udp(),
            self.tcp(),
            self.ping(Action::Ping),
            self.ping(Action::RawPing),
        ]
    }

    fn open(&self, action: Action) -> Result<Socket> {
        open(&Probe {
            action,
            ..self.probe.clone()
        })
    }

    fn udp(&self) -> Result<()> {
        let socket = self.open(Action::UdpUnconnected)?;
        option::send(&socket, b"?", Some(self.to), self.probe)
    }

    fn udp_by_older_socket(&mut self) -> Result<()> {
        if self.older.is_none() {
            self.older = Some(self.open(Action::UdpUnconnected)?);
        }
        let socket = self.older.as_ref().expect("made just now");
        option::send(socket, b"?", Some(self.to), self.probe)
    }

    fn udp_by_connected_socket(&mut self) -> Result<()> {
        if self.connected.is_none() {
            let socket = self.open(Action::UdpConnected)?;
            socket.connect(&SockAddr::from(self.to)).call("connect")?;
            self.connected = Some(socket);
        }
        let socket = self.connected.as_ref().expect("made just now");
        option::send(socket, b"?", None, self.probe)
    }

    fn tcp(&mut self) -> Result<()> {
        let socket = self.open(Action::Tcp)?;
        socket.set_nonblocking(true).call("O_NONBLOCK")?;
        match socket.connect(&SockAddr::from(self.to)) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                return Err(error).call("connect");
            }
            _ => self.connections.push_back(socket),
        }
        if self.connections.len() > CONNECTIONS {
            self.connections.pop_front();
        }
        Ok(())
    }

    fn ping(&self, action: Action) -> Result<()> {
        let socket = self.open(action)?;
        let to = SocketAddr::new(self.to.ip(), 0);
        let request = icmp::request(to, b"lockne");
        option::send(&socket, &request, Some(to), self.probe)
    }
}
