//! Packets and frames that a program writes by itself.

use std::{
    fs::OpenOptions,
    io::Write,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
    time::{Duration, Instant},
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
/// How long a queue of the device may be another's.
const FREE_WITHIN: Duration = Duration::from_secs(10);
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
        "xdp-frame",
        "a frame out of memory that the device shares (`AF_XDP`)",
        xdp_frame,
    )
    .only(V4)
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
    let bytes = if kind == libc::SOCK_RAW {
        whole_frame(it)
    } else {
        packet(it, None)
    };
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

/// A packet with its Ethernet header.
fn whole_frame(it: &Attempt<'_>) -> Vec<u8> {
    let ethertype: u16 = if it.is_v6() { 0x86dd } else { 0x0800 };
    let mut bytes = EVERYBODY.to_vec();
    bytes.extend([2, 0, 0, 0, 0, 1]);
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(packet(it, None));
    bytes
}

/// Lets the device's driver take a frame from memory of the program.
fn xdp_frame(it: &Attempt<'_>) -> Result {
    const FRAMES: u32 = 4;
    const FRAME: u32 = 4096;
    let domain = Domain::from(libc::AF_XDP);
    let socket = Socket::new(domain, Type::RAW, None).call("socket")?;
    let length = FRAMES as usize * FRAME as usize;
    let map = |length, fd, flags, offset| {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses; it stays until this process ends.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, fd, offset) };
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).call("mmap");
        }
        Ok(at.cast::<u8>())
    };
    let memory = map(length, -1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 0)?;
    let mut area = [0_u8; 24];
    area[..8].copy_from_slice(&(memory.addr() as u64).to_ne_bytes());
    area[8..16].copy_from_slice(&(length as u64).to_ne_bytes());
    area[16..20].copy_from_slice(&FRAME.to_ne_bytes());
    let option = |name, value: &[u8], call| set(&socket, libc::SOL_XDP, name, value, call);
    option(libc::XDP_UMEM_REG, &area, "XDP_UMEM_REG")?;
    let entries = FRAMES.to_ne_bytes();
    option(libc::XDP_UMEM_FILL_RING, &entries, "XDP_UMEM_FILL_RING")?;
    option(
        libc::XDP_UMEM_COMPLETION_RING,
        &entries,
        "XDP_UMEM_COMPLETION_RING",
    )?;
    option(libc::XDP_TX_RING, &entries, "XDP_TX_RING")?;
    // SAFETY: integers may be zero.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    let mut size = libc::socklen_t::try_from(size_of_val(&offsets)).expect("128 bytes");
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel writes no more than the size says.
    let got = unsafe {
        let offsets = (&raw mut offsets).cast();
        libc::getsockopt(
            fd,
            libc::SOL_XDP,
            libc::XDP_MMAP_OFFSETS,
            offsets,
            &raw mut size,
        )
    };
    check(got, "XDP_MMAP_OFFSETS")?;
    let place = |offset: u64| usize::try_from(offset).expect("rings are small");
    let ring = place(offsets.tx.desc) + FRAMES as usize * size_of::<libc::xdp_desc>();
    let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
    let ring = map(ring, fd, flags, libc::XDP_PGOFF_TX_RING)?;
    let to = libc::sockaddr_xdp {
        sxdp_family: u16::try_from(libc::AF_XDP).expect("a small number"),
        sxdp_flags: libc::XDP_COPY,
        sxdp_ifindex: it.device()?,
        sxdp_queue_id: 0,
        sxdp_shared_umem_fd: 0,
    };
    let size = libc::socklen_t::try_from(size_of_val(&to)).expect("16 bytes");
    let deadline = Instant::now() + FREE_WITHIN;
    loop {
        // SAFETY: the address is valid for its size.
        let bound = unsafe { libc::bind(fd, (&raw const to).cast(), size) };
        match check(bound, "bind") {
            // Another attempt has the queue.
            Err(failed)
                if failed.error.raw_os_error() == Some(libc::EBUSY)
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => {
                result?;
                break;
            }
        }
    }

    let frame = whole_frame(it);
    let entry = libc::xdp_desc {
        addr: 0,
        len: u32::try_from(frame.len()).expect("a small frame"),
        options: 0,
    };
    // SAFETY: both mappings are ours, and as long as what is written there; the producer's number is written last.
    unsafe {
        memory.copy_from_nonoverlapping(frame.as_ptr(), frame.len());
        ring.add(place(offsets.tx.desc))
            .cast::<libc::xdp_desc>()
            .write_unaligned(entry);
        // This thread's own call makes the kernel look.
        ring.add(place(offsets.tx.producer))
            .cast::<u32>()
            .write_unaligned(1);
    }
    // SAFETY: nothing is sent but what is in the ring.
    let sent = unsafe {
        let flags = libc::MSG_DONTWAIT;
        libc::sendto(fd, std::ptr::null(), 0, flags, std::ptr::null(), 0)
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
    let up = unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS as _, &raw mut request) };
    check(up, "SIOCSIFFLAGS")?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").call("ip_forward")?;
    let from = Ipv4Addr::new(10, 108, 0, 2);
    tun.write_all(&packet(it, Some(from))).call("write")
}
