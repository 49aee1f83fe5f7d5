//! What programs call the addresses that they speak with, from the answers that they got.
//!
//! Nothing is looked up, written down or kept: it is forgotten when the watching ends, and before, when
//! there is much of it.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    rc::Rc,
};

use lockne_core::answer;
use lockne_daemon::observe::{Answer, Flow};

/// How many addresses of askers are remembered, and how many names of each.
const MANY: usize = 1 << 13;
const NAMES: usize = 4;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Asker {
    Process(u32),
    /// Any with this mark: many programs have others ask for them.
    Mark(u32),
}

type Key = (Asker, IpAddr);

#[derive(Default)]
pub(super) struct Names {
    /// With the time of each answer, the latest one last.
    known: HashMap<Key, VecDeque<(u64, Rc<str>)>>,
    /// The eldest first.
    order: VecDeque<Key>,
}

impl Names {
    /// Remembers what an answer says.
    pub(super) fn hear(&mut self, answer: &Answer, packet: &[u8], mark: u32) {
        let Some(said) = answer::Answer::of_packet(packet) else {
            return;
        };
        let name: Rc<str> = said.name.into();
        for address in said.addresses {
            for asker in [Asker::Process(answer.pid), Asker::Mark(mark)] {
                self.note((asker, address), answer.time, &name);
            }
        }
    }

    fn note(&mut self, key: Key, time: u64, name: &Rc<str>) {
        let names = self.known.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            VecDeque::new()
        });
        if names.back().is_some_and(|(_, last)| last == name) {
            return;
        }
        names.push_back((time, Rc::clone(name)));
        if names.len() > NAMES {
            names.pop_front();
        }
        if self.order.len() > MANY
            && let Some(eldest) = self.order.pop_front()
        {
            self.known.remove(&eldest);
        }
    }

    /// What the other end of a flow was called when it began: by its process, or else by others with its mark.
    pub(super) fn of(&self, flow: &Flow, mark: u32) -> Option<Rc<str>> {
        if self.known.is_empty() {
            return None;
        }
        let address = IpAddr::V6(Ipv6Addr::from(flow.remote)).to_canonical();
        let own = (flow.pid != 0).then_some(Asker::Process(flow.pid));
        own.into_iter()
            .chain([Asker::Mark(mark)])
            .find_map(|asker| {
                let names = self.known.get(&(asker, address))?;
                let before = names.iter().rev().find(|(time, _)| *time <= flow.started);
                // Of what is older than the watching, what it was called later.
                let (_, name) = before.or(names.front())?;
                Some(Rc::clone(name))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer that this name has the address 203.0.113.`host`.
    fn packet(name: &str, host: u8) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet.extend([0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        for label in name.split('.') {
            packet.push(label.len().try_into().unwrap());
            packet.extend(label.bytes());
        }
        packet.extend([0, 0, 1, 0, 1]);
        packet.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, host]);
        packet
    }

    fn hear(names: &mut Names, pid: u32, mark: u32, time: u64, packet: &[u8]) {
        let answer = Answer {
            pid,
            time,
            ..Answer::default()
        };
        names.hear(&answer, packet, mark);
    }

    fn flow(pid: u32, started: u64, host: u8) -> Flow {
        let remote = std::net::Ipv4Addr::new(203, 0, 113, host);
        Flow {
            pid,
            started,
            remote: remote.to_ipv6_mapped().octets(),
            ..Flow::default()
        }
    }

    #[test]
    fn own_name_goes_before_that_of_others_with_the_same_mark() {
        let mut names = Names::default();
        hear(&mut names, 1, 9, 10, &packet("own.example", 1));
        hear(&mut names, 2, 9, 11, &packet("other.example", 1));

        let of = |pid, mark| names.of(&flow(pid, 20, 1), mark);

        assert_eq!(of(1, 9).as_deref(), Some("own.example"));
        assert_eq!(of(2, 9).as_deref(), Some("other.example"));
        assert_eq!(of(3, 9).as_deref(), Some("other.example"));
        assert_eq!(of(3, 8), None);
        // The kernel asks nobody.
        assert_eq!(of(0, 8), None);
        assert_eq!(names.of(&flow(1, 20, 2), 9), None);
    }

    #[test]
    fn name_is_that_of_the_time_when_the_connection_began() {
        let mut names = Names::default();
        hear(&mut names, 1, 9, 10, &packet("first.example", 1));
        hear(&mut names, 1, 9, 20, &packet("second.example", 1));

        let of = |started| names.of(&flow(1, started, 1), 9);

        assert_eq!(of(5).as_deref(), Some("first.example"));
        assert_eq!(of(15).as_deref(), Some("first.example"));
        assert_eq!(of(20).as_deref(), Some("second.example"));
    }

    #[test]
    fn what_is_remembered_has_an_end() {
        let mut names = Names::default();
        for round in 0..u32::try_from(MANY).unwrap() * 2 {
            hear(
                &mut names,
                round,
                9,
                u64::from(round),
                &packet("a.example", 1),
            );
        }
        for round in 0..20_u8 {
            let name = format!("n{round}.example");
            hear(&mut names, u32::MAX, 9, 0, &packet(&name, 1));
        }

        assert_eq!(names.known.len(), MANY);
        assert_eq!(names.order.len(), MANY);
        assert!(names.known.values().all(|names| names.len() <= NAMES));
        assert_eq!(names.of(&flow(0, 0, 1), 0), None);
    }
}
