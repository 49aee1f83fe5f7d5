//! What is known of a process, in words.

use crate::{
    api::{Explanation, PolicyNow, SocketWay, TunnelKind, TunnelState, TunnelStatus, Verdict},
    policy::Action,
};

/// WireGuard makes a new handshake every two minutes where there is traffic, and gives a session up after three.
const STALE_SECONDS: u64 = 180;

/// Why the process is on its way: a paragraph.
#[must_use]
pub fn why(it: &Explanation) -> String {
    let name = &it.name;
    let Some(policy) = &it.policy else {
        let mut text = format!(
            "{name} has no policy: lockne does not touch it, and it uses this machine's own routes."
        );
        text +=
            " It was not started by `lockne run`, nor attached, and no rule has put it under one.";
        if it.is_older {
            text += " It was there before the daemon.";
        }
        if it.is_elsewhere {
            text += " It is in another network namespace, which lockne does not police.";
        }
        return text;
    };
    let by = it
        .rule
        .as_ref()
        .map(|rule| format!(", by the rule `{rule}`"))
        .unwrap_or_default();
    let mut text = match &policy.terms.action {
        _ if policy.direct_now => format!(
            "{name} goes direct now{by}, as no tunnel of it is healthy and `direct` comes behind them: past every tunnel, by this machine's main routes, with this machine's own resolver. It goes back into the first tunnel that is healthy again, and its connections are cut then."
        ),
        Action::Via(tunnel) => format!(
            "{name} goes by `{tunnel}` or not at all{by}: its sockets carry the mark {:#x}, {} sends that mark into the tunnel, and the guard drops whatever would leave by another device.",
            policy.mark,
            policy
                .table
                .map_or("routing".to_owned(), |table| format!("table {table}")),
        ),
        Action::Direct => {
            format!("{name} goes past every tunnel{by}, by this machine's main routes.")
        }
        Action::Block => format!("{name} reaches nothing but this machine{by}."),
    };
    if !policy.terms.lan.is_empty() && !policy.direct_now {
        let all: Vec<_> = policy.terms.lan.iter().map(ToString::to_string).collect();
        text = format!("{text} It reaches {} directly.", all.join(", "));
    }
    if it.is_elsewhere {
        text += " But it is in another network namespace, where none of that holds.";
    }
    let leaves = it
        .routes
        .iter()
        .filter(|route| route.verdict == Verdict::Leaves)
        .count();
    let is_bound = matches!(policy.terms.action, Action::Via(_)) && !policy.direct_now;
    if is_bound && !it.is_elsewhere {
        text += match leaves {
            0 => " Now it is silent: nothing it sends leaves this machine.",
            _ if leaves == it.routes.len() => " Its way is open now.",
            _ => " Now the tunnel carries one IP version only; the other one is silent.",
        };
    }
    text
}

/// What could be done about what is off.
#[must_use]
pub fn advice(it: &Explanation) -> Vec<String> {
    let mut advice = Vec::new();
    let Some(policy) = &it.policy else {
        if !it.is_elsewhere {
            advice.push(format!(
                "`lockne attach --pid {} --via TUNNEL` puts it into a tunnel",
                it.pid
            ));
        }
        return advice;
    };
    if policy.direct_now {
        let all: Vec<_> = policy.terms.tunnels().map(|it| format!("`{it}`")).collect();
        advice.push(format!(
            "see with `lockne tunnel` why {} does not work; a `via` without `direct` would be silent instead",
            all.join(" or ")
        ));
    }
    if let Some(tunnel) = &it.tunnel {
        advice.extend(of_tunnel(tunnel));
    }
    advice.extend(of_sockets(it, policy));
    let free = it.descendants.iter().filter(|child| child.policy.is_none());
    let free: Vec<_> = free.map(|child| child.pid.to_string()).collect();
    if !free.is_empty() {
        advice.push(format!(
            "these descendants have no policy: {}; `lockne attach` without --no-children brings them in",
            free.join(", ")
        ));
    }
    let others = it.descendants.iter().filter_map(|child| child.policy);
    if others.into_iter().any(|other| other != policy.id) {
        advice.push("some descendants have another policy, which they keep".to_owned());
    }
    advice
}

fn of_tunnel(tunnel: &TunnelStatus) -> Option<String> {
    let name = &tunnel.name;
    match tunnel.state {
        TunnelState::Gone => Some(format!(
            "there is no interface `{name}`; bring it up with `lockne tunnel up FILE.conf`, or with what made it"
        )),
        TunnelState::Down => Some(format!(
            "`{name}` is down; `ip link set dev {name} up`, or bring it up with what made it"
        )),
        TunnelState::Up if tunnel.addresses.is_empty() => Some(format!(
            "`{name}` has no address, so nothing can be sent through it"
        )),
        TunnelState::Up if tunnel.kind == TunnelKind::Interface => None,
        TunnelState::Up => {
            let newest = tunnel
                .peers
                .iter()
                .filter_map(|peer| peer.handshake_age_seconds)
                .min();
            match newest {
                None => Some(format!(
                    "`{name}` has had no handshake yet: either nothing was sent, or the far end does not answer; check its endpoint and keys"
                )),
                Some(age) if age > STALE_SECONDS => Some(format!(
                    "the last handshake of `{name}` was {age} s ago: either nothing was sent since, or the far end does not answer any more"
                )),
                Some(_) => None,
            }
        }
    }
}

fn of_sockets(it: &Explanation, policy: &PolicyNow) -> Vec<String> {
    let mut advice = Vec::new();
    let count = |is: fn(&SocketWay) -> bool| it.sockets.iter().filter(|s| is(&s.way)).count();
    let terms = match &policy.terms.action {
        Action::Via(_) => {
            let mut all: Vec<_> = policy.terms.tunnels().map(ToString::to_string).collect();
            all.extend(policy.terms.or_direct.then(|| "direct".to_owned()));
            format!("--via {}", all.join(","))
        }
        Action::Direct => "--direct".to_owned(),
        Action::Block => "--block".to_owned(),
    };
    let lan: Vec<_> = policy
        .terms
        .lan
        .iter()
        .map(|it| format!(" --lan {it}"))
        .collect();
    let again = format!(
        "`lockne attach --pid {} {terms}{} --existing reset`",
        it.pid,
        lan.concat()
    );
    let free = count(|way| *way == SocketWay::Free);
    if free > 0 {
        advice.push(format!(
            "sockets that go past the policy: {free}, as they are older or came from another process; {again} cuts or marks them"
        ));
    }
    let other = count(|way| matches!(way, SocketWay::Other(_)));
    if other > 0 {
        advice.push(format!(
            "sockets that go by another policy: {other}, as they are older than this one; {again} cuts or marks them"
        ));
    }
    let frames = count(|way| *way == SocketWay::Frames);
    if frames > 0 {
        advice.push(format!(
            "sockets that write frames, which no policy holds: {frames}; take CAP_NET_RAW from the program if it does not need them"
        ));
    }
    advice
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU8;

    use super::*;
    use crate::{
        api::{ExplainedSocket, Route, SocketStatus, Traffic},
        policy::{PolicyId, Terms},
    };

    fn free() -> Explanation {
        Explanation {
            pid: 4711,
            name: "curl".to_owned(),
            uid: 0,
            parent: 1,
            threads: 1,
            is_older: false,
            is_elsewhere: false,
            descendants: Vec::new(),
            rule: None,
            policy: None,
            tunnel: None,
            dns: Vec::new(),
            sockets: Vec::new(),
            routes: Vec::new(),
            why: String::new(),
            advice: Vec::new(),
        }
    }

    fn tunnelled(verdicts: [Verdict; 2]) -> Explanation {
        let id = PolicyId(NonZeroU8::new(7).unwrap());
        Explanation {
            policy: Some(PolicyNow {
                direct_now: false,
                id,
                terms: Terms::new(Action::Via("work".parse().unwrap())),
                mark: 0x0700_0000,
                table: Some(108_007),
                device: Some("work".to_owned()),
                traffic: Traffic::default(),
            }),
            routes: verdicts
                .map(|verdict| Route {
                    to: "1.1.1.1".parse().unwrap(),
                    device: None,
                    source: None,
                    gateway: None,
                    verdict,
                })
                .to_vec(),
            ..free()
        }
    }

    #[test]
    fn process_without_a_policy_is_told_why_and_what_to_do() {
        let older = Explanation {
            is_older: true,
            ..free()
        };

        assert!(why(&older).contains("no policy") && why(&older).contains("before the daemon"));
        assert!(!why(&free()).contains("before the daemon"));
        assert!(advice(&free())[0].contains("lockne attach --pid 4711"));
    }

    #[test]
    fn process_in_another_namespace_is_not_told_to_attach() {
        let elsewhere = Explanation {
            is_elsewhere: true,
            ..free()
        };

        assert!(why(&elsewhere).contains("another network namespace"));
        assert!(advice(&elsewhere).is_empty());
    }

    #[test]
    fn silence_is_called_silence() {
        let (on, off) = (Verdict::Leaves, Verdict::Unreachable);

        assert!(why(&tunnelled([on, on])).ends_with("way is open now."));
        assert!(why(&tunnelled([on, off])).contains("one IP version"));
        assert!(why(&tunnelled([off, Verdict::Dropped])).contains("Now it is silent"));
    }

    #[test]
    fn socket_past_the_policy_comes_with_the_command_that_mends_it() {
        let mut it = tunnelled([Verdict::Leaves; 2]);
        it.sockets.push(ExplainedSocket {
            socket: SocketStatus {
                inode: 1,
                protocol: "tcp".to_owned(),
                local: None,
                remote: None,
                state: "established".to_owned(),
                mark: 0,
            },
            way: SocketWay::Free,
        });

        let advice = advice(&it);

        assert!(advice[0].contains("go past the policy: 1"), "{advice:?}");
        assert!(
            advice[0].contains("`lockne attach --pid 4711 --via work --existing reset`"),
            "{advice:?}"
        );
    }
}
