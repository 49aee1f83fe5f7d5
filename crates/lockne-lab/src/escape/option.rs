//! Options that pick a device or a source, which need no rights.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{
    Attempt, Family, Result, Target, Way,
    socket::{PAYLOAD, check, send_with, set},
};
use crate::probe::Call;

const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];

pub(super) const WAYS: &[Way] = &[
    Way::new("bind-device-udp", "a datagram by `SO_BINDTODEVICE`", |it| {
        let socket = it.udp()?;
        it.bind_device(&socket)?;
        it.send(&socket)
    }),
    Way::new("bind-device-connected-udp", "the same, connected", |it| {
        let socket = it.udp()?;
        it.bind_device(&socket)?;
        socket.connect(&it.to.into()).call("connect")?;
        socket.send(PAYLOAD).call("send").map(drop)
    }),
    Way::new(
        "bind-device-later",
        "a connected socket is bound to the device",
        |it| {
            let socket = it.udp()?;
            socket.connect(&it.to.into()).call("connect")?;
            it.bind_device(&socket)?;
            socket.send(PAYLOAD).call("send").map(drop)
        },
    ),
    Way::new(
        "bind-device-tcp",
        "a connection by `SO_BINDTODEVICE`",
        |it| {
            let socket = it.tcp()?;
            it.bind_device(&socket)?;
            it.connect(&socket)
        },
    ),
    Way::new(
        "bind-device-ping",
        "an echo request by `SO_BINDTODEVICE`",
        |it| {
            let socket = it.ping()?;
            it.bind_device(&socket)?;
            socket
                .send_to(&it.echo(), &it.host())
                .call("sendto")
                .map(drop)
        },
    ),
    Way::new("bind-index", "a datagram by `SO_BINDTOIFINDEX`", |it| {
        const SO_BINDTOIFINDEX: libc::c_int = 62;
        let socket = it.udp()?;
        let index = it.device()?.to_ne_bytes();
        set(
            &socket,
            libc::SOL_SOCKET,
            SO_BINDTOIFINDEX,
            &index,
            "SO_BINDTOIFINDEX",
        )?;
        it.send(&socket)
    }),
    Way::new(
        "bind-device-mapped",
        "IPv4 by a socket of IPv6, bound to the device",
        |it| {
            let socket =
                Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)).call("socket")?;
            it.bind_device(&socket)?;
            socket
                .send_to(PAYLOAD, &mapped(it))
                .call("sendto")
                .map(drop)
        },
    )
    .only(V4),
    Way::new(
        "becomes-v4",
        "a socket of IPv6 that becomes one of IPv4 (`IPV6_ADDRFORM`)",
        |it| {
            let socket =
                Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)).call("socket")?;
            it.bind_device(&socket)?;
            socket.connect(&mapped(it)).call("connect")?;
            let family = libc::AF_INET.to_ne_bytes();
            set(
                &socket,
                libc::IPPROTO_IPV6,
                libc::IPV6_ADDRFORM,
                &family,
                "IPV6_ADDRFORM",
            )?;
            socket.send(PAYLOAD).call("send").map(drop)
        },
    )
    .only(V4),
    Way::new("unicast-if", "a datagram by `IP_UNICAST_IF`", |it| {
        let socket = it.udp()?;
        let index = it.device()?.to_be().to_ne_bytes();
        let (level, name) = if it.is_v6() {
            (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_IF)
        } else {
            (libc::IPPROTO_IP, libc::IP_UNICAST_IF)
        };
        set(&socket, level, name, &index, "IP_UNICAST_IF")?;
        it.send(&socket)
    }),
    Way::new(
        "packet-info",
        "a datagram that names the device (`IP_PKTINFO`)",
        |it| by_packet_info(it, Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
    ),
    Way::new(
        "packet-info-source",
        "a datagram that names device and source",
        |it| by_packet_info(it, it.scene.source.0, it.scene.source.1),
    ),
    Way::new(
        "sticky-packet-info",
        "a socket whose datagrams all name the device",
        |it| {
            let socket = it.udp()?;
            let mut info = it.scene.source.1.octets().to_vec();
            info.extend(it.device()?.to_ne_bytes());
            set(
                &socket,
                libc::IPPROTO_IPV6,
                libc::IPV6_PKTINFO,
                &info,
                "IPV6_PKTINFO",
            )?;
            it.send(&socket)
        },
    )
    .only(V6),
    Way::new(
        "bind-source-udp",
        "a datagram from the machine's own address",
        |it| {
            let socket = it.udp()?;
            socket.bind(&it.source(0)).call("bind")?;
            it.send(&socket)
        },
    ),
    Way::new(
        "bind-source-tcp",
        "a connection from the machine's own address",
        |it| {
            let socket = it.tcp()?;
            socket.bind(&it.source(0)).call("bind")?;
            it.connect(&socket)
        },
    ),
    Way::new(
        "freebind",
        "a datagram from an address of nobody (`IP_FREEBIND`)",
        |it| {
            let socket = it.udp()?;
            let (level, name, from) = if it.is_v6() {
                let from = SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x99), 0));
                (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, from)
            } else {
                let from = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 99), 0));
                (libc::IPPROTO_IP, libc::IP_FREEBIND, from)
            };
            set(&socket, level, name, &1_i32.to_ne_bytes(), "IP_FREEBIND")?;
            socket.bind(&from.into()).call("bind")?;
            it.bind_device(&socket)?;
            it.send(&socket)
        },
    ),
    Way::new(
        "dont-route",
        "a datagram past the routes to a neighbour (`SO_DONTROUTE`)",
        |it| {
            let socket = it.udp()?;
            set(
                &socket,
                libc::SOL_SOCKET,
                libc::SO_DONTROUTE,
                &1_i32.to_ne_bytes(),
                "SO_DONTROUTE",
            )?;
            it.send(&socket)
        },
    )
    .to(Target::Neighbour),
    Way::new(
        "dont-route-flag",
        "the same for one datagram (`MSG_DONTROUTE`), bound to the device",
        |it| {
            let socket = it.udp()?;
            it.bind_device(&socket)?;
            let sent = socket.send_to_with_flags(PAYLOAD, &it.to.into(), libc::MSG_DONTROUTE);
            sent.call("sendto").map(drop)
        },
    ),
    Way::new("neighbour", "a datagram to a neighbour", |it| it.plain()).to(Target::Neighbour),
    Way::new("neighbour-tcp", "a connection to a neighbour", |it| {
        it.connect(&it.tcp()?)
    })
    .to(Target::Neighbour),
    Way::new("multicast", "a datagram to a group", |it| it.plain())
        .to(Target::Group)
        .only(V4),
    Way::new(
        "multicast-if",
        "a datagram to a group by `IP_MULTICAST_IF`",
        |it| {
            let socket = it.udp()?;
            if it.is_v6() {
                let index = it.device()?;
                socket
                    .set_multicast_if_v6(index)
                    .call("IPV6_MULTICAST_IF")?;
            } else {
                let source = &it.scene.source.0;
                socket.set_multicast_if_v4(source).call("IP_MULTICAST_IF")?;
            }
            it.send(&socket)
        },
    )
    .to(Target::Group),
    Way::new(
        "multicast-scope",
        "a datagram to a group whose address names the device",
        |it| send_to_scope(it, &it.udp()?),
    )
    .to(Target::Group)
    .only(V6),
    Way::new("broadcast", "a datagram to everybody on the link", |it| {
        let socket = it.udp()?;
        socket.set_broadcast(true).call("SO_BROADCAST")?;
        it.send(&socket)
    })
    .to(Target::Everybody)
    .only(V4),
    Way::new("broadcast-bound", "the same, bound to the device", |it| {
        let socket = it.udp()?;
        socket.set_broadcast(true).call("SO_BROADCAST")?;
        it.bind_device(&socket)?;
        it.send(&socket)
    })
    .to(Target::Everybody)
    .only(V4),
    Way::new(
        "reconnect",
        "a socket connected here, cut loose and connected there",
        |it| {
            let socket = it.udp()?;
            let here = match it.case.family {
                Family::V4 => SocketAddr::from((Ipv4Addr::LOCALHOST, 9)),
                Family::V6 => SocketAddr::from((Ipv6Addr::LOCALHOST, 9)),
            };
            socket.connect(&here.into()).call("connect")?;
            // SAFETY: an address of the family that cuts loose is all zeros.
            let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
            let length = libc::socklen_t::try_from(size_of_val(&nobody)).expect("16 bytes");
            let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
            // SAFETY: the address is valid for its length.
            let cut = unsafe { libc::connect(fd, &raw const nobody, length) };
            check(cut, "connect")?;
            it.bind_device(&socket)?;
            it.send(&socket)
        },
    ),
];

fn mapped(it: &Attempt<'_>) -> SockAddr {
    let std::net::IpAddr::V4(address) = it.to.ip() else {
        return it.to.into();
    };
    SocketAddr::new(address.to_ipv6_mapped().into(), it.to.port()).into()
}

fn by_packet_info(it: &Attempt<'_>, v4: Ipv4Addr, v6: Ipv6Addr) -> Result {
    let socket = it.udp()?;
    let index = it.device()?.to_ne_bytes();
    let to = SockAddr::from(it.to);
    if it.is_v6() {
        let mut info = v6.octets().to_vec();
        info.extend(index);
        let control = (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info.as_slice());
        return send_with(it, &socket, PAYLOAD, &to, control);
    }
    // `struct in_pktinfo`: the index, the source and the destination.
    let mut info = index.to_vec();
    info.extend(v4.octets());
    info.extend([0; 4]);
    let control = (libc::IPPROTO_IP, libc::IP_PKTINFO, info.as_slice());
    send_with(it, &socket, PAYLOAD, &to, control)
}

fn send_to_scope(it: &Attempt<'_>, socket: &Socket) -> Result {
    let std::net::IpAddr::V6(address) = it.to.ip() else {
        return it.send(socket);
    };
    let to = std::net::SocketAddrV6::new(address, it.to.port(), 0, it.device()?);
    socket.send_to(PAYLOAD, &to.into()).call("sendto").map(drop)
}
