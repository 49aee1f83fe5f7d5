//! Whom policed programs ask for names.

mod stub;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use ipnet::IpNet;
use lockne_abi::{Endpoint, Resolver, Resolvers, words};
use lockne_core::{
    plan,
    policy::{Action, Policy, PolicyId, Terms},
    tunnel::TunnelName,
};
use tracing::warn;

pub(crate) use self::stub::Stub;
use crate::{daemon::Daemon, error::Error, kernel::Feature, reconcile::tunnel_of};

/// Sockets by which libc asks somebody else.
const SOCKETS: [(&str, &str); 3] = [
    (
        "/run/systemd/resolve/io.systemd.Resolve",
        "systemd-resolved",
    ),
    ("/var/run/nscd/socket", "nscd"),
    ("/run/avahi-daemon/socket", "avahi"),
];

/// The port of resolvers.
const DNS: u16 = 53;

impl Daemon {
    /// The resolvers of `terms`, in the order in which they were given: its own, or else those of its
    /// tunnel's configuration. One on this machine is none: it would ask on outside of the tunnel.
    pub(crate) fn resolvers(&self, terms: &Terms) -> Vec<IpAddr> {
        let tunnel = tunnel_of(terms).and_then(|name| self.tunnels.get(name));
        let named = match tunnel {
            _ if !terms.dns.is_empty() => &terms.dns,
            Some(tunnel) => &tunnel.config.dns,
            None => return Vec::new(),
        };
        named.iter().copied().filter(|it| !is_here(*it)).collect()
    }

    /// The domains in which programs under `terms` search for short names.
    pub(crate) fn search_domains(&self, terms: &Terms) -> Vec<String> {
        let tunnel = tunnel_of(terms).and_then(|name| self.tunnels.get(name));
        tunnel.map_or_else(Vec::new, |tunnel| tunnel.config.search_domains.clone())
    }

    /// Fails if a question to a resolver of `terms` would not go through the tunnel.
    pub(crate) fn check_resolvers(&self, terms: &Terms) -> Result<(), Error> {
        if let Some(address) = terms.dns.iter().find(|address| is_here(**address)) {
            return Err(Error::ResolverHere { address: *address });
        }
        for address in self.resolvers(terms) {
            if let Some(prefix) = terms.lan.iter().find(|prefix| prefix.contains(&address)) {
                return Err(Error::ResolverInLan {
                    address,
                    prefix: *prefix,
                });
            }
        }
        Ok(())
    }

    /// What to say of resolvers that a program can ask by a socket, where this kernel cannot keep it from
    /// that.
    pub(crate) fn open_sockets(&self, terms: &Terms) -> Option<String> {
        let is_missing = self.kernel.missing().contains(&Feature::UnixSockets);
        if !is_missing || terms.action == Action::Direct {
            return None;
        }
        let here = SOCKETS.iter().find(|(path, _)| Path::new(path).exists());
        here.map(|(_, name)| {
            format!(
                "this kernel cannot keep the program from asking {name}, which asks on outside of the policy; \
                 Linux {} can",
                Feature::UnixSockets.since()
            )
        })
    }

    /// Tells the kernel and the stubs whom each policy asks.
    pub(crate) fn direct_questions(
        &mut self,
        links: &BTreeMap<TunnelName, plan::Link>,
    ) -> Result<(), Error> {
        let policies = self.in_force();
        self.stubs
            .retain(|id, _| policies.iter().any(|policy| policy.id == *id));
        for Policy { id, terms } in policies {
            let addresses = self.resolvers(&terms);
            let resolvers = if addresses.is_empty() {
                self.stubs.remove(&id);
                Resolvers::default()
            } else {
                let link = tunnel_of(&terms).and_then(|name| links.get(name));
                let stub = self.stub(id, &addresses);
                resolvers(&addresses, link, stub)
            };
            self.kernel.set_resolvers(id, resolvers)?;
        }
        Ok(())
    }

    /// The stub of a policy, which asks `resolvers`. Without one, what it is for is refused.
    fn stub(&mut self, id: PolicyId, resolvers: &[IpAddr]) -> Option<&Stub> {
        if !self.stubs.contains_key(&id) {
            match Stub::open(self.options.field, id) {
                Ok(stub) => drop(self.stubs.insert(id, stub)),
                Err(error) => warn!(%error, policy = %id, "no stub for questions by odd sockets"),
            }
        }
        let stub = self.stubs.get(&id)?;
        stub.ask(resolvers);
        Some(stub)
    }
}

/// What the kernel programs go by. A resolver of an IP version that the tunnel has not is asked by
/// nobody; the stub asks the other one.
fn resolvers(addresses: &[IpAddr], link: Option<&plan::Link>, stub: Option<&Stub>) -> Resolvers {
    let own = |is_v6: bool| {
        let addresses = link.into_iter().flat_map(|link| &link.addresses);
        let mut own = addresses.map(IpNet::addr);
        own.find(|own| own.is_ipv6() == is_v6 && !is_link_local(*own))
    };
    let knows_own = own(false).or(own(true)).is_some();
    let of = |is_v6: bool| {
        let far = addresses.iter().find(|far| far.is_ipv6() == is_v6);
        let far = far.filter(|_| own(is_v6).is_some() || !knows_own);
        let stub = stub.and_then(|stub| stub.port(is_v6));
        Resolver {
            far: far.map_or_else(Endpoint::default, |far| Endpoint::new(*far, DNS)),
            stub: stub.map_or_else(Endpoint::default, |port| {
                Endpoint::new(loopback(is_v6), port)
            }),
            own: own(is_v6).map(words).unwrap_or_default(),
        }
    };
    let (v4, v6) = (of(false), of(true));
    let resolvers = Resolvers { v4, v6 };
    if resolvers.exist() {
        return resolvers;
    }
    // None can be asked. The kernel must not take that for a policy without resolvers.
    let unreachable = Endpoint::new(addresses[0], DNS);
    if addresses[0].is_ipv6() {
        let far = unreachable;
        return Resolvers {
            v6: Resolver { far, ..v6 },
            v4,
        };
    }
    let far = unreachable;
    Resolvers {
        v4: Resolver { far, ..v4 },
        v6,
    }
}

fn loopback(is_v6: bool) -> IpAddr {
    if is_v6 {
        Ipv6Addr::LOCALHOST.into()
    } else {
        Ipv4Addr::LOCALHOST.into()
    }
}

fn is_here(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || address.is_unspecified()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
