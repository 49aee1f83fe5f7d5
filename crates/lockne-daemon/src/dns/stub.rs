//! Asks the tunnel's resolver for sockets that cannot: those bound to another address of this machine, and
//! those of the other IP version.
//!
//! One stub for each policy. A filter on its sockets lets nothing in but what has the policy's mark,
//! so no other program can ask, and its own sockets have the mark too, so they go through the tunnel
//! or nowhere. It hands bytes on as they are. Its ports are below 1024: when the daemon is dead, no
//! ordinary user can take the place of a stub.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lockne_abi::MarkField;
use lockne_core::policy::PolicyId;
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tracing::debug;

use super::{DNS, loopback};

/// How many questions of a policy can be open at once; further ones wait in the sockets' queues.
const OPEN: usize = 128;
/// How long one resolver may take before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a connection may last.
const CONNECTION: Duration = Duration::from_secs(30);
/// The largest answer.
const LARGEST: usize = 65_535;
/// Where few services are.
const PORTS: std::ops::RangeInclusive<u16> = 640..=852;

/// The stub of a policy; closed when dropped.
pub(crate) struct Stub {
    v4: Option<u16>,
    v6: Option<u16>,
    resolvers: Arc<Mutex<Vec<IpAddr>>>,
    serving: Vec<JoinHandle<()>>,
}

impl Stub {
    /// Opens the stub of policy `id` on both loopback addresses, as far as this kernel has them.
    pub(crate) fn open(field: MarkField, id: PolicyId) -> io::Result<Self> {
        let mut stub = Self {
            v4: None,
            v6: None,
            resolvers: Arc::default(),
            serving: Vec::new(),
        };
        let asker = Asker {
            mark: field.mark(id.get()),
            resolvers: Arc::clone(&stub.resolvers),
            open: Arc::new(Semaphore::new(OPEN)),
        };
        stub.v4 = Some(stub.listen(false, field, &asker)?);
        stub.v6 = stub.listen(true, field, &asker).ok();
        Ok(stub)
    }

    /// Asks these from now on, the first one first.
    pub(crate) fn ask(&self, resolvers: &[IpAddr]) {
        *lock(&self.resolvers) = resolvers.to_vec();
    }

    /// The port on the loopback address.
    pub(crate) fn port(&self, is_v6: bool) -> Option<u16> {
        if is_v6 { self.v6 } else { self.v4 }
    }

    fn listen(&mut self, is_v6: bool, field: MarkField, asker: &Asker) -> io::Result<u16> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for port in PORTS.rev() {
            let address = SocketAddr::new(loopback(is_v6), port);
            match sockets(address, field, asker.mark) {
                Ok((udp, tcp)) => {
                    self.serving
                        .push(tokio::spawn(datagrams(udp, asker.clone())));
                    self.serving
                        .push(tokio::spawn(connections(tcp, asker.clone())));
                    return Ok(port);
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        for task in &self.serving {
            task.abort();
        }
    }
}

fn sockets(
    address: SocketAddr,
    field: MarkField,
    mark: u32,
) -> io::Result<(UdpSocket, TcpListener)> {
    let open = |kind, protocol| {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        socket.attach_filter(&only(field.mask(), mark))?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok::<_, io::Error>(socket)
    };
    let udp = open(Type::DGRAM, Protocol::UDP)?;
    let tcp = open(Type::STREAM, Protocol::TCP)?;
    tcp.listen(16)?;
    Ok((
        UdpSocket::from_std(udp.into())?,
        TcpListener::from_std(tcp.into())?,
    ))
}

/// A filter that lets in what has `mark` in these bits.
fn only(bits: u32, mark: u32) -> [SockFilter; 5] {
    // linux/filter.h: negative offsets read what is known of a packet beside its bytes.
    const MARK: u32 = 0xffff_f000 + 20;
    const LOAD: u16 = 0x20;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD, 0, 0, MARK),
        SockFilter::new(AND, 0, 0, bits),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, mark),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// Asks on, under the policy's mark.
#[derive(Clone)]
struct Asker {
    mark: u32,
    resolvers: Arc<Mutex<Vec<IpAddr>>>,
    open: Arc<Semaphore>,
}

async fn datagrams(socket: UdpSocket, asker: Asker) {
    let socket = Arc::new(socket);
    let mut open = JoinSet::new();
    let mut question = vec![0; LARGEST];
    loop {
        let Ok(permit) = Arc::clone(&asker.open).acquire_owned().await else {
            return;
        };
        // An error is that of an answer which found nobody.
        let Ok((length, from)) = socket.recv_from(&mut question).await else {
            continue;
        };
        let question = question[..length].to_vec();
        let (socket, asker) = (Arc::clone(&socket), asker.clone());
        open.spawn(async move {
            match asker.datagram(&question).await {
                Ok(answer) => drop(socket.send_to(&answer, from).await),
                // The program asks again, or gives up.
                Err(error) => debug!(%error, "a question has no answer"),
            }
            drop(permit);
        });
        while open.try_join_next().is_some() {}
    }
}

async fn connections(listener: TcpListener, asker: Asker) {
    let mut open = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&asker.open).acquire_owned().await else {
            return;
        };
        let Ok((mut near, _)) = listener.accept().await else {
            // Too many open files, mostly: not at once again.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let asker = asker.clone();
        open.spawn(async move {
            let carried = async {
                let mut far = asker.connection().await?;
                copy_bidirectional(&mut near, &mut far).await
            };
            if let Ok(Err(error)) = timeout(CONNECTION, carried).await {
                debug!(%error, "a connection for questions broke");
            }
            drop(permit);
        });
        while open.try_join_next().is_some() {}
    }
}

impl Asker {
    fn resolvers(&self) -> Vec<SocketAddr> {
        let resolvers = lock(&self.resolvers);
        resolvers
            .iter()
            .map(|address| SocketAddr::new(*address, DNS))
            .collect()
    }

    /// The first answer of a resolver.
    async fn datagram(&self, question: &[u8]) -> io::Result<Vec<u8>> {
        let mut last = io::Error::from(io::ErrorKind::NotConnected);
        for resolver in self.resolvers() {
            match timeout(PATIENCE, self.exchange(resolver, question)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => last = error,
                Err(late) => last = late.into(),
            }
        }
        Err(last)
    }

    async fn exchange(&self, resolver: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let domain = Domain::for_address(resolver);
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_mark(self.mark)?;
        socket.set_nonblocking(true)?;
        // From a port of its own, so that answers are as hard to forge as the program's own.
        socket.connect(&resolver.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        socket.send(question).await?;
        let mut answer = vec![0; LARGEST];
        loop {
            let length = socket.recv(&mut answer).await?;
            // Its number, by which the program knows it.
            if length >= 2 && answer.get(..2) == question.get(..2) {
                answer.truncate(length);
                return Ok(answer);
            }
        }
    }

    async fn connection(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::from(io::ErrorKind::NotConnected);
        for resolver in self.resolvers() {
            let socket = if resolver.is_ipv6() {
                TcpSocket::new_v6()
            } else {
                TcpSocket::new_v4()
            }?;
            SockRef::from(&socket).set_mark(self.mark)?;
            match timeout(PATIENCE, socket.connect(resolver)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(late) => last = late.into(),
            }
        }
        Err(last)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
