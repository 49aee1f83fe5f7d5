//! Rules and routes as netlink messages, there and back.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use lockne_core::plan::{Family, PROTOCOL, Route, Rule, Target, Verdict};
use rtnetlink::packet_route::{
    AddressFamily,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
        RouteScope, RouteType, RouteVia,
    },
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

/// Packets that this machine sends have `lo` as their input interface.
const LOCALLY_SENT: &str = "lo";

pub(super) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn family(family: AddressFamily) -> Option<Family> {
    match family {
        AddressFamily::Inet => Some(Family::V4),
        AddressFamily::Inet6 => Some(Family::V6),
        _ => None,
    }
}

pub(super) fn from_rule(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let header = &mut message.header;
    header.family = address_family(rule.family());
    header.dst_len = rule.to.prefix_len();
    header.action = match rule.verdict {
        Verdict::Lookup(_) => RuleAction::ToTable,
        Verdict::Unreachable => RuleAction::Unreachable,
    };
    message.attributes = vec![
        RuleAttribute::Priority(rule.pref),
        RuleAttribute::FwMark(rule.mark),
        RuleAttribute::FwMask(rule.mask),
        RuleAttribute::Iifname(LOCALLY_SENT.to_owned()),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    if let Verdict::Lookup(table) = rule.verdict {
        message.attributes.push(RuleAttribute::Table(table));
    }
    if rule.to.prefix_len() != 0 {
        let to = RuleAttribute::Destination(rule.to.network());
        message.attributes.push(to);
    }
    message
}

/// Whether `message` carries our protocol.
pub(super) fn is_our_rule(message: &RuleMessage) -> bool {
    let ours = RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL));
    message.attributes.contains(&ours)
}

/// Whether a rule is asked about packets that this machine sends.
pub(super) fn is_met_here(message: &RuleMessage) -> bool {
    message.attributes.iter().all(|attribute| match attribute {
        RuleAttribute::Iifname(name) => name == "lo",
        _ => true,
    })
}

/// The mark and mask of a rule; a mark of 0 where it asks for none.
pub(super) fn fwmark(message: &RuleMessage) -> (u32, u32) {
    message
        .attributes
        .iter()
        .fold((0, 0), |(value, mask), attribute| match attribute {
            RuleAttribute::FwMark(value) => (*value, mask),
            RuleAttribute::FwMask(mask) => (value, *mask),
            _ => (value, mask),
        })
}

pub(super) fn pref(message: &RuleMessage) -> u32 {
    let pref = |attribute: &RuleAttribute| match attribute {
        RuleAttribute::Priority(pref) => Some(*pref),
        _ => None,
    };
    message.attributes.iter().find_map(pref).unwrap_or(0)
}

/// Reads a rule of ours, or `None` if it says more or less than ours do.
pub(super) fn to_rule(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    if header.src_len != 0 || header.tos != 0 || header.flags.contains(RuleFlags::Invert) {
        return None;
    }
    let family = family(header.family)?;
    let (value, mask) = fwmark(message);
    let mut to = family.everything();
    let mut table = u32::from(header.table);
    let mut locally_sent = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Destination(address) => {
                to = IpNet::new(*address, header.dst_len).ok()?;
            }
            RuleAttribute::Iifname(name) => locally_sent = name == LOCALLY_SENT,
            RuleAttribute::Priority(_)
            | RuleAttribute::FwMark(_)
            | RuleAttribute::FwMask(_)
            | RuleAttribute::Protocol(_)
            | RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => return None,
        }
    }
    let verdict = match header.action {
        RuleAction::ToTable => Verdict::Lookup(table),
        RuleAction::Unreachable => Verdict::Unreachable,
        _ => return None,
    };
    locally_sent.then(|| Rule {
        pref: pref(message),
        mark: value,
        mask,
        to,
        verdict,
    })
}

/// Somebody's rule in the words of `ip rule`, as far as it matters for a clash of marks.
pub(super) fn describe_rule(message: &RuleMessage) -> String {
    let (value, mask) = fwmark(message);
    let mut text = format!("pref {} fwmark {value:#x}/{mask:#x}", pref(message));
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        if let RuleAttribute::Table(value) = attribute {
            table = *value;
        }
    }
    // Writing to a string cannot fail.
    let _ = match message.header.action {
        RuleAction::ToTable => write!(text, " lookup {table}"),
        action => write!(text, " {}", format!("{action:?}").to_lowercase()),
    };
    match family(message.header.family) {
        Some(family) => format!("{family} {text}"),
        None => text,
    }
}

pub(super) fn from_route(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: address_family(route.family()),
        destination_prefix_length: route.prefix.prefix_len(),
        protocol: RouteProtocol::Other(PROTOCOL),
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Table(route.table),
        RouteAttribute::Priority(route.metric),
    ];
    if route.prefix.prefix_len() != 0 {
        let prefix = RouteAddress::from(route.prefix.network());
        message.attributes.push(RouteAttribute::Destination(prefix));
    }
    match &route.target {
        Target::Unreachable => message.header.kind = RouteType::Unreachable,
        Target::Device {
            ifindex, gateway, ..
        } => {
            message.attributes.push(RouteAttribute::Oif(*ifindex));
            if let Some(gateway) = gateway {
                // Asking the main table whether the gateway is near would be asking the wrong one.
                message.header.flags = RouteFlags::Onlink;
                let gateway = RouteAddress::from(*gateway);
                message.attributes.push(RouteAttribute::Gateway(gateway));
            } else if route.family() == Family::V4 {
                message.header.scope = RouteScope::Link;
            }
        }
    }
    message
}

/// Reads a route of ours, or `None` if it says more than ours do; `name` knows interfaces.
pub(super) fn to_route(
    message: &RouteMessage,
    name: impl Fn(u32) -> Option<String>,
) -> Option<Route> {
    let family = family(message.header.address_family)?;
    let (mut metric, mut device) = (0, None);
    let mut prefix = family.everything();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Oif(value) => device = Some(*value),
            RouteAttribute::Destination(address) => {
                let length = message.header.destination_prefix_length;
                prefix = IpNet::new(ip(address)?, length).ok()?;
            }
            _ => {}
        }
    }
    let target = match (message.header.kind, device) {
        (RouteType::Unreachable, _) => Target::Unreachable,
        (RouteType::Unicast, Some(ifindex)) => Target::Device {
            name: name(ifindex).unwrap_or_else(|| format!("if{ifindex}")),
            ifindex,
            gateway: gateway(&message.attributes),
        },
        _ => return None,
    };
    Some(Route {
        table: table(message),
        prefix,
        metric,
        target,
    })
}

pub(super) fn table(message: &RouteMessage) -> u32 {
    let table = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    };
    let short = u32::from(message.header.table);
    message.attributes.iter().find_map(table).unwrap_or(short)
}

pub(super) fn metric(message: &RouteMessage) -> u32 {
    let metric = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    };
    message.attributes.iter().find_map(metric).unwrap_or(0)
}

/// The gateway by which `message` reaches `ifindex`, also as one of several next hops.
pub(super) fn gateway_by(message: &RouteMessage, ifindex: u32) -> Option<IpAddr> {
    let hops = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::MultiPath(hops) => hops
            .iter()
            .find(|hop| hop.interface_index == ifindex)
            .and_then(|hop| gateway(&hop.attributes)),
        _ => None,
    };
    gateway(&message.attributes).or_else(|| message.attributes.iter().find_map(hops))
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::from(Ipv4Addr::to_owned(address))),
        RouteAddress::Inet6(address) => Some(IpAddr::from(Ipv6Addr::to_owned(address))),
        _ => None,
    }
}
