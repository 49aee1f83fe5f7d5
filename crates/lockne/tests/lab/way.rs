//! Which way a program's packets went, judged by what the server on the internet saw.

use std::net::{IpAddr, SocketAddr};

use lockne_lab::{
    internet::{HOME_V4, HOME_V6, LAN_V4, LAN_V6, ORIGIN_V4, ORIGIN_V6, PLAIN_V4, PLAIN_V6},
    origin::{ADDRESS_PORT, Service},
    probe::{Action, Form, Options, Outcome, Probe, Report},
    provider::Provider,
};

use crate::home::Home;

/// An address of each family.
pub(crate) type Pair = [IpAddr; 2];

/// The server on the internet.
pub(crate) const ORIGIN: Pair = [IpAddr::V4(ORIGIN_V4), IpAddr::V6(ORIGIN_V6)];
/// The same server as a neighbour of the home.
pub(crate) const LAN: Pair = [IpAddr::V4(LAN_V4), IpAddr::V6(LAN_V6)];
/// The home on its uplink.
pub(crate) const HOME: Pair = [IpAddr::V4(HOME_V4), IpAddr::V6(HOME_V6)];
/// The home on the plain tunnel.
pub(crate) const PLAIN: Pair = [IpAddr::V4(PLAIN_V4), IpAddr::V6(PLAIN_V6)];

/// The home in a provider's tunnel.
pub(crate) fn client(provider: &Provider) -> Pair {
    [provider.client_v4().into(), provider.client_v6().into()]
}

/// Every kind of traffic, with the service it is for.
pub(crate) const KINDS: [(Action, Service); 5] = [
    (Action::Tcp, Service::Tcp),
    (Action::UdpConnected, Service::Udp),
    (Action::UdpUnconnected, Service::Udp),
    (Action::Ping, Service::Ping),
    (Action::RawPing, Service::Ping),
];

/// A probe to the server's port.
pub(crate) fn probe(action: Action, to: IpAddr) -> Probe {
    Probe::new(action, SocketAddr::new(to, ADDRESS_PORT))
}

/// Every kind of traffic to both addresses, and IPv4 as IPv6 sockets speak it.
pub(crate) fn every_kind(to: Pair) -> Vec<(Probe, Service)> {
    let mut probes = Vec::new();
    for (action, service) in KINDS {
        probes.extend(to.map(|to| (probe(action, to), service)));
        if service != Service::Ping {
            let form = Options {
                form: Form::V4Mapped,
                ..Options::default()
            };
            probes.push((probe(action, to[0]).with(form), service));
        }
    }
    probes
}

/// Fails unless every kind of traffic of a program under these arguments is answered by the server at
/// `to`, which sees it come from `from` and from nowhere else.
pub(crate) fn assert_arrives<const N: usize>(
    home: &Home,
    arguments: [&str; N],
    to: Pair,
    from: Pair,
) {
    for (probe, service) in every_kind(to) {
        home.lab.origin.clear();

        let report = home.run(arguments, &probe);

        assert_answered(&report, probe.to.ip(), from, &probe);
        let from = of_family(from, probe.to.ip());
        let seen: Vec<_> = home.lab.origin.seen();
        assert!(
            matches!(seen[..], [visit] if visit.service == service && visit.source == from && visit.times == 1),
            "{arguments:?} {probe:?}: {seen:?}"
        );
    }
}

/// Fails unless the probe was answered, and both ends agree that it came from `from`.
pub(crate) fn assert_answered(report: &Report, to: IpAddr, from: Pair, probe: &Probe) {
    let from = of_family(from, to);
    let Outcome::Answered { saw } = report.outcome else {
        panic!("{probe:?}: {report:?}");
    };
    if let Some(saw) = saw {
        assert_eq!(saw.ip(), from, "{probe:?}: {report:?}");
    }
    // What is not connected has no address of its own.
    if let Some(local) = report.local.map(|it| it.ip().to_canonical())
        && !local.is_unspecified()
    {
        assert_eq!(local, from, "{probe:?}: {report:?}");
    }
}

/// The address of the pair that is of the family of `like`.
pub(crate) fn of_family(pair: Pair, like: IpAddr) -> IpAddr {
    pair[usize::from(like.is_ipv6())]
}
