//! What the kernel has.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use futures_util::{Stream, StreamExt as _};
use ipnet::IpNet;
use lockne_abi::MarkField;
use lockne_core::{
    doctor::ForeignRule,
    plan::{Family, Link, LinkState, Observed, PROTOCOL, Sysctl, is_our_table},
    tunnel::TunnelName,
};
use rtnetlink::{
    IpVersion,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkMessage},
        route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType},
        rule::RuleMessage,
    },
};

use super::{Error, Netlink, into_io, message, sysctl};

impl Netlink {
    /// Reads what is there: our rules and routes, and the interfaces named by `tunnels`.
    ///
    /// # Errors
    ///
    /// If the kernel does not list something, or a sysctl cannot be read.
    pub async fn observe(
        &self,
        field: MarkField,
        tunnels: &BTreeSet<TunnelName>,
    ) -> Result<Observed, Error> {
        let interfaces = self.interfaces().await?;
        let rules = self.rules().await?;
        let (ours, others): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| {
            message::is_our_rule(rule) && message::fwmark(rule).1 == field.mask()
        });
        let met = others.into_iter().filter(|rule| message::is_met_here(rule));
        let mut observed = Observed {
            rules: ours.into_iter().filter_map(message::to_rule).collect(),
            first_foreign: met.map(message::pref).filter(|pref| *pref != 0).min(),
            families: families(),
            ..Observed::default()
        };
        let name_of = |ifindex| interfaces.get(&ifindex).map(|(name, _)| name.clone());
        for route in self.our_routes().await? {
            observed.routes.extend(message::to_route(&route, name_of));
        }
        for (name, link) in interfaces.values() {
            if let Some(tunnel) = tunnels.iter().find(|tunnel| tunnel.as_str() == name) {
                let link = Link {
                    gateways: self.gateways(link.ifindex).await?,
                    ..link.clone()
                };
                observed.links.insert(tunnel.clone(), link);
            }
        }
        let per_tunnel = tunnels.iter().cloned().map(Sysctl::SrcValidMark);
        let per_family = Family::ALL.map(Sysctl::FwmarkReflect);
        for sysctl in per_tunnel.chain(per_family) {
            if let Some(value) = sysctl::read(&sysctl)? {
                observed.sysctls.insert(sysctl, value);
            }
        }
        // The sysctls of an interface go with it; the next one of that name has its own.
        for (sysctl, value) in &self.originals {
            if sysctl::read(sysctl)?.is_some() {
                observed.originals.insert(sysctl.clone(), *value);
            }
        }
        Ok(observed)
    }

    /// Lists what stands in the way of `field`, in the words of `ip rule`.
    ///
    /// That is each rule of others that asks for a bit of the field, for our marks would be taken
    /// for theirs; and each rule of a lockne with another field, for it uses our tables.
    ///
    /// # Errors
    ///
    /// If the kernel does not list the rules.
    pub async fn foreign_marks(&self, field: MarkField) -> Result<Vec<String>, Error> {
        let rules = self.rules().await?;
        let foreign = rules.iter().filter(|rule| {
            let (value, mask) = message::fwmark(rule);
            if message::is_our_rule(rule) {
                mask != field.mask()
            } else {
                value & field.mask() != 0
            }
        });
        Ok(foreign.map(message::describe_rule).collect())
    }

    /// The rules of others, but not those that the kernel makes itself.
    ///
    /// # Errors
    ///
    /// If the kernel does not list the rules.
    pub async fn foreign_rules(&self) -> Result<Vec<ForeignRule>, Error> {
        let mut foreign = Vec::new();
        for rule in self.rules().await? {
            let own = message::is_our_rule(&rule);
            let kernels = rule.header.table == 255 || matches!(message::pref(&rule), 32766 | 32767);
            if own || kernels {
                continue;
            }
            foreign.push(ForeignRule {
                family: match rule.header.family {
                    AddressFamily::Inet6 => Family::V6,
                    _ => Family::V4,
                },
                priority: message::pref(&rule),
                mark: message::fwmark(&rule),
                text: message::describe_rule(&rule),
            });
        }
        Ok(foreign)
    }

    /// The interface `name`, without its gateways; `None` if there is none.
    ///
    /// # Errors
    ///
    /// If the kernel does not list the interfaces.
    pub async fn link(&self, name: &TunnelName) -> Result<Option<Link>, Error> {
        let mut interfaces = self.interfaces().await?.into_values();
        let found = interfaces.find(|(other, _)| other == name.as_str());
        Ok(found.map(|(_, link)| link))
    }

    /// The names of all interfaces.
    ///
    /// # Errors
    ///
    /// If the kernel does not list them.
    pub async fn link_names(&self) -> Result<BTreeSet<String>, Error> {
        let interfaces = self.interfaces().await?;
        Ok(interfaces.into_values().map(|(name, _)| name).collect())
    }

    pub(super) async fn our_rules(&self, field: MarkField) -> Result<Vec<RuleMessage>, Error> {
        let mut rules = self.rules().await?;
        rules.retain(|rule| message::is_our_rule(rule) && message::fwmark(rule).1 == field.mask());
        Ok(rules)
    }

    pub(super) async fn our_routes(&self) -> Result<Vec<RouteMessage>, Error> {
        let mut routes = Vec::new();
        for family in families() {
            let mut filter = RouteMessage::default();
            filter.header.address_family = message::address_family(family);
            filter.header.protocol = RouteProtocol::Other(PROTOCOL);
            routes.extend(self.routes(filter).await?);
        }
        routes.retain(|route| {
            route.header.protocol == RouteProtocol::Other(PROTOCOL)
                && is_our_table(message::table(route))
        });
        Ok(routes)
    }

    async fn rules(&self) -> Result<Vec<RuleMessage>, Error> {
        let mut rules = Vec::new();
        for family in families() {
            let version = match family {
                Family::V4 => IpVersion::V4,
                Family::V6 => IpVersion::V6,
            };
            let dump = self.handle.rule().get(version).execute();
            rules.extend(collect("rules", dump).await?);
        }
        Ok(rules)
    }

    async fn routes(&self, filter: RouteMessage) -> Result<Vec<RouteMessage>, Error> {
        collect("routes", self.handle.route().get(filter).execute()).await
    }

    /// The gateways of the best default routes that others made through `ifindex`.
    async fn gateways(&self, ifindex: u32) -> Result<BTreeMap<Family, IpAddr>, Error> {
        let mut gateways = BTreeMap::new();
        for family in families() {
            let mut filter = RouteMessage::default();
            filter.header.address_family = message::address_family(family);
            filter.attributes = vec![RouteAttribute::Oif(ifindex)];
            let best = self
                .routes(filter)
                .await?
                .into_iter()
                .filter(|route| {
                    route.header.destination_prefix_length == 0
                        && route.header.kind == RouteType::Unicast
                        && route.header.protocol != RouteProtocol::Other(PROTOCOL)
                })
                .filter_map(|route| {
                    let gateway = message::gateway_by(&route, ifindex)?;
                    Some((message::metric(&route), gateway))
                })
                .filter(|(_, gateway)| gateway.is_ipv6() == (family == Family::V6))
                .min();
            gateways.extend(best.map(|(_, gateway)| (family, gateway)));
        }
        Ok(gateways)
    }

    /// All interfaces with their names, by index.
    async fn interfaces(&self) -> Result<BTreeMap<u32, (String, Link)>, Error> {
        let links = collect("interfaces", self.handle.link().get().execute()).await?;
        let addresses = collect("addresses", self.handle.address().get().execute()).await?;
        let interfaces = links.iter().filter_map(interface);
        let mut interfaces: BTreeMap<_, _> = interfaces
            .map(|(name, link)| (link.ifindex, (name, link)))
            .collect();
        for message in addresses {
            if let Some((_, link)) = interfaces.get_mut(&message.header.index) {
                link.addresses.extend(address(&message));
            }
        }
        Ok(interfaces)
    }
}

/// The families that this kernel has.
///
/// There is no `/proc/sys/net/ipv6` where IPv6 is not built in or is off by `ipv6.disable=1`. Where
/// only `disable_ipv6` is set, rules and unreachable routes of IPv6 work like everywhere.
fn families() -> BTreeSet<Family> {
    let has = |family: &Family| match family {
        Family::V4 => true,
        Family::V6 => Path::new("/proc/sys/net/ipv6").exists(),
    };
    Family::ALL.into_iter().filter(has).collect()
}

fn interface(message: &LinkMessage) -> Option<(String, Link)> {
    let (mut name, mut mtu) = (None, 0);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::Mtu(value) => mtu = *value,
            _ => {}
        }
    }
    let state = if message.header.flags.contains(LinkFlags::Up) {
        LinkState::Up
    } else {
        LinkState::Down
    };
    let link = Link {
        ifindex: message.header.index,
        state,
        mtu,
        addresses: BTreeSet::new(),
        gateways: BTreeMap::new(),
    };
    Some((name?, link))
}

/// The address of this end; on a point-to-point link the other attribute is the far end's.
fn address(message: &AddressMessage) -> Option<IpNet> {
    let (mut local, mut any) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => any = Some(*address),
            _ => {}
        }
    }
    IpNet::new(local.or(any)?, message.header.prefix_len).ok()
}

async fn collect<T>(
    what: &'static str,
    dump: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, Error> {
    let mut dump = std::pin::pin!(dump);
    let mut all = Vec::new();
    while let Some(item) = dump.next().await {
        all.push(item.map_err(|error| Error::List {
            what,
            source: into_io(error),
        })?);
    }
    Ok(all)
}
