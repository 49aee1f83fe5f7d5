//! The sockets that still carry a policy's mark.
//!
//! A TCP socket outlives its process until its last segment is acknowledged. Once the rules are gone
//! such a segment would leave by the default route, with the tunnel's address in it. So a daemon that ends
//! with its last job waits for them, and whoever takes the rules away cuts them first.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU8,
};

use lockne_abi::MarkField;
use lockne_core::policy::PolicyId;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
    message::SockDiagDestroy,
};
use netlink_sys::{Socket, SocketAddr as Port, protocols::NETLINK_SOCK_DIAG};

/// Whether a TCP connection that carries a policy in `field` has something left to send.
///
/// The kernel answers only for the network namespace of the calling thread.
///
/// # Errors
///
/// Fails if the sockets cannot be listed.
pub fn is_sending(field: MarkField) -> io::Result<bool> {
    // `FIN_WAIT1`, `LAST_ACK` and `CLOSING` of the kernel's `include/net/tcp_states.h`: closed by the
    // program, but not acknowledged yet. In the states after them nothing is left to send.
    const UNACKNOWLEDGED: [u8; 3] = [4, 9, 11];
    let is_sending = |socket: &Listed| {
        socket.policy(field).is_some() && UNACKNOWLEDGED.contains(&socket.tcp_state)
    };
    for family in FAMILIES {
        if list(family, IPPROTO_TCP)?.iter().any(is_sending) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The policies that TCP connections carry, in whatever state, with or without a process.
///
/// The kernel answers only for the network namespace of the calling thread.
///
/// # Errors
///
/// Fails if the sockets cannot be listed.
pub fn policies(field: MarkField) -> io::Result<BTreeSet<PolicyId>> {
    policies_by(&[IPPROTO_TCP], field)
}

/// Whether a program has a connection by TCP or UDP that carries a policy in `field`.
pub(crate) fn has_connections(field: MarkField) -> io::Result<bool> {
    Ok(!connected_policies(field)?.is_empty())
}

/// The policies that connections of programs by TCP or UDP carry.
pub(crate) fn connected_policies(field: MarkField) -> io::Result<BTreeSet<PolicyId>> {
    let all = all()?.into_iter();
    let connected = all.filter(|it| it.inode != 0 && it.is_connected());
    Ok(connected.filter_map(|it| it.policy(field)).collect())
}

/// Cuts every TCP connection, and every UDP socket, that carries a policy in `field`; says how many.
///
/// The programs that own them see `ECONNABORTED`. The kernel answers only for the network namespace
/// of the calling thread. Needs `CONFIG_INET_DIAG_DESTROY` (Linux 4.5), as every distribution has it.
///
/// # Errors
///
/// Fails if the sockets cannot be listed.
pub fn cut_marked(field: MarkField) -> io::Result<u32> {
    cut_where(|socket| socket.policy(field).is_some())
}

/// Cuts the connections, by TCP or UDP, of the sockets with these cookies; says how many.
///
/// The programs that own them see `ECONNABORTED`. The kernel answers only for the network namespace
/// of the calling thread.
///
/// # Errors
///
/// As [`cut_marked`].
pub fn cut(cookies: &BTreeSet<u64>) -> io::Result<u32> {
    cut_where(|socket| {
        socket.is_connected() && cookies.contains(&u64::from_ne_bytes(socket.id.cookie))
    })
}

/// A socket as the kernel lists it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    family: u8,
    pub(crate) protocol: u8,
    pub(crate) id: SocketId,
    /// 0 while no program has it: it waits to be accepted, or was closed.
    pub(crate) inode: u64,
    pub(crate) uid: u32,
    pub(crate) mark: u32,
    /// By `include/net/tcp_states.h` of the kernel.
    pub(crate) tcp_state: u8,
}

/// Every TCP and UDP socket of the network namespace of the calling thread.
pub(crate) fn all() -> io::Result<Vec<Listed>> {
    let mut all = Vec::new();
    for family in FAMILIES {
        for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
            all.extend(list(family, protocol)?);
        }
    }
    Ok(all)
}

impl Listed {
    fn new(family: u8, protocol: u8, socket: InetResponse) -> Self {
        let mark = socket.nlas.iter().find_map(|nla| match nla {
            Nla::Mark(mark) => Some(*mark),
            _ => None,
        });
        Self {
            family,
            protocol,
            inode: socket.header.inode.into(),
            uid: socket.header.uid,
            mark: mark.unwrap_or_default(),
            tcp_state: socket.header.state,
            id: socket.header.socket_id,
        }
    }

    /// As TCP's states are called; UDP knows two of them.
    pub(crate) fn state(&self) -> &'static str {
        /// From 1 on.
        const STATES: [&str; 12] = [
            "established",
            "syn-sent",
            "syn-received",
            "fin-wait-1",
            "fin-wait-2",
            "time-wait",
            "open",
            "close-wait",
            "last-ack",
            "listen",
            "closing",
            "syn-received",
        ];
        let number = usize::from(self.tcp_state);
        let name = number.checked_sub(1).and_then(|at| STATES.get(at));
        name.copied().unwrap_or("unknown")
    }

    pub(crate) const fn is_tcp(&self) -> bool {
        self.protocol == IPPROTO_TCP
    }

    pub(crate) fn is_listening(&self) -> bool {
        self.is_tcp() && self.state() == "listen"
    }

    /// Whether it has somebody at its other end, or is about to.
    pub(crate) fn is_connected(&self) -> bool {
        !matches!(self.state(), "open" | "listen")
    }

    pub(crate) fn local(&self) -> SocketAddr {
        let address = self.id.source_address.to_canonical();
        SocketAddr::new(address, self.id.source_port)
    }

    /// Where it is connected to.
    pub(crate) fn remote(&self) -> Option<SocketAddr> {
        let address = self.id.destination_address.to_canonical();
        self.is_connected()
            .then(|| SocketAddr::new(address, self.id.destination_port))
    }

    /// The policy that it carries.
    fn policy(&self, field: MarkField) -> Option<PolicyId> {
        NonZeroU8::new(field.policy(self.mark)).map(PolicyId)
    }

    /// Cuts its connection; returns whether it had one still. The program sees `ECONNABORTED`.
    pub(crate) fn cut(&self) -> io::Result<bool> {
        let request = request(self.family, self.protocol, self.id.clone());
        let socket = send(
            NLM_F_REQUEST | NLM_F_ACK,
            NetlinkPayload::from(SockDiagDestroy::new(SockDiagMessage::InetRequest(request))),
        )?;
        let (datagram, _) = socket.recv_from_full()?;
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(&datagram)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        match message.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => match -error.raw_code() {
                libc::ENOENT => Ok(false),
                // What is left of a connection that has ended already, which old kernels do not take away.
                libc::EOPNOTSUPP if self.state() == "time-wait" => Ok(false),
                _ => Err(error.to_io()),
            },
            _ => Ok(true),
        }
    }
}

/// The policies that sockets of any kind carry, as far as the kernel lists them.
///
/// # Errors
///
/// Fails if the sockets cannot be listed.
pub fn all_policies(field: MarkField) -> io::Result<BTreeSet<PolicyId>> {
    /// `IPPROTO_RAW` of `linux/in.h`, which stands for all raw sockets.
    const RAW: u8 = 255;
    policies_by(&[IPPROTO_TCP, IPPROTO_UDP, RAW], field)
}

fn policies_by(protocols: &[u8], field: MarkField) -> io::Result<BTreeSet<PolicyId>> {
    let mut policies = BTreeSet::new();
    for family in FAMILIES {
        for protocol in protocols {
            let sockets = list(family, *protocol)?;
            policies.extend(sockets.iter().filter_map(|socket| socket.policy(field)));
        }
    }
    Ok(policies)
}

/// Cuts every connection that carries policy `id` in `field`, but for those whose far end `stays` or is on this
/// machine; says how many.
///
/// # Errors
///
/// As [`cut_marked`].
pub fn cut_policy(
    field: MarkField,
    id: PolicyId,
    stays: impl Fn(IpAddr) -> bool,
) -> io::Result<u32> {
    cut_where(|socket| {
        let SocketId {
            source_address,
            destination_address,
            destination_port,
            ..
        } = socket.id;
        let peer = destination_address.to_canonical();
        destination_port != 0
            && peer != source_address.to_canonical()
            && !stays(peer)
            && socket.policy(field) == Some(id)
    })
}

/// Cuts those of all TCP and UDP sockets that are meant; says how many.
fn cut_where(is_meant: impl Fn(&Listed) -> bool) -> io::Result<u32> {
    let mut cut = 0;
    for socket in all()?.iter().filter(|socket| is_meant(socket)) {
        cut += u32::from(socket.cut()?);
    }
    Ok(cut)
}

const FAMILIES: [u8; 2] = [AF_INET, AF_INET6];

fn request(family: u8, protocol: u8, socket_id: SocketId) -> InetRequest {
    InetRequest {
        family,
        protocol,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id,
    }
}

/// Every socket of a family and a protocol, in the network namespace of the calling thread.
fn list(family: u8, protocol: u8) -> io::Result<Vec<Listed>> {
    let any = if family == AF_INET {
        SocketId::new_v4()
    } else {
        SocketId::new_v6()
    };
    let message = SockDiagMessage::InetRequest(request(family, protocol, any));
    let socket = send(NLM_F_REQUEST | NLM_F_DUMP, message.into())?;
    let mut sockets = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    sockets.push(Listed::new(family, protocol, *response));
                }
                NetlinkPayload::Done(_) => return Ok(sockets),
                // A protocol that this kernel does not have owns no sockets.
                NetlinkPayload::Error(error) if error.raw_code() == -libc::ENOENT => {
                    return Ok(sockets);
                }
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }
}

fn send<M>(flags: u16, payload: NetlinkPayload<M>) -> io::Result<Socket>
where
    M: netlink_packet_core::NetlinkSerializable,
{
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.send_to(&bytes, &Port::new(0, 0), 0)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn marked_connection_is_cut_and_its_neighbour_is_not() {
        // Our own namespace is shared with whoever runs the tests, so the mark must be nobody's.
        let field = MarkField::new(16).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (stream, listener.accept().unwrap().0)
        };
        let (mut marked, _marked_end) = connect();
        let (neighbour, _neighbour_end) = connect();
        if socket2::SockRef::from(&marked)
            .set_mark(0x00a7_0000)
            .is_err()
        {
            eprintln!("not tried: marking a socket needs CAP_NET_ADMIN");
            return;
        }

        let cut = cut_marked(field).unwrap();

        assert_eq!(cut, 1);
        assert_eq!(
            marked.read(&mut [0]).unwrap_err().kind(),
            io::ErrorKind::ConnectionAborted
        );
        neighbour.set_nonblocking(true).unwrap();
        assert_eq!(
            (&neighbour).read(&mut [0]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }
}
