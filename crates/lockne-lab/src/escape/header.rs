//! What stands in headers: options, routing headers, labels, fragments.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

use socket2::{SockAddr, Socket};

use super::{
    Attempt, Family, Result, Way,
    socket::{PAYLOAD, check, set},
};
use crate::probe::Call;

const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];

pub(super) const WAYS: &[Way] = &[
    Way::new(
        "source-route",
        "a datagram that names its routers (`IP_OPTIONS`)",
        |it| {
            let socket = it.udp()?;
            it.bind_device(&socket)?;
            let IpAddr::V4(hop) = it.to.ip() else {
                return it.send(&socket);
            };
            // RFC 791: nothing, then a loose source route of one router.
            let mut options = vec![1, 131, 7, 4];
            options.extend(hop.octets());
            set(
                &socket,
                libc::IPPROTO_IP,
                libc::IP_OPTIONS,
                &options,
                "IP_OPTIONS",
            )?;
            it.send(&socket)
        },
    )
    .only(V4),
    Way::new(
        "record-route",
        "a datagram that collects its routers",
        |it| {
            let socket = it.udp()?;
            it.bind_device(&socket)?;
            let options = [1, 7, 7, 4, 0, 0, 0, 0];
            set(
                &socket,
                libc::IPPROTO_IP,
                libc::IP_OPTIONS,
                &options,
                "IP_OPTIONS",
            )?;
            it.send(&socket)
        },
    )
    .only(V4),
    Way::new(
        "routing-header",
        "a datagram with a routing header (`IPV6_RTHDR`)",
        |it| {
            let socket = it.udp()?;
            it.bind_device(&socket)?;
            // RFC 8754: next header, length, type, segments left, last entry, flags, tag, one segment.
            let mut header = vec![0, 2, 4, 0, 0, 0, 0, 0];
            if let IpAddr::V6(segment) = it.to.ip() {
                header.extend(segment.octets());
            }
            set(
                &socket,
                libc::IPPROTO_IPV6,
                libc::IPV6_RTHDR,
                &header,
                "IPV6_RTHDR",
            )?;
            it.send(&socket)
        },
    )
    .only(V6),
    Way::new(
        "destination-options",
        "a datagram with destination options",
        |it| {
            let socket = it.udp()?;
            it.bind_device(&socket)?;
            let header = [0, 0, 1, 4, 0, 0, 0, 0];
            set(
                &socket,
                libc::IPPROTO_IPV6,
                libc::IPV6_DSTOPTS,
                &header,
                "IPV6_DSTOPTS",
            )?;
            it.send(&socket)
        },
    )
    .only(V6),
    Way::new("hop-options", "a datagram with hop-by-hop options", |it| {
        let socket = it.udp()?;
        let header = [0, 0, 1, 4, 0, 0, 0, 0];
        set(
            &socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_HOPOPTS,
            &header,
            "IPV6_HOPOPTS",
        )?;
        it.bind_device(&socket)?;
        it.send(&socket)
    })
    .only(V6),
    Way::new(
        "next-hop",
        "a datagram that names its router (`IPV6_NEXTHOP`)",
        |it| {
            const IPV6_NEXTHOP: libc::c_int = 9;
            let socket = it.udp()?;
            let router = SockAddr::from(SocketAddr::new(it.scene.neighbour.1.into(), 0));
            // SAFETY: the address is valid for its length.
            let bytes = unsafe {
                std::slice::from_raw_parts(router.as_ptr().cast::<u8>(), router.len() as usize)
            };
            set(
                &socket,
                libc::IPPROTO_IPV6,
                IPV6_NEXTHOP,
                bytes,
                "IPV6_NEXTHOP",
            )?;
            it.send(&socket)
        },
    )
    .only(V6),
    Way::new("flow-label", "a datagram with a flow label", |it| {
        let socket = it.udp()?;
        it.bind_device(&socket)?;
        send_labelled(it, &socket)
    })
    .only(V6),
    Way::new(
        "traffic-class",
        "a datagram with another class of service",
        |it| {
            let socket = it.udp()?;
            it.bind_device(&socket)?;
            let class = 0xb8_i32.to_ne_bytes();
            let (level, name) = if it.is_v6() {
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
            } else {
                (libc::IPPROTO_IP, libc::IP_TOS)
            };
            set(&socket, level, name, &class, "IP_TOS")?;
            it.send(&socket)
        },
    ),
    Way::new(
        "fragments",
        "a datagram in three pieces, bound to the device",
        |it| {
            let socket = it.udp()?;
            it.bind_device(&socket)?;
            fragmented(it, &socket)
        },
    ),
    Way::new(
        "fragments-source",
        "a datagram in three pieces from the machine's address",
        |it| {
            let socket = it.udp()?;
            socket.bind(&it.source(0)).call("bind")?;
            fragmented(it, &socket)
        },
    ),
];

fn fragmented(it: &Attempt<'_>, socket: &Socket) -> Result {
    let (level, name) = if it.is_v6() {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    };
    set(
        socket,
        level,
        name,
        &libc::IP_PMTUDISC_DONT.to_ne_bytes(),
        "IP_MTU_DISCOVER",
    )?;
    let payload = PAYLOAD.repeat(200);
    socket
        .send_to(&payload, &it.to.into())
        .call("sendto")
        .map(drop)
}

fn send_labelled(it: &Attempt<'_>, socket: &Socket) -> Result {
    const IPV6_FLOWLABEL_MGR: libc::c_int = 32;
    const IPV6_FLOWINFO_SEND: libc::c_int = 33;
    let label = (0x4_0000_u32 | u32::from(it.to.port())).to_be();
    let IpAddr::V6(to) = it.to.ip() else {
        return it.send(socket);
    };
    // `struct in6_flowlabel_req`: get it, create it, for this socket alone.
    let mut request = to.octets().to_vec();
    request.extend(label.to_ne_bytes());
    request.extend([0, 1, 1, 0]);
    request.extend([0; 8]);
    set(
        socket,
        libc::IPPROTO_IPV6,
        IPV6_FLOWLABEL_MGR,
        &request,
        "IPV6_FLOWLABEL_MGR",
    )?;
    set(
        socket,
        libc::IPPROTO_IPV6,
        IPV6_FLOWINFO_SEND,
        &1_i32.to_ne_bytes(),
        "IPV6_FLOWINFO_SEND",
    )?;
    let to = libc::sockaddr_in6 {
        sin6_family: libc::sa_family_t::try_from(libc::AF_INET6).expect("a small number"),
        sin6_port: it.to.port().to_be(),
        sin6_flowinfo: label,
        sin6_addr: libc::in6_addr {
            s6_addr: to.octets(),
        },
        sin6_scope_id: 0,
    };
    let length = libc::socklen_t::try_from(size_of_val(&to)).expect("28 bytes");
    // SAFETY: both pointers are valid for their lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            PAYLOAD.as_ptr().cast(),
            PAYLOAD.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    check(sent, "sendto").map(drop)
}
