//! What the one loop owns: the state, how it is taken over, and how it is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use lockne_core::{
    api::{Removed, TunnelState},
    policy::{Action, Policy, PolicyId, Terms},
    tunnel::TunnelName,
};
use tracing::{info, warn};

use crate::{
    Options, SocketOf,
    authority::{Authority, Caller, Owners},
    configured::Configured,
    dns::Stub,
    error::Error,
    failover::Failover,
    kernel::Kernel,
    leftover,
    mend::{Lines, Pace},
    process::{has_ended, own_netns},
    reconcile::InPlace,
    record::{self, Record},
    route::Netlink,
    rules::Installed,
    server::Command,
    state_dir::Lock,
    tunnels::{Deaths, Lookups, Tunnel},
};

mod serve;

pub(crate) struct Daemon {
    pub(crate) options: Options,
    _lock: Lock,
    pub(crate) started: Instant,
    pub(crate) kernel: Kernel,
    pub(crate) netlink: Netlink,
    pub(crate) policies: BTreeMap<PolicyId, Terms>,
    pub(crate) tunnels: BTreeMap<TunnelName, Tunnel>,
    pub(crate) owners: Owners,
    pub(crate) authority: Authority,
    pub(crate) deaths: Deaths,
    pub(crate) lookups: Lookups,
    /// What cannot be answered before a name is looked up.
    waiting: Vec<Command>,
    pub(crate) stubs: BTreeMap<PolicyId, Stub>,
    /// What was stamped by this process, so that it is not done again for nothing.
    pub(crate) stamps: BTreeMap<u32, PolicyId>,
    pub(crate) configured: Configured,
    pub(crate) failover: Failover,
    /// What this daemon has put in place, so that what others undo can be told from what has to change.
    pub(crate) in_place: Option<InPlace>,
    pub(crate) pace: Pace,
    pub(crate) lines: Lines,
    pub(crate) had_job: bool,
    /// Whether a program was detached that kept connections by a policy's way.
    pub(crate) keeps_connections: bool,
    /// When the last policed process was found to be gone.
    deserted: Option<Instant>,
}

impl Daemon {
    /// Loads or adopts what the kernel holds, and brings up again what the record names.
    ///
    /// Where nothing was before, nothing is left if that fails.
    pub(crate) async fn start(options: Options, lock: Lock) -> Result<Self, Error> {
        let field = options.field;
        let netns = own_netns().map_err(Error::Namespace)?;
        let record = Record::read(&options.state.record())?;
        if let Some(record) = &record {
            if record.netns != netns {
                return Err(Error::OtherNamespace {
                    path: options.state.path().to_owned(),
                });
            }
            if record.mark_shift != field.shift() {
                return Err(Error::OtherMark {
                    recorded: record.mark_shift,
                    asked: field.shift(),
                });
            }
        }
        let netlink = Netlink::open()?;
        let is_new = record.is_none() && !Kernel::exists(&options.state.pins());
        let mut others = netlink.foreign_marks(field).await?;
        if is_new {
            let observed = netlink.observe(field, &BTreeSet::new()).await?;
            let rules = observed.rules.iter();
            others.extend(rules.map(|rule| format!("{} {rule}, of another lockne", rule.family())));
        }
        if !others.is_empty() {
            return Err(Error::MarkUsed {
                mask: field.mask(),
                by: others,
            });
        }
        let mut kernel = Kernel::open(&options.state.pins(), field)?;
        // Started by a policed program, its tunnels' own packets would go into themselves.
        kernel.exempt(std::process::id())?;
        for feature in &options.without {
            kernel.forgo(*feature)?;
        }
        let mut daemon = Self {
            authority: Authority::new(options.permissions.clone()),
            owners: Owners::new(),
            options,
            _lock: lock,
            started: Instant::now(),
            kernel,
            netlink,
            policies: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            deaths: Deaths::new(),
            lookups: Lookups::new(),
            waiting: Vec::new(),
            stubs: BTreeMap::new(),
            stamps: BTreeMap::new(),
            configured: Configured::new(Installed::new(field)?),
            failover: Failover::default(),
            in_place: None,
            pace: Pace::default(),
            lines: Lines::new(Instant::now()),
            had_job: false,
            keeps_connections: false,
            deserted: None,
        };
        if let Err(error) = daemon.resume(record).await {
            if is_new {
                if let Err(undo) = daemon.take_down().await {
                    warn!(error = ?undo.refusal(), "cannot take back what a failed start did");
                }
            } else {
                warn!("starting failed; what was there before stays as it was");
            }
            return Err(error);
        }
        Ok(daemon)
    }

    async fn resume(&mut self, record: Option<Record>) -> Result<(), Error> {
        let resumed = record.is_some();
        let record = record.unwrap_or_default();
        self.netlink.adopt_originals(record.sysctls);
        for policy in record.policies {
            self.policies.insert(policy.id, policy.terms);
        }
        self.resume_tunnels(record.tunnels).await;
        self.reconcile().await?;
        self.load(record.config).await?;
        self.save()?;
        if resumed {
            info!(
                policies = self.policies.len(),
                tunnels = self.tunnels.len(),
                "took over"
            );
        }
        Ok(())
    }

    /// What a process is under.
    pub(crate) fn present(&self, pid: u32) -> Option<Terms> {
        // A policy that is not known here is not a user's to leave either.
        let unknown = || Terms::new(Action::Block);
        let id = self.kernel.process(pid)?;
        Some(self.policies.get(&id).cloned().unwrap_or_else(unknown))
    }

    /// What the process is under that asks. Root may ask from where he likes.
    pub(crate) fn asker(&self, caller: &Caller) -> Result<Option<Terms>, Error> {
        if caller.root().is_ok() {
            return Ok(None);
        }
        let (pid, handle) = caller.peer.process()?;
        let present = self.present(pid);
        // Else that could be what the number's next owner is under.
        if has_ended(&handle) {
            return Err(Error::NoProcess);
        }
        Ok(present)
    }

    /// Who has brought a tunnel up, if it was not root.
    pub(crate) fn owner(&self, name: &TunnelName) -> Option<u32> {
        self.owners.get(name).copied()
    }

    /// Whether the caller may use these terms at all.
    pub(crate) fn judge(&self, caller: &Caller, terms: &Terms) -> Result<(), Error> {
        let is_new = !self.policies.values().any(|it| it == terms);
        caller.use_of(terms, |name| self.owner(name), self.policies.len(), is_new)
    }

    /// Refuses terms that would say the opposite of what they say.
    pub(crate) fn require_sane(terms: &Terms) -> Result<(), Error> {
        match terms.lan.iter().find(|prefix| prefix.prefix_len() == 0) {
            Some(prefix) => Err(Error::Everything { prefix: *prefix }),
            None => Ok(()),
        }
    }

    /// Terms as they can be put in force, with the interfaces of tunnels that the configuration names, each taken
    /// up; and what a user should know of them.
    pub(crate) async fn ready(
        &mut self,
        caller: &Caller,
        terms: Terms,
    ) -> Result<(Terms, Vec<String>), Error> {
        let terms = self.configured.resolve(terms);
        self.judge(caller, &terms)?;
        let mut taken_up = false;
        for name in terms.tunnels() {
            taken_up |= self.take_up(name)?;
        }
        if taken_up {
            self.restore_tunnels().await;
            self.enforce().await?;
        }
        if terms.tunnels().any(|name| self.is_looked_up(name)) {
            return Err(Error::LookingUp);
        }
        let mut notices = Vec::new();
        for name in terms.tunnels() {
            let status = self.tunnel_status(name).await?;
            if status.state != TunnelState::Up {
                notices.push(if terms.or_direct {
                    format!("tunnel `{name}` is not up; while none is, the program goes direct")
                } else {
                    format!("tunnel `{name}` is not up; the program is silent until it is")
                });
            } else if status.addresses.is_empty() {
                notices.push(format!(
                    "tunnel `{name}` has no address; nothing can go through it"
                ));
            }
        }
        if notices.len() < terms.tunnels().count() {
            // Another one stands in.
            notices.clear();
        }
        self.check_resolvers(&terms)?;
        Ok((terms, notices))
    }

    /// The policy with these terms; a new one is in force before it is returned.
    pub(crate) async fn policy(&mut self, terms: Terms) -> Result<PolicyId, Error> {
        // Those of rules change when the rules do; what was asked for by hand does not.
        let made = &self.configured.assigned.made;
        let mut asked = self.policies.iter().filter(|(id, _)| !made.contains(id));
        if let Some((id, _)) = asked.find(|(_, it)| **it == terms) {
            return Ok(*id);
        }
        let free = match self.free_number() {
            None if self.forget_unused() > 0 => {
                self.enforce().await?;
                self.free_number()
            }
            free => free,
        };
        let free = free.ok_or(Error::TooManyPolicies)?;
        self.policies.insert(free, terms);
        self.failover.choose_first(free, &self.policies);
        if let Err(error) = self.enforce().await {
            self.policies.remove(&free);
            if let Err(undo) = self.reconcile().await {
                warn!(error = %undo, "cannot take back the rules of a policy that failed");
            }
            return Err(error);
        }
        Ok(free)
    }

    fn free_number(&self) -> Option<PolicyId> {
        (1..=u8::MAX)
            .filter_map(std::num::NonZeroU8::new)
            .map(PolicyId)
            .find(|id| !self.policies.contains_key(id))
    }

    /// Makes what was asked for true, and keeps it for the next daemon.
    pub(crate) async fn enforce(&mut self) -> Result<(), Error> {
        self.reconcile().await?;
        self.save()
    }

    /// Keeps for the next daemon what this one knows.
    pub(crate) fn save(&self) -> Result<(), Error> {
        let record = Record {
            version: record::VERSION,
            mark_shift: self.options.field.shift(),
            netns: own_netns().map_err(Error::Namespace)?,
            policies: self.policies(),
            tunnels: self.tunnels.values().map(|it| it.request.clone()).collect(),
            config: self.configured.kept(),
            sysctls: self.netlink.originals().clone(),
        };
        Ok(record.write(&self.options.state.record())?)
    }

    /// Every policy with its number.
    pub(crate) fn policies(&self) -> Vec<Policy> {
        let policies = self.policies.iter().map(|(id, terms)| Policy {
            id: *id,
            terms: terms.clone(),
        });
        policies.collect()
    }

    /// Every policy with what it says at this moment.
    pub(crate) fn in_force(&self) -> Vec<Policy> {
        let policies = self.policies.keys().filter_map(|id| {
            let terms = self.effective(*id)?;
            Some(Policy { id: *id, terms })
        });
        policies.collect()
    }

    /// Takes everything back.
    async fn take_down(&mut self) -> Result<Removed, Error> {
        let mut removed =
            leftover::take_back(&self.options.state, self.options.field, &mut self.netlink).await?;
        for (name, tunnel) in std::mem::take(&mut self.tunnels) {
            tunnel.down().await.map_err(|source| Error::Wireguard {
                name: name.clone(),
                source,
            })?;
            removed.tunnels.push(name);
        }
        match self.options.socket_of {
            SocketOf::Daemon => self.options.state.clear(&self.options.socket)?,
            SocketOf::Service => self.options.state.clear_beside_socket()?,
        }
        info!(?removed, "took everything back");
        Ok(removed)
    }
}
