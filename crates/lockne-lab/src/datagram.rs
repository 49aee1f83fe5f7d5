//! The part of the server that speaks in datagrams: UDP, and the pings that the kernel answers.

use std::{
    io,
    mem::MaybeUninit,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::event::{EventfdFlags, eventfd};
use socket2::{Domain, Protocol, Socket, Type};

use crate::origin::{Service, Visits};

/// Answers UDP and listens to pings on a thread of its own.
#[derive(Debug)]
pub(crate) struct Datagrams {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// One per address, or an answer could leave by another address than the question came to.
    udp: Vec<UdpSocket>,
    pings: Vec<(Socket, EchoRequest)>,
    visits: Visits,
    wake: OwnedFd,
    stopping: AtomicBool,
    /// Held while the queues are emptied, so that who waits for it finds all of it recorded.
    draining: Mutex<()>,
}

/// How an echo request looks to a raw socket.
#[derive(Clone, Copy, Debug)]
struct EchoRequest {
    kind: u8,
    has_ip_header: HasIpHeader,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HasIpHeader {
    Yes,
    No,
}

impl Datagrams {
    /// Starts in the namespace of the calling thread.
    pub(crate) fn start(addresses: &[SocketAddr], visits: Visits) -> io::Result<Self> {
        let udp = addresses.iter().map(|address| {
            let socket = UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        let listen = |domain, protocol, request| -> io::Result<_> {
            let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
            socket.set_nonblocking(true)?;
            socket.set_recv_buffer_size(4 << 20)?;
            Ok((socket, request))
        };
        let v4 = EchoRequest {
            kind: etherparse::icmpv4::TYPE_ECHO_REQUEST,
            has_ip_header: HasIpHeader::Yes,
        };
        let v6 = EchoRequest {
            kind: etherparse::icmpv6::TYPE_ECHO_REQUEST,
            has_ip_header: HasIpHeader::No,
        };
        let shared = Arc::new(Shared {
            udp: udp.collect::<io::Result<_>>()?,
            pings: vec![
                listen(Domain::IPV4, Protocol::ICMPV4, v4)?,
                listen(Domain::IPV6, Protocol::ICMPV6, v6)?,
            ],
            visits,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopping: AtomicBool::new(false),
            draining: Mutex::new(()),
        });

        let serving = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("lab-datagrams".to_owned())
            .spawn(move || serving.serve())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Records and answers what has arrived by now.
    pub(crate) fn drain(&self) {
        self.shared.drain();
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // It fails only when the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("the datagram server of the lab panicked");
        }
    }
}

impl Shared {
    fn serve(&self) {
        let udp = self.udp.iter().map(AsFd::as_fd);
        let pings = self.pings.iter().map(|(socket, _)| socket.as_fd());
        let all = udp.chain(pings).chain([self.wake.as_fd()]);
        let mut ready: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        while !self.stopping.load(Ordering::Acquire) {
            // Only a signal can interrupt, and then the queues are as good to look at.
            let _ = poll(&mut ready, PollTimeout::NONE);
            self.drain();
        }
    }

    fn drain(&self) {
        let _draining = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        for socket in &self.udp {
            let mut buffer = [0; 64];
            while let Some((_, from)) = next(socket.recv_from(&mut buffer)) {
                self.visits.record(Service::Udp, from.ip());
                // Whoever asked may be unreachable by now, which is nothing to the server.
                let _ = socket.send_to(crate::origin::answer(from).as_bytes(), from);
            }
        }
        for (socket, request) in &self.pings {
            let mut buffer = [MaybeUninit::uninit(); 128];
            while let Some((length, from)) = next(socket.recv_from(&mut buffer)) {
                let read = &buffer[..length];
                // SAFETY: the kernel wrote so many bytes.
                let bytes: &[u8] =
                    unsafe { std::slice::from_raw_parts(read.as_ptr().cast(), read.len()) };
                if request.is_in(bytes)
                    && let Some(from) = from.as_socket()
                {
                    self.visits.record(Service::Ping, from.ip());
                }
            }
        }
    }
}

impl EchoRequest {
    fn is_in(self, bytes: &[u8]) -> bool {
        let header = match (self.has_ip_header, bytes.first()) {
            (HasIpHeader::Yes, Some(first)) => usize::from(first & 0x0f) * 4,
            _ => 0,
        };
        bytes.get(header) == Some(&self.kind)
    }
}

/// What was received, if anything waits. Errors of earlier answers are skipped.
fn next<T>(mut received: io::Result<T>) -> Option<T> {
    received.as_mut().ok()?;
    received.ok()
}
