//! Something for the demos to see, in namespaces of the test's own.

use std::{
    io::Read as _,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use aya::programs::{SchedClassifier, TcAttachType};
use lockne_lab::{Namespace, device::Device};
use socket2::{Domain, Protocol, Socket, Type};

/// A namespace with nothing but its loopback, up.
pub(crate) fn alone() -> Namespace {
    let namespace = Namespace::create("alone").unwrap();
    Device::find(&namespace, "lo")
        .unwrap()
        .unwrap()
        .up()
        .unwrap();
    namespace
}

/// Two namespaces with a cable between them.
pub(crate) struct Pair {
    /// `near0`, [`NEAR`] and [`NEAR6`].
    pub(crate) near: Namespace,
    /// `far0`, [`FAR`] and [`FAR6`].
    pub(crate) far: Namespace,
}

pub(crate) const NEAR: &str = "192.0.2.1";
pub(crate) const FAR: &str = "192.0.2.2";
pub(crate) const NEAR6: &str = "2001:db8::1";
pub(crate) const FAR6: &str = "2001:db8::2";

impl Pair {
    pub(crate) fn new() -> Self {
        let (near, far) = (alone(), alone());
        connect(&near, "near0", &far, "far0");
        for (namespace, device, v4, v6) in
            [(&near, "near0", NEAR, NEAR6), (&far, "far0", FAR, FAR6)]
        {
            ip(namespace, &format!("address add {v4}/24 dev {device}"));
            ip(
                namespace,
                &format!("address add {v6}/64 dev {device} nodad"),
            );
        }
        Self { near, far }
    }
}

/// Lays a cable between two namespaces, and sets both ends up.
pub(crate) fn connect(here: &Namespace, name: &str, there: &Namespace, other: &str) {
    // `ip` knows namespaces by a process in them.
    let mut holder = there.command("sleep").arg("60").spawn().unwrap();
    let end = format!(
        "link add {name} type veth peer name {other} netns {}",
        holder.id()
    );
    ip(here, &end);
    holder.kill().unwrap();
    holder.wait().unwrap();
    ip(here, &format!("link set {name} up"));
    ip(there, &format!("link set {other} up"));
}

/// Runs `ip` in the namespace.
pub(crate) fn ip(namespace: &Namespace, arguments: &str) {
    tool(namespace, "ip", arguments);
}

/// Runs a program that must succeed, and returns what it says.
pub(crate) fn tool(namespace: &Namespace, program: &str, arguments: &str) -> String {
    let output = namespace
        .command(program)
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {err}");
    String::from_utf8(output.stdout).unwrap()
}

/// Sends datagrams of `len` bytes to a socket that reads none of them.
pub(crate) fn send(namespace: &Namespace, to: SocketAddr, count: usize, len: usize) {
    namespace
        .run(|| {
            let any: IpAddr = if to.is_ipv4() {
                [0; 4].into()
            } else {
                [0_u16; 8].into()
            };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            for _ in 0..count {
                assert_eq!(socket.send_to(&vec![7; len], to).unwrap(), len);
            }
        })
        .unwrap();
}

/// A UDP socket in the namespace.
pub(crate) fn socket(namespace: &Namespace, address: &str) -> UdpSocket {
    let address = address.to_owned();
    namespace.run(|| UdpSocket::bind(address).unwrap()).unwrap()
}

/// Fails if anything of eBPF is still attached to the device.
pub(crate) fn assert_untouched(namespace: &Namespace, device: &str) {
    let links = tool(namespace, "ip", &format!("-details link show dev {device}"));
    assert!(!links.contains("xdp"), "{links}");
    for (direction, word) in [
        (TcAttachType::Ingress, "ingress"),
        (TcAttachType::Egress, "egress"),
    ] {
        let tcx = namespace.run(|| SchedClassifier::query_tcx(device, direction));
        if let Ok((_, programs)) = tcx.unwrap() {
            assert!(programs.is_empty(), "{direction:?}: {programs:?}");
            let qdiscs = tool(namespace, "tc", &format!("qdisc show dev {device}"));
            assert!(!qdiscs.contains("clsact"), "{qdiscs}");
        } else {
            // Before Linux 6.6 it takes a qdisc, which may be somebody else's too; empty, it stays.
            let filters = tool(namespace, "tc", &format!("filter show dev {device} {word}"));
            assert_eq!(filters, "", "{word}");
        }
    }
}

/// Where tracefs is mounted, as this process sees it. Other mounts are for others to change.
pub(crate) fn tracefs_mounts() -> Vec<String> {
    std::fs::read_to_string("/proc/self/mounts")
        .unwrap()
        .lines()
        .filter(|line| line.contains(" tracefs "))
        .map(ToOwned::to_owned)
        .collect()
}

/// Sets options of the IPv4 header.
pub(crate) fn set_options(socket: &impl AsRawFd, options: &[u8]) {
    let len = libc::socklen_t::try_from(options.len()).unwrap();
    // SAFETY: the option takes so many bytes, which the pointer is valid for.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            options.as_ptr().cast(),
            len,
        )
    };
    assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
}

/// Pings once, and says whether the answer came.
pub(crate) fn ping(namespace: &Namespace, to: IpAddr, id: u16, sequence: u16) -> bool {
    ping_with(namespace, to, id, sequence, &[])
}

/// The same with options in the IPv4 header.
pub(crate) fn ping_with(
    namespace: &Namespace,
    to: IpAddr,
    id: u16,
    sequence: u16,
    options: &[u8],
) -> bool {
    let (domain, protocol, request, answer) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let mut message = [request, 0, 0, 0, 0, 0, 0, 0];
    message[4..6].copy_from_slice(&id.to_be_bytes());
    message[6..].copy_from_slice(&sequence.to_be_bytes());
    if to.is_ipv4() {
        // The kernel fills it in for IPv6 alone.
        let words = message
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
        let sum: u32 = words.sum();
        let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        message[2..4].copy_from_slice(&(!folded).to_be_bytes());
    }
    let socket = namespace
        .run(|| Socket::new(domain, Type::RAW, Some(protocol)).unwrap())
        .unwrap();
    if !options.is_empty() {
        set_options(&socket, options);
    }
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    socket
        .send_to(&message, &SocketAddr::new(to, 0).into())
        .unwrap();
    let mut wanted = message[4..].to_vec();
    wanted.insert(0, answer);
    let mut buffer = [0; 128];
    while let Ok(len) = (&socket).read(&mut buffer) {
        // A raw socket of IPv4 gives the IP header too.
        let header = if to.is_ipv4() {
            usize::from(buffer[0] & 0xf) * 4
        } else {
            0
        };
        let got = &buffer[header..len];
        if got.len() == 8 && got[0] == wanted[0] && got[4..] == wanted[1..] {
            return true;
        }
    }
    false
}

/// How many datagrams the socket has got; they must be there already.
pub(crate) fn received(socket: &UdpSocket) -> usize {
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 2048];
    std::iter::from_fn(|| socket.recv(&mut buffer).ok()).count()
}

/// The cgroups below the root whose names start like this.
pub(crate) fn cgroups(start: &str) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(demos::cgroup::root().unwrap()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with(start) {
            names.push(name);
        }
    }
    names.sort();
    names
}
