//! `explain`: what decides where the packets of a process go, asked of the kernel at that moment.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt as _,
};

use lockne_core::{
    api::{
        Descendant, ExplainedSocket, Explanation, PolicyNow, Route, SocketStatus, SocketWay,
        TunnelStatus, Verdict,
    },
    explain,
    plan::{self, LinkState},
    policy::{Action, PolicyId, Terms},
    rule::RuleName,
};

use crate::{
    attach::{
        TargetError, sockets,
        target::{self, Process},
        tree,
    },
    authority::Caller,
    daemon::Daemon,
    error::Error,
    process::Stat,
    reconcile::tunnel_of,
    route::Way,
};

/// Well-known addresses that are on no local network: resolvers.
const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, 0, 0x1111)),
];

impl Daemon {
    /// Explains the way of a process.
    pub(crate) async fn explain(&self, caller: &Caller, pid: u32) -> Result<Explanation, Error> {
        let gone = || Error::from(TargetError::NoPid { pid });
        target::require_same_numbers(&caller.peer)?;
        let process = Process::open(pid).ok_or_else(gone)?;
        caller.require_own(pid, process.handle())?;
        let stat = Stat::read(pid).ok_or_else(gone)?;
        let uid = fs::metadata(format!("/proc/{pid}"))
            .map_err(|_| gone())?
            .uid();
        let daemon = Stat::read(std::process::id());
        let id = self.kernel.process(pid);
        let terms = id.and_then(|id| Some((id, self.effective(id)?)));
        let tunnel = match terms.as_ref().and_then(|(_, terms)| tunnel_of(terms)) {
            Some(name) => Some(self.tunnel_status(name).await?),
            None => None,
        };
        let policy = match &terms {
            Some((id, terms)) => Some(self.now(*id, terms).await?),
            None => None,
        };
        let descendants = tree::with_descendants(&[pid]);
        let descendants = descendants.into_iter().skip(1).filter_map(|pid| {
            Some(Descendant {
                pid,
                name: Stat::read(pid)?.name,
                policy: self.kernel.process(pid),
            })
        });
        let sockets = sockets::of(&process)?.into_iter();
        let it = Explanation {
            pid,
            name: process.name.clone(),
            uid,
            parent: stat.parent,
            threads: stat.threads,
            is_older: daemon.is_some_and(|daemon| stat.started < daemon.started),
            is_elsewhere: target::is_elsewhere(pid),
            descendants: descendants.collect(),
            rule: id.and_then(|id| self.rule_of(id)),
            routes: self.routes(id, terms.as_ref().map(|it| &it.1), uid).await?,
            policy,
            dns: resolvers(terms.as_ref().map(|it| &it.1), tunnel.as_ref()),
            tunnel,
            sockets: sockets
                .map(|socket| ExplainedSocket {
                    way: self.way(&socket, id),
                    socket,
                })
                .collect(),
            why: String::new(),
            advice: Vec::new(),
        };
        // Else all that could be told of the number's next owner; or it has become another user's meanwhile.
        if process.has_ended() {
            return Err(gone());
        }
        caller.require_own(pid, process.handle())?;
        let mut it = caller.filter_explanation(it, |name| self.owner(name));
        it.why = explain::why(&it);
        it.advice = explain::advice(&it);
        Ok(it)
    }

    /// The rule that stands for a policy, where it is one only.
    fn rule_of(&self, id: PolicyId) -> Option<RuleName> {
        let rules = self.configured.assigned.rules.iter();
        let mut names = rules.filter(|it| it.1 == id).map(|it| it.0.clone());
        match (names.next(), names.next()) {
            (Some(name), None) => name,
            _ => None,
        }
    }

    async fn now(&self, id: PolicyId, terms: &Terms) -> Result<PolicyNow, Error> {
        let device = match tunnel_of(terms) {
            Some(name) => self
                .netlink
                .link(name)
                .await?
                .filter(|link| link.state == LinkState::Up)
                .map(|_| name.to_string()),
            None => None,
        };
        let asked = self.policies.get(&id);
        let direct_now = terms.action == Action::Direct && asked.is_some_and(|it| it.or_direct);
        Ok(PolicyNow {
            direct_now,
            id,
            terms: asked.filter(|_| direct_now).unwrap_or(terms).clone(),
            mark: self.options.field.mark(id.get()),
            table: tunnel_of(terms).map(|_| plan::table(id)),
            device,
            traffic: self.kernel.counters(id)?.into(),
        })
    }

    fn way(&self, socket: &SocketStatus, id: Option<PolicyId>) -> SocketWay {
        let carried = std::num::NonZeroU8::new(self.options.field.policy(socket.mark));
        let near = socket.remote.is_some_and(|remote| {
            remote.ip().is_loopback() || socket.local.is_some_and(|it| it.ip() == remote.ip())
        });
        match carried.map(PolicyId) {
            _ if matches!(socket.protocol.as_str(), "packet" | "xdp") => SocketWay::Frames,
            _ if near => SocketWay::Here,
            None => SocketWay::Free,
            Some(carried) if Some(carried) == id => SocketWay::Policy,
            Some(carried) => SocketWay::Other(carried),
        }
    }

    /// Where packets to far addresses would go, and what the guard would say to them.
    async fn routes(
        &self,
        id: Option<PolicyId>,
        terms: Option<&Terms>,
        uid: u32,
    ) -> Result<Vec<Route>, Error> {
        /// The index of the loopback device in every network namespace.
        const LOOPBACK: u32 = 1;
        let mark = id.map_or(0, |id| self.options.field.mark(id.get()));
        let guard = match id {
            Some(id) => Some(self.kernel.policy(id)?),
            None => None,
        };
        let mut names: BTreeMap<u32, Option<String>> = BTreeMap::new();
        let mut routes = Vec::new();
        for to in FAR {
            let near = terms.is_some_and(|terms| terms.lan.iter().any(|it| it.contains(&to)));
            routes.push(match self.netlink.lookup(to, mark, uid).await? {
                None => Route {
                    to,
                    device: None,
                    source: None,
                    gateway: None,
                    verdict: Verdict::Unreachable,
                },
                Some(Way {
                    ifindex,
                    source,
                    gateway,
                }) => {
                    let name = names
                        .entry(ifindex)
                        .or_insert_with(|| crate::kernel::name_of(ifindex));
                    let allows = ifindex == LOOPBACK
                        || near
                        || guard.is_none_or(|guard| guard.allows(ifindex));
                    Route {
                        to,
                        device: name.clone(),
                        source,
                        gateway,
                        verdict: if allows {
                            Verdict::Leaves
                        } else {
                            Verdict::Dropped
                        },
                    }
                }
            });
        }
        Ok(routes)
    }
}

/// The resolvers that a policy names, else those of its tunnel.
fn resolvers(terms: Option<&Terms>, tunnel: Option<&TunnelStatus>) -> Vec<IpAddr> {
    match (terms, tunnel) {
        (Some(terms), _) if !terms.dns.is_empty() => terms.dns.clone(),
        (_, Some(tunnel)) => tunnel.dns.clone(),
        _ => Vec::new(),
    }
}
