//! What an expression means: comparisons of what is known of a packet.

use std::net::Ipv4Addr;

use lockne_abi::{MarkField, observe::Packet};

use super::{
    expression::{
        Address, Bound, Direction, Expression, Family, Layer, Primitive, Range, Transport,
    },
    program::{Field, Relation, Test},
};

const IPV4: u32 = 0x0800;
const ARP: u32 = 0x0806;
const RARP: u32 = 0x8035;
const IPV6: u32 = 0x86dd;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Where the packets of a tunnel are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// Its device, if it is there.
    pub ifindex: Option<u32>,
    /// The policies that go through it.
    pub policies: Vec<u8>,
    /// The bits of the mark that carry the policy.
    pub mask: u32,
}

impl Tunnel {
    /// The field of the mark, for tests and callers that have it as such.
    #[must_use]
    pub fn marked(field: MarkField, policies: Vec<u8>) -> Self {
        Self {
            ifindex: None,
            policies,
            mask: field.mask(),
        }
    }
}

/// A statement made of tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Formula {
    Test(Test),
    Not(Box<Formula>),
    All(Vec<Formula>),
    Any(Vec<Formula>),
}

impl Expression {
    /// The names of the tunnels in it.
    #[must_use]
    pub fn tunnels(&self) -> Vec<&str> {
        let mut names = Vec::new();
        self.visit(&mut |primitive| {
            if let Primitive::Tunnel(name) = primitive {
                names.push(name.as_str());
            }
        });
        names
    }

    /// Whether it asks which process a packet belongs to.
    #[must_use]
    pub fn asks_for_process(&self) -> bool {
        let mut asks = false;
        self.visit(&mut |primitive| {
            asks |= matches!(primitive, Primitive::Name(_) | Primitive::Pid(_));
        });
        asks
    }

    fn visit<'a>(&'a self, see: &mut dyn FnMut(&'a Primitive)) {
        match self {
            Self::Everything => {}
            Self::Is(primitive) => see(primitive),
            Self::Not(inner) => inner.visit(see),
            Self::And(left, right) | Self::Or(left, right) => {
                left.visit(see);
                right.visit(see);
            }
        }
    }

    pub(super) fn formula(&self, tunnel: &dyn Fn(&str) -> Tunnel) -> Formula {
        match self {
            Self::Everything => Formula::All(Vec::new()),
            Self::Is(primitive) => of(primitive, tunnel),
            Self::Not(inner) => Formula::Not(Box::new(inner.formula(tunnel))),
            Self::And(left, right) => {
                Formula::All(vec![left.formula(tunnel), right.formula(tunnel)])
            }
            Self::Or(left, right) => {
                Formula::Any(vec![left.formula(tunnel), right.formula(tunnel)])
            }
        }
    }
}

fn of(primitive: &Primitive, tunnel: &dyn Fn(&str) -> Tunnel) -> Formula {
    match primitive {
        Primitive::Layer(layer) => of_layer(*layer),
        Primitive::Address {
            layer,
            direction,
            address,
        } => of_address(*layer, *direction, address),
        Primitive::Port {
            transport,
            direction,
            range,
        } => of_port(*transport, *direction, *range),
        Primitive::Number { family, number } => of_number(*family, *number),
        Primitive::Length(Bound::AtLeast(length)) => at_least(Field::Length, *length),
        Primitive::Length(Bound::AtMost(length)) => at_most(Field::Length, *length),
        Primitive::Name(name) => Formula::All(
            (0..4)
                .map(|word| {
                    let at = usize::from(word) * 4;
                    let part = [name[at], name[at + 1], name[at + 2], name[at + 3]];
                    equal(Field::Name(word), u32::from_ne_bytes(part))
                })
                .chain([not(equal(Field::Pid, 0))])
                .collect(),
        ),
        Primitive::Pid(pid) => equal(Field::Pid, *pid),
        Primitive::Tunnel(name) => {
            let tunnel = tunnel(name);
            let by_device = tunnel.ifindex.map(|ifindex| equal(Field::Device, ifindex));
            let by_mark = tunnel.policies.iter().map(|policy| {
                let shift = tunnel.mask.trailing_zeros().min(24);
                masked(Field::Mark, tunnel.mask, u32::from(*policy) << shift)
            });
            Formula::Any(by_device.into_iter().chain(by_mark).collect())
        }
    }
}

fn of_layer(layer: Layer) -> Formula {
    match layer {
        Layer::Ip => equal(Field::Ethertype, IPV4),
        Layer::Ip6 => equal(Field::Ethertype, IPV6),
        Layer::Arp => equal(Field::Ethertype, ARP),
        Layer::Rarp => equal(Field::Ethertype, RARP),
        Layer::Transport(transport) => of_number(None, transport.number()),
        Layer::Icmp => of_number(Some(Family::V4), ICMP),
        Layer::Icmp6 => of_number(Some(Family::V6), ICMPV6),
    }
}

fn of_number(family: Option<Family>, number: u8) -> Formula {
    let number = u32::from(number);
    let v4 = || {
        Formula::All(vec![
            equal(Field::Ethertype, IPV4),
            equal(Field::Protocol, number),
        ])
    };
    let v6 = || {
        Formula::All(vec![
            equal(Field::Ethertype, IPV6),
            Formula::Any(vec![
                equal(Field::Protocol, number),
                equal(Field::Behind, number),
            ]),
        ])
    };
    match family {
        Some(Family::V4) => v4(),
        Some(Family::V6) => v6(),
        None => Formula::Any(vec![v4(), v6()]),
    }
}

fn of_address(layer: Option<Layer>, direction: Direction, address: &Address) -> Formula {
    let types = match (layer, address) {
        (Some(layer), _) => vec![of_layer(layer)],
        (None, Address::V4 { .. }) => vec![
            of_layer(Layer::Ip),
            of_layer(Layer::Arp),
            of_layer(Layer::Rarp),
        ],
        (None, Address::V6 { .. }) => vec![of_layer(Layer::Ip6)],
    };
    // As `Packet` has it: IPv4 in the last word.
    let (bytes, mask) = match *address {
        Address::V4 { address, mask } => {
            ([[0; 4], [0; 4], [0; 4], address.octets()], [0, 0, 0, mask])
        }
        Address::V6 { address, mask } => (
            words(address.octets()),
            words(mask.to_be_bytes()).map(u32::from_be_bytes),
        ),
    };
    let end = |field: fn(u8) -> Field| {
        let tests = (0_u8..)
            .zip(bytes.iter().zip(mask))
            .filter(|(_, (_, mask))| *mask != 0);
        let tests = tests.map(|(word, (bytes, mask))| {
            let mask = u32::from_ne_bytes(Ipv4Addr::from(mask).octets());
            masked(field(word), mask, u32::from_ne_bytes(*bytes))
        });
        Formula::All(tests.collect())
    };
    Formula::All(vec![
        Formula::Any(types),
        ends(direction, end(Field::Source), end(Field::Destination)),
    ])
}

fn words(bytes: [u8; 16]) -> [[u8; 4]; 4] {
    std::array::from_fn(|word| std::array::from_fn(|byte| bytes[word * 4 + byte]))
}

fn of_port(transport: Option<Transport>, direction: Direction, range: Range) -> Formula {
    let transports = transport.map_or(Transport::ALL.to_vec(), |transport| vec![transport]);
    let transports = transports
        .into_iter()
        .map(|transport| equal(Field::Protocol, transport.number().into()));
    let (first, last) = (u32::from(range.first), u32::from(range.last));
    let end = |field: Field| {
        if first == last {
            equal(field, first)
        } else {
            Formula::All(vec![at_least(field, first), at_most(field, last)])
        }
    };
    let flag = u32::from(Packet::PORTS);
    Formula::All(vec![
        masked(Field::Flags, flag, flag),
        Formula::Any(transports.collect()),
        ends(
            direction,
            end(Field::SourcePort),
            end(Field::DestinationPort),
        ),
    ])
}

fn ends(direction: Direction, source: Formula, destination: Formula) -> Formula {
    match direction {
        Direction::Source => source,
        Direction::Destination => destination,
        Direction::Either => Formula::Any(vec![source, destination]),
        Direction::Both => Formula::All(vec![source, destination]),
    }
}

fn equal(field: Field, value: u32) -> Formula {
    masked(field, u32::MAX, value)
}

fn masked(field: Field, mask: u32, value: u32) -> Formula {
    Formula::Test(Test {
        field,
        mask,
        relation: Relation::Equal,
        value,
    })
}

fn at_least(field: Field, value: u32) -> Formula {
    Formula::Test(Test {
        field,
        mask: u32::MAX,
        relation: Relation::AtLeast,
        value,
    })
}

fn at_most(field: Field, value: u32) -> Formula {
    match value.checked_add(1) {
        Some(next) => not(at_least(field, next)),
        None => Formula::All(Vec::new()),
    }
}

fn not(formula: Formula) -> Formula {
    Formula::Not(Box::new(formula))
}
