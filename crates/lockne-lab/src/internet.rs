//! The whole small internet: a user's machine, a router with a server behind it, two VPN providers.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicU32, Ordering},
};

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;

use crate::{
    device,
    link::{Link, Medium, Plug},
    namespace::{self, Namespace},
    netlink,
    origin::{self, Origin},
    packet::Flow,
    provider::Provider,
    ready,
    sniffer::Sniffer,
};

/// The user's machine.
pub const HOME_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The user's machine.
pub const HOME_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);
/// The user's machine on its second uplink.
pub const SECOND_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 130);
/// The user's machine on its second uplink.
pub const SECOND_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 2);
/// The server that says which address it saw.
pub const ORIGIN_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The server that says which address it saw.
pub const ORIGIN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10);
/// A neighbour of the user's machine that offers what the server does.
pub const LAN_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
/// A neighbour of the user's machine that offers what the server does.
pub const LAN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x50);
/// The user's machine on the plain tunnel.
pub const PLAIN_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 2);
/// The user's machine on the plain tunnel.
pub const PLAIN_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 1, 0, 0, 0, 0, 2);

const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
const SECOND_ROUTER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 129);
const SECOND_ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 1);
const PLAIN_FAR_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);
const PLAIN_FAR_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 1, 0, 0, 0, 0, 1);

const LOOPBACK: u32 = 1;

/// The small internet. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Internet {
    /// What the server offers and saw; dropped first, since it lives in `internet`.
    pub origin: Origin,
    /// The first VPN provider.
    pub provider_a: Provider,
    /// The second VPN provider.
    pub provider_b: Provider,
    /// The cable of `eth0` in `home`.
    pub home_link: Link,
    /// The user's machine.
    pub home: Namespace,
    /// The router and the server.
    pub internet: Namespace,
}

/// Whether a device drops what arrives by another way than the answer would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReversePathFilter {
    /// It does not.
    Off,
    /// It does, as some distributions have it.
    Strict,
}

/// Why the small internet could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A namespace failed.
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
    /// A device, address or route failed.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// The server failed.
    #[error(transparent)]
    Origin(#[from] origin::Error),
}

impl Error {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Namespace(error) | Self::Device(device::Error::Namespace(error)) => error.hint(),
            _ => None,
        }
    }
}

impl Internet {
    /// Builds it; it is usable at once, but for the providers' WireGuard
    /// ([`Provider::start_wireguard`]).
    ///
    /// # Errors
    ///
    /// When the kernel refuses a part of it, mostly for lack of privileges.
    pub fn build() -> Result<Self, Error> {
        Self::build_around(Namespace::create("home")?)
    }

    /// Builds it with a namespace that is there already as the user's machine: one without devices, but for its
    /// loopback.
    ///
    /// # Errors
    ///
    /// As [`Self::build`], and when the namespace has a device with the name or the number of the first uplink.
    pub fn build_around(home: Namespace) -> Result<Self, Error> {
        let internet = machine("internet", &ROUTER_SETTINGS)?;
        set_up(&home, &[])?;
        netlink::configure(&internet, async |netlink| {
            // Behind the rules that cut a link, which so hold for addresses of this machine too.
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                netlink.add_rule(netlink::local_rule(family, 10)).await?;
                netlink.delete_rule(netlink::local_rule(family, 0)).await?;
            }
            netlink.add_address(LOOPBACK, host(ORIGIN_V4)).await?;
            netlink.add_address(LOOPBACK, host(ORIGIN_V6)).await
        })?;

        let home_link = Link::make(
            plug(&home, "eth0", 2),
            plug(&internet, "home0", 12),
            Medium::Ethernet,
            vec![net(HOME_V4, 24), net(HOME_V6, 64)],
        )?;
        netlink::configure(&internet, async |netlink| {
            for address in [net(ROUTER_V4, 24), net(LAN_V4, 24)] {
                netlink.add_address(12, address).await?;
            }
            for address in [net(ROUTER_V6, 64), net(LAN_V6, 64)] {
                netlink.add_address(12, address).await?;
            }
            Ok(())
        })?;
        netlink::configure(&home, async |netlink| {
            netlink.add_address(2, net(HOME_V4, 24)).await?;
            netlink.add_address(2, net(HOME_V6, 64)).await?;
            netlink.add_route(ANY_V4, 2, Some(ROUTER_V4.into())).await?;
            netlink.add_route(ANY_V6, 2, Some(ROUTER_V6.into())).await
        })?;
        let provider_a = Provider::build(1, &internet)?;
        let provider_b = Provider::build(2, &internet)?;

        ready::wait(&internet, &[12])?;
        ready::wait(&home, &[2])?;
        provider_a.wait_until_usable()?;
        provider_b.wait_until_usable()?;
        Ok(Self {
            origin: Origin::start(&internet)?,
            provider_a,
            provider_b,
            home_link,
            home,
            internet,
        })
    }

    /// Adds `eth1` to the user's machine: a way out that no default route names.
    ///
    /// # Errors
    ///
    /// When it is there already.
    pub fn add_second_uplink(&self) -> Result<Link, Error> {
        let (near, far) = (1003, 1013);
        let link = Link::make(
            plug(&self.home, "eth1", near),
            plug(&self.internet, "home1", far),
            Medium::Ethernet,
            vec![net(SECOND_V4, 25), net(SECOND_V6, 64)],
        )?;
        netlink::configure(&self.internet, async |netlink| {
            netlink.add_address(far, net(SECOND_ROUTER_V4, 25)).await?;
            netlink.add_address(far, net(SECOND_ROUTER_V6, 64)).await
        })?;
        netlink::configure(&self.home, async |netlink| {
            netlink.add_address(near, net(SECOND_V4, 25)).await?;
            netlink.add_address(near, net(SECOND_V6, 64)).await
        })?;
        ready::wait(&self.internet, &[far])?;
        ready::wait(&self.home, &[near])?;
        Ok(link)
    }

    /// Adds a tunnel that is none of WireGuard's to the user's machine: a device called `name` that
    /// comes out at provider A. It has addresses but no routes, and needs no gateway.
    ///
    /// # Errors
    ///
    /// When there is such a device already.
    pub fn add_plain_tunnel(&self, name: &str, filter: ReversePathFilter) -> Result<Link, Error> {
        self.plain_tunnel(name, filter, (1009, 1019))
    }

    /// Adds the tunnel of [`Self::add_plain_tunnel`] again, after it was deleted: the device has
    /// another index now.
    ///
    /// # Errors
    ///
    /// When there is such a device still.
    pub fn add_plain_tunnel_anew(
        &self,
        name: &str,
        filter: ReversePathFilter,
    ) -> Result<Link, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(2000);
        let near = NEXT.fetch_add(1, Ordering::Relaxed);
        self.plain_tunnel(name, filter, (near, 1019))
    }

    fn plain_tunnel(
        &self,
        name: &str,
        filter: ReversePathFilter,
        (near, far): (u32, u32),
    ) -> Result<Link, Error> {
        let provider = self.provider_a.namespace();
        let link = Link::make(
            plug(&self.home, name, near),
            plug(provider, "plain0", far),
            Medium::PointToPoint,
            vec![net(PLAIN_V4, 24), net(PLAIN_V6, 64)],
        )?;
        if filter == ReversePathFilter::Strict {
            self.home.set(&format!("ipv4/conf/{name}/rp_filter"), "1")?;
        }
        netlink::configure(provider, async |netlink| {
            netlink.add_address(far, net(PLAIN_FAR_V4, 24)).await?;
            netlink.add_address(far, net(PLAIN_FAR_V6, 64)).await
        })?;
        netlink::configure(&self.home, async |netlink| {
            netlink.add_address(near, net(PLAIN_V4, 24)).await?;
            netlink.add_address(near, net(PLAIN_V6, 64)).await
        })?;
        self.provider_a
            .attract(&self.internet, &[net(PLAIN_V4, 24), net(PLAIN_V6, 64)])?;
        ready::wait(provider, &[far])?;
        ready::wait(&self.home, &[near])?;
        Ok(link)
    }

    /// What `sniffer` saw beside the traffic between WireGuard and both providers.
    #[must_use]
    pub fn leaks(&self, sniffer: &Sniffer) -> Vec<Flow> {
        let mut endpoints = self.provider_a.endpoints().to_vec();
        endpoints.extend(self.provider_b.endpoints());
        sniffer.leaks(&endpoints)
    }
}

const ANY_V4: IpNet = net_const(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
const ANY_V6: IpNet = net_const(IpAddr::V6(Ipv6Addr::UNSPECIFIED));

/// A route for all of `gateway`'s family.
pub(crate) const fn any(gateway: IpAddr) -> IpNet {
    if gateway.is_ipv4() { ANY_V4 } else { ANY_V6 }
}

const fn net_const(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(address) => IpNet::V4(ipnet::Ipv4Net::new_assert(address, 0)),
        IpAddr::V6(address) => IpNet::V6(ipnet::Ipv6Net::new_assert(address, 0)),
    }
}

pub(crate) const ROUTER_SETTINGS: [(&str, &str); 2] =
    [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

/// A namespace with its loopback up and nothing inherited that differs between hosts.
pub(crate) fn machine(name: &str, settings: &[(&str, &str)]) -> Result<Namespace, Error> {
    let namespace = Namespace::create(name)?;
    set_up(&namespace, settings)?;
    Ok(namespace)
}

fn set_up(namespace: &Namespace, settings: &[(&str, &str)]) -> Result<(), Error> {
    let common = [
        // IPv4 settings come from the host's own namespace (`devconf_inherit_init_net`).
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/ping_group_range", "0 2147483647"),
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        ("ipv6/conf/default/keep_addr_on_down", "1"),
    ];
    namespace.set_all(&common)?;
    namespace.set_all(settings)?;
    device::Device {
        namespace: namespace.clone(),
        index: LOOPBACK,
    }
    .up()?;
    Ok(())
}

pub(crate) fn plug<'a>(namespace: &'a Namespace, name: &'a str, index: u32) -> Plug<'a> {
    Plug {
        namespace,
        name,
        index,
    }
}

pub(crate) fn net(address: impl Into<IpAddr>, length: u8) -> IpNet {
    IpNet::new(address.into(), length).expect("the lab's prefixes fit their addresses")
}

pub(crate) fn host(address: impl Into<IpAddr>) -> IpNet {
    IpNet::from(address.into())
}
