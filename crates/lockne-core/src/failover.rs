//! Which of several tunnels a policy uses: the first that works. Pure: the time comes from outside.
//!
//! A tunnel fails at once when its device was up and is down, and else when what was sent into it has had no
//! answer for a while: a WireGuard peer answers within ten seconds, if only to say that it is there. It works again
//! when it has done so for a while, so that one that comes and goes is not gone back to each time.
//!
//! While none works, the one that was used last stays: its programs are silent, and nothing goes past it. Only
//! where the terms say `direct` behind them, programs go past all of them, once each has failed for a while.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    policy::{Action, Terms},
    tunnel::TunnelName,
};

/// How long what was sent may stay without an answer.
pub const SILENCE: Duration = Duration::from_secs(15);
/// How long every tunnel has to be without a sign of life before programs go past them, where they may.
pub const GIVEN_UP: Duration = SILENCE;
/// How long a tunnel that failed has to work before it is used again.
pub const CALM: Duration = Duration::from_secs(20);
/// How many pings in a row may be lost.
pub const LOST_PINGS: u32 = 3;
/// What WireGuard sends in a second only to keep a connection open, in bytes; the far end does not answer it.
const KEEPALIVE: u64 = 32;

/// What can be seen of a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sign {
    /// Its device is up.
    pub up: bool,
    /// Bytes sent and received so far, where somebody counts what its far end sends.
    pub traffic: Option<(u64, u64)>,
    /// Something was sent into it to see whether it answers at all.
    pub asked: bool,
    /// Whether an address behind it answered the last ping, if it has to.
    pub ping: Option<bool>,
}

/// What is known of a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// It was up.
    seen: bool,
    failed: bool,
    traffic: Option<(u64, u64)>,
    /// Since when something has been without an answer.
    waiting: Option<Duration>,
    lost: u32,
    /// Since when it has worked again, after it failed.
    better: Option<Duration>,
    /// Since when it has not worked: what was sent then had no answer any more.
    dead: Option<Duration>,
}

impl Health {
    /// Whether the tunnel works.
    #[must_use]
    pub const fn works(&self) -> bool {
        self.seen && !self.failed
    }

    /// Forgets what is without an answer: nobody could hear it, or the network needs a moment to be there again.
    pub const fn wake(&mut self) {
        self.traffic = None;
        self.waiting = None;
        self.lost = 0;
        self.better = None;
    }

    /// Whether it was up at any time.
    #[must_use]
    pub const fn was_up(&self) -> bool {
        self.seen
    }

    /// Whether it does not work, and for so long that it is not to be waited for.
    fn is_given_up(&self, now: Duration) -> bool {
        let dead = self.dead.filter(|_| !self.works());
        dead.is_some_and(|since| now.saturating_sub(since) >= GIVEN_UP)
    }

    /// Takes note of what was seen at the time `now`.
    pub fn observe(&mut self, now: Duration, sign: Sign) {
        // One that has yet to come up has not failed, and is not on trial when it does.
        if !self.seen && !sign.up {
            self.dead.get_or_insert(now);
            return;
        }
        let heard = self.hear(now, sign);
        let is_silent = self
            .waiting
            .is_some_and(|since| now.saturating_sub(since) >= SILENCE);
        if !sign.up || is_silent || self.lost >= LOST_PINGS {
            self.dead
                .get_or_insert(self.waiting.filter(|_| is_silent).unwrap_or(now));
            self.failed = true;
            self.better = None;
        } else if self.failed && (heard || self.better.is_some()) {
            let since = *self.better.get_or_insert(now);
            if now.saturating_sub(since) >= CALM {
                self.failed = false;
                self.better = None;
                self.dead = None;
            }
        } else if !self.failed {
            self.dead = None;
        }
        self.seen = true;
    }

    /// Returns whether there was a sign of life.
    fn hear(&mut self, now: Duration, sign: Sign) -> bool {
        let before = std::mem::replace(&mut self.traffic, sign.traffic);
        match sign.ping {
            Some(true) => self.lost = 0,
            Some(false) => self.lost = self.lost.saturating_add(1),
            None => {}
        }
        let Some((sent, received)) = sign.traffic else {
            self.waiting = None;
            return sign.up && sign.ping != Some(false) && self.lost == 0;
        };
        // Counters begin anew with a new device.
        let (sent_before, received_before) = before.unwrap_or((sent, received));
        if received != received_before || sent < sent_before {
            self.waiting = None;
            return self.lost == 0;
        }
        if !sign.up {
            self.waiting = None;
        } else if sign.asked || sent - sent_before > KEEPALIVE {
            self.waiting.get_or_insert(now);
        }
        false
    }
}

/// The way that `terms` mean at the time `now`, if they mean tunnels, after `current` was used.
#[must_use]
pub fn choose(
    terms: &Terms,
    health: &BTreeMap<TunnelName, Health>,
    current: Option<&Action>,
    now: Duration,
) -> Option<Action> {
    let works = |name: &&TunnelName| health.get(*name).is_some_and(Health::works);
    let via = |name: &TunnelName| Action::Via(name.clone());
    if let Some(first) = terms.tunnels().find(works) {
        return Some(via(first));
    }
    let is_given_up = |name| {
        let health: Option<&Health> = health.get(name);
        health.is_some_and(|it| it.is_given_up(now))
    };
    if terms.or_direct && (current == Some(&Action::Direct) || terms.tunnels().all(is_given_up)) {
        return Some(Action::Direct);
    }
    let mut tunnels = terms.tunnels().map(via);
    let first = tunnels.next();
    if first.as_ref() == current {
        return first;
    }
    tunnels.find(|it| Some(it) == current).or(first)
}

/// How long a daemon has looked at its tunnels. Time in which nobody looked, as the machine was suspended or the
/// daemon stopped, is not time in which nobody answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    time: Duration,
    last: Option<Duration>,
}

impl Watched {
    /// The longest time between two looks that counts; shorter than [`SILENCE`], as one look must not be enough.
    const MOST: Duration = Duration::from_secs(10);

    /// Counts a look at the time `now` of a clock that goes on while the machine sleeps. Returns whether nobody had
    /// looked for so long that what was seen before says nothing any more.
    pub fn look(&mut self, now: Duration) -> bool {
        let last = self.last.replace(now).unwrap_or(now);
        let since = now.saturating_sub(last);
        let was_away = since > Self::MOST;
        if !was_away {
            self.time += since;
        }
        was_away
    }

    /// The time by which to judge what was seen.
    #[must_use]
    pub const fn time(&self) -> Duration {
        self.time
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::policy::Action;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn up(sent: u64, received: u64) -> Sign {
        Sign {
            up: true,
            traffic: Some((sent, received)),
            ..Sign::default()
        }
    }

    #[test]
    fn idle_tunnel_works_however_long_it_keeps_its_connection_open() {
        let mut health = Health::default();
        for now in 0..10_000 {
            health.observe(seconds(now), up(now / 25 * 32, 0));
            assert!(health.works(), "{now}");
        }
    }

    #[test]
    fn what_stays_without_an_answer_is_a_failure_and_what_is_answered_late_is_none() {
        let mut health = Health::default();
        health.observe(seconds(0), up(0, 0));
        health.observe(seconds(1), up(100, 0));
        health.observe(seconds(12), up(100, 32));
        health.observe(seconds(20), up(100, 32));
        assert!(health.works());
        health.observe(seconds(30), up(200, 32));
        health.observe(seconds(44), up(300, 32));
        assert!(health.works());
        health.observe(seconds(45), up(400, 32));
        assert!(!health.works());
    }

    #[test]
    fn device_that_comes_up_for_the_first_time_works_at_once() {
        let mut health = Health::default();
        for now in 0..20 {
            health.observe(seconds(now), Sign::default());
            assert!(!health.works());
            assert_eq!(health.is_given_up(seconds(now)), now >= 15);
        }
        health.observe(seconds(20), up(0, 0));
        assert!(health.works() && !health.is_given_up(seconds(60)));
        health.observe(seconds(21), Sign::default());
        health.observe(seconds(22), up(0, 0));
        assert!(!health.works(), "the next time it has to prove itself");
    }

    #[test]
    fn device_that_is_down_is_a_failure_at_once_and_forgiven_late() {
        let mut health = Health::default();
        let plain = |up| Sign {
            up,
            ..Sign::default()
        };
        health.observe(seconds(0), plain(true));
        assert!(health.works());
        health.observe(seconds(1), plain(false));
        assert!(!health.works());
        health.observe(seconds(2), plain(true));
        health.observe(seconds(21), plain(true));
        assert!(!health.works());
        health.observe(seconds(22), plain(true));
        assert!(health.works());
    }

    #[test]
    fn lost_pings_are_a_failure_and_one_is_none() {
        let mut health = Health::default();
        let ping = |answered| Sign {
            ping: Some(answered),
            ..up(0, 0)
        };
        for (now, answered) in [true, false, false, true, false, false]
            .into_iter()
            .enumerate()
        {
            health.observe(seconds(now as u64), ping(answered));
            assert!(health.works());
        }
        health.observe(seconds(7), ping(false));
        assert!(!health.works());
    }

    /// What is chosen at each of these times, while the device of the first tunnel is up or down.
    fn chosen(terms: &Terms, times: &[(u64, bool)]) -> Vec<String> {
        let mut health = BTreeMap::new();
        let mut current = None;
        let choose = |(now, up): &(u64, bool)| {
            let now = seconds(*now);
            for name in terms.tunnels() {
                let up = *up && Some(name) == terms.tunnels().next();
                let sign = Sign {
                    up,
                    ..Sign::default()
                };
                let its: &mut Health = health.entry(name.clone()).or_default();
                its.observe(now, sign);
            }
            current = choose(terms, &health, current.as_ref(), now);
            current.as_ref().unwrap().to_string()
        };
        times.iter().map(choose).collect()
    }

    #[test]
    fn direct_behind_tunnels_is_gone_to_late_and_left_when_one_has_worked_for_a_while() {
        let terms = Terms {
            or: vec!["b".parse().unwrap()],
            or_direct: true,
            ..Terms::new(Action::Via("a".parse().unwrap()))
        };
        let times = [
            (0, true),
            (1, false),
            (15, false),
            (16, false),
            (17, true),
            (36, true),
            (37, true),
        ];

        let expected = [
            "via a", "via a", "via a", "direct", "direct", "direct", "via a",
        ];
        assert_eq!(chosen(&terms, &times), expected);
        let silent = Terms {
            or_direct: false,
            ..terms
        };
        assert_eq!(chosen(&silent, &times), ["via a"; 7]);
    }

    #[test]
    fn tunnel_that_nobody_has_looked_at_is_waited_for() {
        let terms = Terms {
            or_direct: true,
            ..Terms::new(Action::Via("a".parse().unwrap()))
        };
        let chosen = choose(&terms, &BTreeMap::new(), None, seconds(1000));
        assert_eq!(chosen, Some(terms.action));
    }

    #[test]
    fn time_in_which_nobody_looked_is_no_silence() {
        let mut watched = Watched::default();
        let mut health = Health::default();
        let mut look = |now: u64| {
            if watched.look(seconds(now)) {
                health.wake();
            }
            health.observe(watched.time(), up(100 * now, 0));
            health.works()
        };
        // Something is sent all the time, and nothing answered; at 23, the machine sleeps for a night.
        for now in (10..24).chain(30_000..30_015) {
            assert!(look(now), "{now}");
        }
        // Awake, it is as ever.
        assert!((30_015..30_018).map(look).any(|works| !works));
    }

    #[derive(Clone, Copy, Debug)]
    struct Event {
        tunnel: usize,
        wait: u64,
        up: bool,
        sent: u64,
        received: u64,
        asked: bool,
        ping: Option<bool>,
    }

    fn event() -> impl Strategy<Value = Event> {
        let ping = prop_oneof![3 => Just(None), 1 => any::<bool>().prop_map(Some)];
        (
            0..4_usize,
            0..12_u64,
            prop::bool::weighted(0.8),
            0..99_u64,
            0..2_u64,
            any::<bool>(),
            ping,
        )
            .prop_map(|(tunnel, wait, up, sent, received, asked, ping)| Event {
                tunnel,
                wait,
                up,
                sent,
                received,
                asked,
                ping,
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        /// For every order of events: a listed tunnel that works, the first of them, or silence in a listed one.
        #[test]
        fn chosen_tunnel_is_listed_and_works_if_any_does(events in vec(event(), 1..200), or_direct: bool) {
            const NAMES: [&str; 4] = ["a", "b", "c", "not-listed"];
            let name = |number: usize| NAMES[number].parse::<TunnelName>().unwrap();
            let mut dead: BTreeMap<TunnelName, Duration> = BTreeMap::new();
            let terms = Terms { or: vec![name(1), name(2)], or_direct, ..Terms::new(Action::Via(name(0))) };
            let mut health: BTreeMap<TunnelName, Health> = BTreeMap::new();
            let mut traffic = [(0, 0); 4];
            let mut failed_at: BTreeMap<TunnelName, Duration> = BTreeMap::new();
            let mut current = None;
            let mut now = Duration::ZERO;
            for event in events {
                now += seconds(event.wait);
                let (sent, received) = &mut traffic[event.tunnel];
                *sent += event.sent;
                *received += event.received;
                let sign = Sign {
                    up: event.up,
                    traffic: Some((*sent, *received)),
                    asked: event.asked,
                    ping: event.ping,
                };
                let its = health.entry(name(event.tunnel)).or_default();
                let before = its.works();
                its.observe(now, sign);
                prop_assert!(event.up || !its.works(), "a device that is down works");
                if !its.was_up() {
                    // It has nothing to be forgiven.
                } else if !its.works() {
                    failed_at.entry(name(event.tunnel)).and_modify(|at| if before { *at = now }).or_insert(now);
                } else if let Some(at) = failed_at.remove(&name(event.tunnel)) {
                    prop_assert!(now.saturating_sub(at) >= CALM, "it was forgiven too soon");
                }
                let chosen = choose(&terms, &health, current.as_ref(), now).unwrap();
                let mut working = terms.tunnels().filter(|it| health.get(*it).is_some_and(Health::works));
                let first = working.next().map(|it| Action::Via(it.clone()));
                for name in terms.tunnels() {
                    if health.get(name).is_none_or(Health::works) {
                        dead.remove(name);
                    } else {
                        dead.entry(name.clone()).or_insert(now);
                    }
                }
                match first {
                    Some(first) => prop_assert_eq!(&chosen, &first),
                    None if chosen == Action::Direct => {
                        prop_assert!(or_direct, "nobody said direct");
                        prop_assert_eq!(dead.len(), 3, "a tunnel was never seen to fail");
                    }
                    None => prop_assert!(current.is_none_or(|it| it == chosen), "it moved for nothing"),
                }
                let listed = |it: &TunnelName| chosen == Action::Via(it.clone());
                prop_assert!(chosen == Action::Direct || terms.tunnels().any(listed));
                current = Some(chosen);
            }
        }
    }
}
