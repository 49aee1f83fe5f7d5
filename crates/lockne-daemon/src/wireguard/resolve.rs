//! From a configured endpoint to an address, outside of every tunnel: the daemon has no policy.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use lockne_core::wgquick::{Endpoint, Host, Port};
use rustix::net::sockopt;
use socket2::SockRef;
use tokio::{net::lookup_host, time::timeout};

use super::Error;

/// Longer than libc tries a resolver that is silent.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes that WireGuard adds to a packet, over IPv6: what wg-quick subtracts.
const OVERHEAD: u32 = 80;

/// The MTU that fits into the Internet's 1500 bytes.
const USUAL_MTU: u16 = 1420;

/// The smallest MTU with which IPv6 works.
const LEAST_MTU: u32 = 1280;

/// Finds the addresses of `endpoint`, best first: at least one.
pub(super) async fn addresses(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, Error> {
    let port = port(&endpoint.port)?;
    let name = match &endpoint.host {
        Host::Address(address) => return Ok(vec![SocketAddr::new(*address, port)]),
        Host::Name(name) => name,
    };
    let failed = |source| Error::Resolve {
        host: name.clone(),
        source,
    };
    let found = timeout(PATIENCE, lookup_host((name.as_str(), port))).await;
    let found: Vec<_> = found
        .map_err(|elapsed| failed(io::Error::from(elapsed)))?
        .map_err(failed)?
        .collect();
    if found.is_empty() {
        return Err(failed(io::ErrorKind::NotFound.into()));
    }
    Ok(found)
}

/// The address of an endpoint that is written as numbers.
pub(super) fn written(endpoint: &Endpoint) -> Option<SocketAddr> {
    match (&endpoint.host, &endpoint.port) {
        (Host::Address(address), Port::Number(port)) => Some(SocketAddr::new(*address, *port)),
        _ => None,
    }
}

/// The first address to which there is a route for packets with `mark`, else the first.
pub(super) fn reachable(addresses: &[SocketAddr], mark: Option<u32>) -> Option<SocketAddr> {
    let has_route = |address: &&SocketAddr| connect(**address, mark).is_ok();
    let routed = addresses.iter().find(has_route);
    routed.or(addresses.first()).copied()
}

/// The number of a port.
pub(super) fn port(port: &Port) -> Result<u16, Error> {
    let name = match port {
        Port::Number(number) => return Ok(*number),
        Port::Service(name) => name,
    };
    let services = fs::read_to_string("/etc/services").unwrap_or_default();
    service(&services, name).ok_or_else(|| Error::Service { name: name.clone() })
}

/// The MTU of a tunnel whose packets go to `endpoints`, by their routes, 1420 at most.
pub(super) fn mtu(endpoints: impl Iterator<Item = SocketAddr>, mark: Option<u32>) -> u16 {
    let routes = endpoints.filter_map(|endpoint| {
        let socket = connect(endpoint, mark).ok()?;
        let mtu = match endpoint.ip() {
            IpAddr::V4(_) => sockopt::ip_mtu(&socket),
            IpAddr::V6(_) => sockopt::ipv6_mtu(&socket),
        };
        mtu.ok()
    });
    let least = routes.min().map(|mtu| mtu.saturating_sub(OVERHEAD));
    let mtu = least.map_or(USUAL_MTU.into(), |mtu| mtu.max(LEAST_MTU));
    u16::try_from(mtu).map_or(USUAL_MTU, |mtu| mtu.min(USUAL_MTU))
}

/// A socket for which the kernel has found a route. Nothing is sent.
fn connect(address: SocketAddr, mark: Option<u32>) -> io::Result<UdpSocket> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    socket.connect(address)?;
    Ok(socket)
}

/// Looks `name` up in the text of services(5).
fn service(services: &str, name: &str) -> Option<u16> {
    services.lines().find_map(|line| {
        let line = line.split('#').next()?;
        let mut words = line.split_whitespace();
        let official = words.next()?;
        let port = words.next()?.strip_suffix("/udp")?;
        let is_it = official == name || words.any(|alias| alias == name);
        is_it.then(|| port.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_found_by_name_and_alias_for_udp_only() {
        let services =
            "# x 1/udp\nssh 22/tcp\nopenvpn 1194/tcp\nopenvpn 1194/udp # vpn\nl2f 1701/udp l2tp\n";

        assert_eq!(service(services, "openvpn"), Some(1194));
        assert_eq!(service(services, "l2tp"), Some(1701));
        assert_eq!(service(services, "ssh"), None);
        assert_eq!(service(services, "x"), None);
    }

    #[test]
    fn mtu_is_never_larger_than_the_usual() {
        let loopback = "127.0.0.1:9".parse().unwrap();

        assert_eq!(mtu([loopback].into_iter(), None), 1420);
        assert_eq!(mtu([].into_iter(), None), 1420);
    }
}
