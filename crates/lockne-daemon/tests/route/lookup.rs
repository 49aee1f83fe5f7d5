//! Where the packets of a socket with a policy's mark go.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    process::Command,
};

use socket2::{Domain, Socket, Type};

use crate::netns::{FIELD, Router, ip, tunnel, uplink, via};

const FAR: [&str; 2] = ["203.0.113.7", "2001:db8:9::7"];
const UPLINK: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
const TUNNEL: [&str; 2] = ["10.9.0.2", "fd00:9::2"];

pub(crate) async fn marked_socket_uses_the_tunnel() {
    uplink();
    tunnel("work");
    let mut router = Router::new([via(7, "work", &[])]);

    router.reconcile().await;

    for ((far, tunnel), uplink) in FAR.into_iter().zip(TUNNEL).zip(UPLINK) {
        assert_eq!(source(7, far), Ok(tunnel.parse().unwrap()));
        assert_eq!(source(0, far), Ok(uplink.parse().unwrap()));
        assert_eq!(source(8, far), Ok(uplink.parse().unwrap()));
    }
    assert_eq!(source(7, "127.0.0.1"), Ok("127.0.0.1".parse().unwrap()));
    assert_eq!(source(7, "::1"), Ok("::1".parse().unwrap()));
}

pub(crate) async fn marked_socket_is_refused_when_the_tunnel_is_gone() {
    uplink();
    tunnel("work");
    let mut router = Router::new([via(7, "work", &[])]);
    router.reconcile().await;

    ip("link del work");

    for (far, uplink) in FAR.into_iter().zip(UPLINK) {
        assert_refused(source(7, far));
        assert_eq!(source(0, far), Ok(uplink.parse().unwrap()));
    }
    // The rule alone holds as well.
    for family in ["-4", "-6"] {
        ip(&format!("{family} route flush table 108007"));
    }
    assert_refused(source(7, FAR[0]));
    assert_refused(source(7, FAR[1]));
}

pub(crate) async fn marked_socket_is_refused_what_the_tunnel_does_not_reach() {
    uplink();
    tunnel("work");
    ip("address del fd00:9::2/128 dev work");
    let mut router = Router::new([via(7, "work", &[])]);

    router.reconcile().await;

    assert_eq!(source(7, FAR[0]), Ok(TUNNEL[0].parse().unwrap()));
    assert_refused(source(7, FAR[1]));
}

pub(crate) async fn ipv6_socket_bound_to_the_uplink_is_refused() {
    uplink();
    tunnel("work");
    let mut router = Router::new([via(7, "work", &[])]);
    let socket = socket(7, FAR[1]);
    socket.bind_device(Some(b"eth0")).unwrap();
    assert_eq!(connect(&socket, FAR[1]), Ok(UPLINK[1].parse().unwrap()));

    router.reconcile().await;

    let socket = self::socket(7, FAR[1]);
    socket.bind_device(Some(b"eth0")).unwrap();
    assert_refused(connect(&socket, FAR[1]));
}

pub(crate) async fn local_prefix_goes_past_the_tunnel() {
    uplink();
    tunnel("work");
    let mut router = Router::new([via(7, "work", &["192.0.2.0/24", "2001:db8::/64"])]);

    router.reconcile().await;

    for ((near, far), (uplink, tunnel)) in ["192.0.2.9", "2001:db8::9"]
        .into_iter()
        .zip(FAR)
        .zip(UPLINK.into_iter().zip(TUNNEL))
    {
        assert_eq!(source(7, near), Ok(uplink.parse().unwrap()));
        assert_eq!(source(7, far), Ok(tunnel.parse().unwrap()));
    }
    router.policies = vec![via(7, "work", &[])];
    router.reconcile().await;
    assert_eq!(source(7, "192.0.2.9"), Ok(TUNNEL[0].parse().unwrap()));
}

pub(crate) async fn forwarded_packet_is_not_routed_by_its_mark() {
    uplink();
    tunnel("work");
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    let mut router = Router::new([via(7, "work", &[])]);

    router.reconcile().await;

    let mark = FIELD.mark(7);
    for (far, from) in FAR.into_iter().zip(["192.0.2.9", "2001:db8::9"]) {
        let sent = ip(&format!("route get {far} mark {mark}"));
        let forwarded = ip(&format!("route get {far} from {from} iif eth0 mark {mark}"));
        assert!(sent.contains("dev work"), "{sent}");
        assert!(
            forwarded.contains("dev eth0") && !forwarded.contains("work"),
            "{forwarded}"
        );
    }
    // One that came out of the tunnel stamped goes on, not back.
    let replied = Command::new("ip")
        .args([
            "route",
            "get",
            FAR[0],
            "from",
            "203.0.113.9",
            "iif",
            "work",
            "mark",
        ])
        .arg(mark.to_string())
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&replied.stdout).contains("dev work"));
}

fn socket(policy: u8, to: &str) -> Socket {
    let to: IpAddr = to.parse().unwrap();
    let domain = if to.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
    socket.set_mark(FIELD.mark(policy)).unwrap();
    socket
}

/// The source address that the kernel chooses, which tells the device.
fn source(policy: u8, to: &str) -> Result<IpAddr, ErrorKind> {
    connect(&socket(policy, to), to)
}

fn connect(socket: &Socket, to: &str) -> Result<IpAddr, ErrorKind> {
    let to = SocketAddr::new(to.parse().unwrap(), 53);
    socket.connect(&to.into()).map_err(|error| error.kind())?;
    Ok(socket.local_addr().unwrap().as_socket().unwrap().ip())
}

fn assert_refused(source: Result<IpAddr, ErrorKind>) {
    let refused = [ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable];
    assert!(
        source.is_err_and(|kind| refused.contains(&kind)),
        "{source:?}"
    );
}
