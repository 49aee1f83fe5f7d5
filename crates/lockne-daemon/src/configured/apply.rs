//! A configuration is read, made true, and made true again when its files change.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Instant, SystemTime},
};

use lockne_core::{
    api::TunnelUp,
    config::{
        Config, Source,
        assign::{self, Assigned},
    },
    policy::{Action, PolicyId, Terms},
    rule::Existing,
    tunnel::TunnelName,
    wgquick,
};
use tracing::{info, warn};

use super::{
    Kept, UNWATCHED,
    prepared::{Prepared, request},
};
use crate::{
    config::{self, Files},
    daemon::Daemon,
    error::Error,
    rules::{CompiledRule, Fallback, Outcome},
    socket,
    tunnels::Tunnel,
    watch::{Wanted, Watch},
};

impl Daemon {
    /// Loads the configuration at start.
    ///
    /// A broken one is an error, unless an earlier daemon had one that was right: that stays in force then.
    pub(crate) async fn load(&mut self, kept: Option<Kept>) -> Result<(), Error> {
        let recorded = kept
            .as_ref()
            .map(|kept| Files::new(&kept.file).or_nothing());
        let Some(files) = self.options.config.clone().or(recorded) else {
            return Ok(());
        };
        let had = kept.is_some();
        let kept = kept.unwrap_or_default();
        self.configured.assigned = kept.assigned;
        self.configured.tunnels = kept.tunnels;
        self.configured.files = Some(files.clone());
        // From here on, whatever changes while it is read is read again.
        match Watch::new() {
            Ok(watch) => self.configured.watch = Some(watch),
            Err(error) => warn!(%error, "{UNWATCHED}"),
        }
        let started = Instant::now();
        self.look(&files);
        let none = BTreeSet::new();
        let prepared = files.read().and_then(|texts| Prepared::new(texts, &none));
        let prepared = match prepared {
            Err(error) if had => {
                self.complain(&error);
                Prepared::new(kept.texts, &none)
            }
            prepared => prepared,
        };
        let prepared = prepared.map_err(Error::Configuration)?;
        let problem = self.configured.problem.take();
        self.apply(prepared, started).await?;
        self.configured.problem = problem;
        self.look(&files);
        Ok(())
    }

    /// Watches whatever the configuration names now.
    fn look(&mut self, files: &Files) {
        let directory = files.directory();
        let tunnels = self.configured.config.tunnels.values();
        let tunnels = tunnels.filter_map(|tunnel| match &tunnel.source {
            Source::File { path, .. } => Some(path.as_path()),
            Source::Interface(_) => None,
        });
        let mut wanted = Wanted::default();
        for path in tunnels.chain([files.main(), &directory]) {
            if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
                wanted.one(parent.to_owned(), name.to_owned());
            }
        }
        wanted.all(directory);
        if let Some(watch) = &mut self.configured.watch
            && let Err(error) = watch.set(wanted)
        {
            warn!(%error, "{UNWATCHED}");
        }
    }

    /// Reads the files again, and applies what they say if all of it is right. Returns whether a tunnel is to be
    /// brought up.
    pub(crate) async fn reload(&mut self) -> bool {
        let Some(files) = self.configured.files.clone() else {
            return false;
        };
        let started = Instant::now();
        self.look(&files);
        let by_hand = self.used_by_hand();
        match files
            .read()
            .and_then(|texts| Prepared::new(texts, &by_hand))
        {
            Err(error) => self.complain(&error),
            Ok(prepared) => {
                if let Err(error) = self.apply(prepared, started).await {
                    let refusal = error.refusal();
                    warn!(error = ?refusal, "cannot apply the configuration; the one before holds");
                    let mut why = vec![refusal.error];
                    why.extend(refusal.causes);
                    self.configured.problem = Some(why.join(": "));
                }
            }
        }
        self.look(&files);
        self.tunnels.values().any(|it| it.wireguard.is_none())
    }

    /// The tunnels that were taken up from the configuration, and that living programs are in.
    fn used_by_hand(&self) -> BTreeSet<TunnelName> {
        let taken_up = self.configured.tunnels.iter();
        taken_up
            .filter(|name| self.policies_through(name).any(|id| self.has_programs(id)))
            .cloned()
            .collect()
    }

    /// The policies whose terms name a tunnel.
    fn policies_through(&self, name: &TunnelName) -> impl Iterator<Item = PolicyId> {
        let policies = self.policies.iter();
        let through = policies.filter(move |(_, terms)| terms.tunnels().any(|it| it == name));
        through.map(|(id, _)| *id)
    }

    fn has_programs(&self, id: PolicyId) -> bool {
        !self.kernel.processes(id).is_empty()
    }

    /// Whether connections stay when the programs of a policy move: all its rules say so.
    pub(crate) fn keeps_connections_of(&self, id: PolicyId) -> bool {
        let config = &self.configured.config;
        let existing = |key: &assign::Key| match key {
            Some(name) => {
                let mut rules = config.rules.iter();
                rules.find(|rule| rule.name == *name).map(|it| it.existing)
            }
            None => config.default.as_ref().map(|it| it.existing),
        };
        let rules = self.configured.assigned.rules.iter();
        let mut rules = rules.filter(|(_, it)| *it == id).peekable();
        rules.peek().is_some() && rules.all(|(key, _)| existing(key) == Some(Existing::Keep))
    }

    fn complain(&mut self, error: &config::Error) {
        let text = match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        warn!("the configuration is not used, the one before holds: {text}");
        self.configured.problem = Some(text);
    }

    /// Puts a configuration in the place of the one before. If that fails, the one before stays.
    async fn apply(&mut self, prepared: Prepared, started: Instant) -> Result<(), Error> {
        let Prepared {
            texts,
            config,
            tunnels,
        } = prepared;
        let new = self.new_tunnels(tunnels)?;
        let change = self.change(&config)?;
        let policies = self.policies.clone();
        self.policies.extend(change.new.clone());
        self.policies.extend(change.moved.clone());
        for id in change.new.keys().chain(change.moved.keys()) {
            self.failover.choose_first(*id, &self.policies);
        }
        let before = std::mem::replace(&mut self.configured.config, config);
        let moves: Vec<PolicyId> = change.moved.keys().copied().collect();
        let result = match self.reconcile().await {
            Ok(()) => self.install(&change.assigned),
            Err(error) => Err(error),
        };
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => {
                self.configured.config = before;
                self.policies = policies;
                if let Err(undo) = self.reconcile().await {
                    warn!(error = ?undo.refusal(), "cannot take back a configuration that failed");
                }
                return Err(error);
            }
        };
        self.configured.assigned = change.assigned;
        self.configured.texts = texts;
        self.configured.problem = None;
        self.configured.applied = Some(SystemTime::now());
        let listen = self.configured.config.metrics.map(|it| it.listen);
        self.configured.metrics.listen(listen).await;
        let mut permissions = self.options.permissions.clone();
        permissions.grants.extend(self.configured.config.grants());
        self.authority.set(permissions);
        self.note(&outcome);
        for id in moves {
            self.cut_elsewhere(id);
        }
        info!(
            rules = self.configured.config.rules.len(),
            policies = self.policies.len(),
            moved = outcome.moved.len(),
            took = ?started.elapsed(),
            "the configuration is in force"
        );
        self.replace_tunnels(new).await;
        self.forget_unused();
        self.enforce().await
    }

    /// Tunnels that are not there yet, or from another file than now.
    fn new_tunnels(
        &self,
        requests: Vec<TunnelUp>,
    ) -> Result<Vec<(TunnelUp, wgquick::Config)>, Error> {
        let mut new = Vec::new();
        for request in requests {
            let config = self.parse(&request)?;
            match self.tunnels.get(&request.name) {
                Some(old)
                    if *old.request.config == *request.config
                        && old.request.allow_hooks == request.allow_hooks => {}
                Some(_) if !self.configured.tunnels.contains(&request.name) => {
                    return Err(Error::TunnelExists { name: request.name });
                }
                _ => new.push((request, config)),
            }
        }
        Ok(new)
    }

    fn change(&mut self, config: &Config) -> Result<assign::Change, Error> {
        let free = |policies: &BTreeMap<PolicyId, Terms>| {
            let all = (1..=u8::MAX)
                .filter_map(std::num::NonZeroU8::new)
                .map(PolicyId);
            all.filter(|id| !policies.contains_key(id))
                .collect::<Vec<_>>()
        };
        let assigned = &self.configured.assigned;
        let change = assign::change(assigned, &self.policies, config, free(&self.policies));
        if let Some(change) = change {
            return Ok(change);
        }
        self.forget_unused();
        let assigned = &self.configured.assigned;
        assign::change(assigned, &self.policies, config, free(&self.policies))
            .ok_or(Error::TooManyPolicies)
    }

    /// Hands the rules to the kernel.
    fn install(&mut self, assigned: &Assigned) -> Result<Outcome, Error> {
        let config = &self.configured.config;
        let rules = config.rules.iter().zip(&assigned.rules);
        let rules: Vec<CompiledRule> = rules
            .map(|(rule, (_, policy))| {
                let mut rule = rule.clone();
                // What the tunnel reaches directly stays whole too.
                if let Some(terms) = self.through_tunnel(*policy) {
                    rule.terms = terms;
                }
                CompiledRule {
                    rule,
                    policy: *policy,
                }
            })
            .collect();
        let last = assigned.rules.last().filter(|(key, _)| key.is_none());
        let fallback = config.default.as_ref().zip(last);
        let fallback = fallback.map(|(default, (_, policy))| Fallback {
            terms: default.terms.clone(),
            policy: *policy,
            existing: default.existing,
        });
        let installed = &mut self.configured.installed;
        Ok(installed.apply(&mut self.kernel, &rules, fallback.as_ref())?)
    }

    /// Looks again for what the rules name, after something of that came or went.
    pub(crate) fn refresh_rules(&mut self) {
        match self.configured.installed.refresh(&mut self.kernel) {
            Ok(outcome) => self.note(&outcome),
            Err(error) => warn!(%error, "cannot look again for the files that rules name"),
        }
    }

    fn note(&mut self, outcome: &Outcome) {
        for moved in &outcome.moved {
            let rule = moved.rule.as_ref().map_or("default", |it| it.as_str());
            info!(pid = moved.pid, rule, policy = %moved.policy, cut = moved.cut, "a running program moved");
        }
        for missing in &outcome.missing {
            if !self.configured.missing.contains(missing) {
                warn!(rule = %missing.rule, "decides nothing for now: {}", missing.what);
            }
        }
        self.configured.missing.clone_from(&outcome.missing);
    }

    /// Cuts the connections of a policy that goes another way now.
    pub(crate) fn cut_elsewhere(&self, id: PolicyId) {
        let lan = self
            .through_tunnel(id)
            .map(|terms| terms.lan)
            .unwrap_or_default();
        let stays = |peer: std::net::IpAddr| {
            peer.is_loopback() || lan.iter().any(|prefix| prefix.contains(&peer))
        };
        match socket::cut_policy(self.options.field, id, stays) {
            Ok(cut) => info!(policy = %id, cut, "connections by the way before were cut"),
            Err(error) => warn!(policy = %id, %error, "cannot cut connections by the way before"),
        }
    }

    /// Puts tunnels in place and takes away those that the configuration does not need any more.
    async fn replace_tunnels(&mut self, new: Vec<(TunnelUp, wgquick::Config)>) {
        let used = self.configured.config.used();
        let named = self.configured.config.tunnels.iter();
        let mut needed: BTreeSet<TunnelName> = named
            .filter(|(name, it)| matches!(it.source, Source::File { .. }) && used.contains(*name))
            .map(|(name, _)| name.clone())
            .collect();
        // Programs may still be in one that no rule names, or have connections in it that they keep.
        let connected = socket::connected_policies(self.options.field).unwrap_or_else(|error| {
            warn!(%error, "cannot tell which tunnels have connections; none is taken down");
            self.policies.keys().copied().collect()
        });
        for name in &self.configured.tunnels {
            let has_user = |id| connected.contains(&id) || self.has_programs(id);
            if self.policies_through(name).any(has_user) {
                needed.insert(name.clone());
            }
        }
        let gone = self.configured.tunnels.difference(&needed).cloned();
        let replaced = new.iter().map(|(request, _)| request.name.clone());
        for name in gone.chain(replaced).collect::<Vec<_>>() {
            if let Some(tunnel) = self.tunnels.remove(&name)
                && let Err(error) = tunnel.down().await
            {
                warn!(tunnel = %name, %error, "cannot take the tunnel down");
            }
        }
        let made: BTreeSet<TunnelName> = new.iter().map(|(it, _)| it.name.clone()).collect();
        self.configured.tunnels = &(&self.configured.tunnels & &needed) | &made;
        for (request, config) in new {
            let tunnel = Tunnel::new(request, config);
            self.tunnels.insert(tunnel.request.name.clone(), tunnel);
        }
    }

    /// Takes up a tunnel of the configuration that no rule has asked for yet.
    pub(crate) fn take_up(&mut self, name: &TunnelName) -> Result<bool, Error> {
        if self.tunnels.contains_key(name) {
            return Ok(false);
        }
        let Some(named) = self.configured.config.tunnels.get(name) else {
            return Ok(false);
        };
        let Some(request) = request(name, named).map_err(Error::Configuration)? else {
            return Ok(false);
        };
        let config = self.parse(&request)?;
        let tunnel = Tunnel::new(request, config);
        self.tunnels.insert(name.clone(), tunnel);
        self.configured.tunnels.insert(name.clone());
        Ok(true)
    }

    /// What a policy says at this moment: with what its tunnel brings along.
    pub(crate) fn effective(&self, id: PolicyId) -> Option<Terms> {
        let terms = self.policies.get(&id)?;
        if terms.or_direct && self.failover.chosen(id) == Some(&Action::Direct) {
            return Some(Terms::new(Action::Direct));
        }
        self.through_tunnel(id)
    }

    /// The same, as it is while a tunnel works: what is bound to it must hold then too.
    pub(crate) fn through_tunnel(&self, id: PolicyId) -> Option<Terms> {
        let mut terms = self.policies.get(&id)?.clone();
        if let Some(Action::Via(name)) = self.failover.chosen(id)
            && terms.tunnels().any(|it| it == name)
        {
            terms.action = Action::Via(name.clone());
        }
        if let Action::Via(name) = &terms.action
            && let Some(tunnel) = self.configured.tunnel(name)
        {
            terms.lan.extend(&tunnel.lan);
            if terms.dns.is_empty() {
                terms.dns.clone_from(&tunnel.dns);
            }
        }
        Some(terms)
    }

    /// Forgets policies that no rule, no process and no socket has any more, so that others can have their
    /// numbers. Says how many.
    pub(crate) fn forget_unused(&mut self) -> usize {
        let assigned = self.configured.assigned.rules.iter();
        let ruled: BTreeSet<PolicyId> = assigned.map(|it| it.1).collect();
        let living = match self.kernel.living() {
            Ok(living) => living,
            Err(error) => {
                warn!(%error, "cannot tell which policies processes have; none is forgotten");
                return 0;
            }
        };
        let is_held =
            |id: &PolicyId| self.failover.uses(*id) || ruled.contains(id) || living.contains(id);
        // Last: there may be hundreds of thousands, and who lives no more makes none in the meantime.
        if self.policies.keys().all(is_held) {
            return 0;
        }
        let used = match socket::all_policies(self.options.field) {
            Ok(used) => used,
            Err(error) => {
                warn!(%error, "cannot tell which policies sockets have; none is forgotten");
                return 0;
            }
        };
        let is_used = |id: &PolicyId| is_held(id) || used.contains(id);
        let before = self.policies.len();
        for id in self.policies.keys().filter(|id| !is_used(id)) {
            if let Err(error) = self.kernel.forget(*id) {
                warn!(policy = %id, %error, "cannot forget a policy that nothing uses");
                return 0;
            }
        }
        self.policies.retain(|id, _| is_used(id));
        let policies = &self.policies;
        let assigned = &mut self.configured.assigned;
        assigned.made.retain(|id| policies.contains_key(id));
        assigned.mixed.retain(|id| policies.contains_key(id));
        before - self.policies.len()
    }
}
