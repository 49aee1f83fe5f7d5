//! A program without a policy that gives its sockets away.

use std::{
    fs, io,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    thread,
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::{Namespace, Service};

/// Gives away sockets of a network namespace until it is dropped.
#[derive(Debug)]
pub struct Helper {
    path: PathBuf,
    _service: Service,
}

/// What is asked of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Wish {
    pub(super) kind: Kind,
    pub(super) to: SocketAddr,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Kind {
    Udp,
    ConnectedUdp,
    Tcp,
    Ping,
    RawPing,
    Packet,
}

impl Helper {
    /// Serves at `path`, with sockets of `namespace`.
    ///
    /// # Errors
    ///
    /// When the path is taken or the namespace cannot be entered.
    pub fn start(namespace: &Namespace, path: &Path) -> Result<Self, crate::namespace::Error> {
        let place = path.to_owned();
        let service = namespace.serve("helper", async move || {
            let listener = UnixListener::bind(&place)?;
            fs::set_permissions(&place, fs::Permissions::from_mode(0o666))?;
            // Not of the loop: the threads that it makes are in the namespace too.
            thread::Builder::new()
                .name("lab-helper".to_owned())
                .spawn(move || serve(&listener))
        })?;
        Ok(Self {
            path: path.to_owned(),
            _service: service,
        })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // A wish that is none ends it.
        drop(UnixStream::connect(&self.path));
        drop(fs::remove_file(&self.path));
    }
}

fn serve(listener: &UnixListener) {
    // Kept open: a socket is only taken out of a program that still has it.
    let mut given = Vec::new();
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        match grant(&stream) {
            Ok(Some(socket)) => given.push(socket),
            Ok(None) => return,
            Err(error) => tracing::debug!(%error, "a wish was not granted"),
        }
    }
}

fn grant(stream: &UnixStream) -> io::Result<Option<Socket>> {
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let wish: Wish = serde_json::from_str(&line)?;
    let domain = Domain::for_address(wish.to);
    let icmp = if wish.to.is_ipv4() {
        Protocol::ICMPV4
    } else {
        Protocol::ICMPV6
    };
    let socket = match wish.kind {
        Kind::Udp | Kind::ConnectedUdp => Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)),
        Kind::Tcp => Socket::new(domain, Type::STREAM, Some(Protocol::TCP)),
        Kind::Ping => Socket::new(domain, Type::DGRAM, Some(icmp)),
        Kind::RawPing => Socket::new(domain, Type::RAW, Some(icmp)),
        Kind::Packet => Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0))),
    }?;
    if matches!(wish.kind, Kind::ConnectedUdp) {
        socket.connect(&wish.to.into())?;
    }
    crate::probe::give_fd(stream, socket.as_fd())?;
    writeln!(&*stream, "{} {}", std::process::id(), socket.as_raw_fd())?;
    Ok(Some(socket))
}
