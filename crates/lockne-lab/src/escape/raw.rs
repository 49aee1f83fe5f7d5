//! Packets and frames that a program writes by itself.

use std::{
    fs::OpenOptions,
    io::Write,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
};

use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    Attempt, Family, Result, Way, Who,
    socket::{PAYLOAD, check, set},
};
use crate::probe::Call;

const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];
/// The link address of everybody.
const EVERYBODY: [u8; 6] = [0xff; 6];
/// Who may make such a socket.
const ROOTS: &[Who] = &[Who::RootWithoutNetAdmin, Who::Root];

pub(super) const WAYS: &[Way] = &[
    Way::new("ping", "an echo request", |it| {
        it.ping()?
            .send_to(&it.echo(), &it.host())
            .call("sendto")
            .map(drop)
    }),
    Way::new(
        "raw-ping",
        "an echo request by a raw socket, bound to the device",
        |it| {
            let socket = it.raw_ping()?;
            it.bind_device(&socket)?;
            socket
                .send_to(&it.echo(), &it.host())
                .call("sendto")
                .map(drop)
        },
    ),
    Way::new(
        "raw-header",
        "a packet with a header of the program's own",
        |it| raw(it, &raw_socket(it)?),
    ),
    Way::new("raw-header-bound", "the same, bound to the device", |it| {
        let socket = raw_socket(it)?;
        it.bind_device(&socket)?;
        raw(it, &socket)
    }),
    Way::new(
        "raw-protocol",
        "a packet of a protocol without a name",
        |it| {
            let socket =
                Socket::new(it.domain(), Type::RAW, Some(Protocol::from(253))).call("socket")?;
            it.bind_device(&socket)?;
            socket.send_to(PAYLOAD, &it.host()).call("sendto").map(drop)
        },
    )
    .only(V4),
    Way::new(
        "raw-protocol-v6",
        "a packet of a protocol without a name",
        |it| {
            let socket =
                Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(253))).call("socket")?;
            it.bind_device(&socket)?;
            socket.send_to(PAYLOAD, &it.host()).call("sendto").map(drop)
        },
    )
    .only(V6),
    Way::new("packet-frame", "a frame by `AF_PACKET`", |it| {
        frame(it, &packet_socket(libc::SOCK_RAW)?, libc::SOCK_RAW)
    })
    .open_for(ROOTS),
    Way::new(
        "packet-cooked",
        "a packet by `AF_PACKET`, whose frame the kernel makes",
        |it| frame(it, &packet_socket(libc::SOCK_DGRAM)?, libc::SOCK_DGRAM),
    )
    .open_for(ROOTS),
    Way::new(
        "packet-bypass",
        "a frame past the queues (`PACKET_QDISC_BYPASS`)",
        |it| {
            let socket = packet_socket(libc::SOCK_RAW)?;
            let on = 1_i32.to_ne_bytes();
            let name = libc::PACKET_QDISC_BYPASS;
            set(&socket, libc::SOL_PACKET, name, &on, "PACKET_QDISC_BYPASS")?;
            frame(it, &socket, libc::SOCK_RAW)
        },
    )
    .in_the_lab()
    .open_for(ROOTS),
    Way::new(
        "own-device",
        "a packet that comes in by a device of the program's own",
        own_device,
    )
    .only(V4)
    .in_the_lab()
    .open_for(&[Who::Root]),
];

fn raw_socket(it: &Attempt<'_>) -> Result<Socket> {
    let protocol = Protocol::from(libc::IPPROTO_RAW);
    Socket::new(it.domain(), Type::RAW, Some(protocol)).call("socket")
}

fn raw(it: &Attempt<'_>, socket: &Socket) -> Result {
    socket
        .send_to(&packet(it, None), &it.host())
        .call("sendto")
        .map(drop)
}

/// A whole packet of UDP.
fn packet(it: &Attempt<'_>, source: Option<Ipv4Addr>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let port = it.to.port();
    let udp = match it.to.ip() {
        IpAddr::V4(to) => {
            let from = source.unwrap_or(it.scene.source.0);
            PacketBuilder::ipv4(from.octets(), to.octets(), 64)
        }
        IpAddr::V6(to) => PacketBuilder::ipv6(it.scene.source.1.octets(), to.octets(), 64),
    };
    let written = udp.udp(port, port).write(&mut bytes, PAYLOAD);
    written.expect("a vector takes it");
    bytes
}

pub(super) fn packet_socket(kind: libc::c_int) -> Result<Socket> {
    // Of no protocol, so that it receives nothing.
    let (domain, kind) = (Domain::PACKET, Type::from(kind));
    Socket::new(domain, kind, Some(Protocol::from(0))).call("socket")
}

/// Sends a packet by a packet socket, to whoever is on the link.
pub(super) fn frame(it: &Attempt<'_>, socket: &Socket, kind: libc::c_int) -> Result {
    let ethertype: u16 = if it.is_v6() { 0x86dd } else { 0x0800 };
    let mut bytes = Vec::new();
    if kind == libc::SOCK_RAW {
        bytes.extend(EVERYBODY);
        bytes.extend([2, 0, 0, 0, 0, 1]);
        bytes.extend(ethertype.to_be_bytes());
    }
    bytes.extend(packet(it, None));
    let mut address = [0; 8];
    address[..6].copy_from_slice(&EVERYBODY);
    let to = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET).expect("a small number"),
        sll_protocol: ethertype.to_be(),
        sll_ifindex: it.device()?.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: address,
    };
    let length = libc::socklen_t::try_from(size_of_val(&to)).expect("20 bytes");
    // SAFETY: both pointers are valid for their lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    check(sent, "sendto").map(drop)
}

/// Makes a TUN device, lets the machine forward, and writes a packet to the device.
fn own_device(it: &Attempt<'_>) -> Result {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    const IFF_TUN_WITHOUT_INFO: i16 = 0x1001;
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    let mut tun = tun.call("open /dev/net/tun")?;
    // SAFETY: all zeros are a request without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = IFF_TUN_WITHOUT_INFO;
    // SAFETY: the request is valid, and the kernel writes the name into it.
    let named = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) };
    check(named, "TUNSETIFF")?;
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).expect("a small number");
    let socket = it.udp()?;
    let fd = socket.as_raw_fd();
    // SAFETY: the request is valid.
    let up = unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw mut request) };
    check(up, "SIOCSIFFLAGS")?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").call("ip_forward")?;
    let from = Ipv4Addr::new(10, 108, 0, 2);
    tun.write_all(&packet(it, Some(from))).call("write")
}
