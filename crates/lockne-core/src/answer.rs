//! What a name server's answer says: these addresses are of that name.
//!
//! Only to show names to who watches. Anybody could have sent it, so it decides nothing, and a name that
//! a terminal could take for something else is none.

use std::net::IpAddr;

use simple_dns::{Packet, PacketFlag, RCODE, rdata::RData};

/// IPv4 without options, IPv6, and UDP.
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;

/// The counts of what comes behind the answers, which nobody needs.
const BEHIND: std::ops::Range<usize> = 8..12;

/// A name, and the addresses that it was answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The name that was asked for, not those that it leads to.
    pub name: String,
    /// Its addresses, at least one.
    pub addresses: Vec<IpAddr>,
}

impl Answer {
    /// Reads a UDP packet, from the IP header on. `None` if it has no answer with addresses.
    #[must_use]
    pub fn of_packet(packet: &[u8]) -> Option<Self> {
        let first = *packet.first()?;
        let header = match first >> 4 {
            4 => IPV4.max(usize::from(first & 15) * 4),
            6 => IPV6,
            _ => return None,
        };
        Self::parse(packet.get(header + UDP..)?)
    }

    /// Reads a message.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut message = message.to_vec();
        message.get_mut(BEHIND)?.fill(0);
        let packet = Packet::parse(&message).ok()?;
        if !packet.has_flags(PacketFlag::RESPONSE) || packet.rcode() != RCODE::NoError {
            return None;
        }
        let [question] = &packet.questions[..] else {
            return None;
        };
        let name = question.qname.to_string();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_plain) {
            return None;
        }
        let addresses: Vec<IpAddr> = packet
            .answers
            .iter()
            .filter_map(|record| match &record.rdata {
                RData::A(record) => Some(IpAddr::V4(record.address.into())),
                RData::AAAA(record) => Some(IpAddr::V6(record.address.into())),
                _ => None,
            })
            .collect();
        (!addresses.is_empty()).then_some(Self { name, addresses })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::{
        CLASS, Name, Question, ResourceRecord,
        rdata::{A, AAAA, CNAME},
    };

    use super::*;

    fn question(name: &str) -> Question<'_> {
        let name = Name::new_unchecked(name);
        let kind = simple_dns::QTYPE::TYPE(simple_dns::TYPE::A);
        Question::new(name, kind, simple_dns::QCLASS::CLASS(CLASS::IN), false)
    }

    fn record<'a>(name: &'a str, data: RData<'a>) -> ResourceRecord<'a> {
        ResourceRecord::new(Name::new_unchecked(name), CLASS::IN, 60, data)
    }

    /// A name that leads to another one, which has an address of each version.
    fn answer(name: &str) -> Packet<'_> {
        let mut packet = Packet::new_reply(7);
        packet.questions.push(question(name));
        let to = "host.cdn.example";
        packet.answers = vec![
            record(name, RData::CNAME(CNAME(Name::new_unchecked(to)))),
            record(
                to,
                RData::A(A {
                    address: 0xcb00_710a,
                }),
            ),
            record(to, RData::AAAA(AAAA { address: 1 })),
        ];
        packet
    }

    fn bytes(packet: &Packet<'_>) -> Vec<u8> {
        packet.build_bytes_vec_compressed().unwrap()
    }

    #[test]
    fn addresses_are_of_the_name_that_was_asked_for() {
        let message = bytes(&answer("www.test.example"));
        let expected = Some(Answer {
            name: "www.test.example".to_owned(),
            addresses: vec!["203.0.113.10".parse().unwrap(), "::1".parse().unwrap()],
        });

        assert_eq!(Answer::parse(&message), expected);
        for header in [
            [&[0x45][..], &[0; IPV4 + UDP - 1]].concat(),
            // With options.
            [&[0x46][..], &[0; IPV4 + 4 + UDP - 1]].concat(),
            [&[0x60][..], &[0; IPV6 + UDP - 1]].concat(),
        ] {
            let packet = [header, message.clone()].concat();
            assert_eq!(Answer::of_packet(&packet), expected);
        }
    }

    #[test]
    fn what_is_behind_the_answers_may_be_cut() {
        let mut packet = answer("www.test.example");
        let end = bytes(&packet).len();
        packet
            .name_servers
            .push(record("example", RData::AAAA(AAAA { address: 2 })));
        let message = bytes(&packet);

        let found = Answer::parse(&message[..end + 3]).unwrap();

        assert_eq!(found.addresses.len(), 2);
        assert_eq!(Answer::parse(&message[..end - 3]), None);
    }

    #[test]
    fn questions_errors_and_strange_names_say_nothing() {
        let mut asked = answer("www.test.example");
        asked.remove_flags(PacketFlag::RESPONSE);
        let mut failed = answer("www.test.example");
        *failed.rcode_mut() = RCODE::NameError;
        let mut several = answer("www.test.example");
        several.questions.push(question("other.example"));
        let mut empty = answer("www.test.example");
        empty.answers.clear();
        for packet in [
            asked,
            failed,
            several,
            empty,
            answer("a\u{1b}[2J.example"),
            answer("\u{202e}.example"),
            answer("a b.example"),
        ] {
            assert_eq!(Answer::parse(&bytes(&packet)), None, "{packet:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_without_panic(
            at in any::<prop::sample::Index>(), byte: u8, rest: Vec<u8>,
        ) {
            let mut message = bytes(&answer("www.test.example"));
            *at.get_mut(&mut message[..]) = byte;
            let _ = Answer::parse(&message);
            let _ = Answer::of_packet(&rest);
        }
    }
}
