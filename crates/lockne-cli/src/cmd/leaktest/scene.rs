//! What the ways out need to know of this machine.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
};

use lockne_lab::escape::Scene;
use nix::ifaddrs::getifaddrs;

use crate::failure::{Failure, Result};

/// Whom nobody is: RFC 2544 and 3849.
const NOBODY_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const NOBODY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xe5c, 0, 0, 0, 0, 1);

/// Finds the device of the default route, or that which is asked for, and says whether it has IPv6, too.
pub(super) fn look(device: Option<&str>) -> Result<(Scene, bool)> {
    let chosen = || source((Ipv4Addr::UNSPECIFIED, 0), NOBODY_V4.into());
    let device = match device {
        Some(device) => Some(device.to_owned()),
        None => {
            chosen().and_then(|source| addresses().find(|(_, it)| *it == source).map(|it| it.0))
        }
    };
    let Some(device) = device else {
        return Err(Failure::new("this machine has no way to the internet")
            .hint("name its physical device by `--device`"));
    };
    let of_device = || {
        addresses()
            .filter(|(name, _)| *name == device)
            .map(|(_, it)| it)
    };
    let v4 = of_device().find_map(|address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    let Some(v4) = v4 else {
        return Err(Failure::new(format!("`{device}` has no IPv4 address"))
            .hint("name another device by `--device`"));
    };
    let v6 = of_device().find_map(|address| match address {
        IpAddr::V6(address) if !address.is_unicast_link_local() => Some(address),
        _ => None,
    });
    let is_dual = v6.is_some() && source((Ipv6Addr::UNSPECIFIED, 0), NOBODY_V6.into()).is_some();
    let scene = Scene {
        source: (v4, v6.unwrap_or(Ipv6Addr::UNSPECIFIED)),
        neighbour: (
            gateway_v4(&device).unwrap_or(NOBODY_V4),
            gateway_v6(&device).unwrap_or(NOBODY_V6),
        ),
        device,
        helper: None,
        setuid_env: None,
    };
    Ok((scene, is_dual))
}

/// The address from which the kernel would send to `to`.
fn source(any: impl Into<std::net::SocketAddr>, to: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind(any.into()).ok()?;
    socket.connect((to, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Every address of every device but loopback.
fn addresses() -> impl Iterator<Item = (String, IpAddr)> {
    let all = getifaddrs().into_iter().flatten();
    all.filter_map(|it| {
        let address = it.address?;
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        let address = v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))?;
        (!address.is_loopback()).then_some((it.interface_name, address))
    })
}

/// The router of the default route by a device, from the table that proc(5) describes.
fn gateway_v4(device: &str) -> Option<Ipv4Addr> {
    let table = fs::read_to_string("/proc/self/net/route").ok()?;
    table.lines().find_map(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let [name, "00000000", gateway, ..] = words[..] else {
            return None;
        };
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        (name == device && gateway != 0).then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
    })
}

/// The same for IPv6.
fn gateway_v6(device: &str) -> Option<Ipv6Addr> {
    let table = fs::read_to_string("/proc/self/net/ipv6_route").ok()?;
    table.lines().find_map(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let [_, "00", _, _, gateway, .., name] = words[..] else {
            return None;
        };
        let gateway = Ipv6Addr::from(u128::from_str_radix(gateway, 16).ok()?);
        (name == device && !gateway.is_unspecified()).then_some(gateway)
    })
}
