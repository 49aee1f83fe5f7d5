//! The one loop that owns all state: requests, network changes, timers and signals come in here.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    io,
    os::fd::AsFd as _,
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use lockne_core::{
    api::{Lifetime, Removed, Run, Running, TunnelState},
    policy::{Action, Policy, PolicyId, Terms},
    rule::Existing,
    tunnel::TunnelName,
};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    task, time,
};
use tracing::{info, warn};

use crate::{
    Options, SocketOf,
    authority::{Authority, Caller, Change, Owners},
    clock::{self, Sleep},
    configured::Configured,
    dns::Stub,
    error::Error,
    failover::{self, Failover},
    inherited,
    kernel::Kernel,
    leftover,
    mend::{Lines, Pace, spare},
    process::{has_ended, own_netns},
    ready::{Announce, Ready},
    reconcile::{Cause, InPlace},
    record::{self, Record},
    room,
    route::Netlink,
    rules::Installed,
    server::{self, Command},
    service, socket,
    state_dir::{Lock, remove_socket},
    tunnels::{Deaths, Lookups, Restored, Tunnel},
    wireguard::{self, Endpoints},
};

/// How often a daemon that ends with its last job looks whether that has ended.
const LOOK: Duration = Duration::from_millis(200);
/// How long a daemon that ends with its last job waits for its first one.
const FIRST_JOB: Duration = Duration::from_secs(10);
/// How long what programs have handed to the kernel may take to get through. The kernel itself gives up
/// after about as long (`tcp_orphan_retries`).
const LAST_WORDS: Duration = Duration::from_secs(100);
/// Who writes a file may take a moment.
const WRITTEN: Duration = Duration::from_millis(50);
/// When to try again what has failed.
const RETRY: Duration = Duration::from_secs(5);

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

    /// Answers requests and changes until told to stop.
    pub(crate) async fn serve(
        mut self,
        listener: UnixListener,
        announce: Announce,
    ) -> Result<(), Error> {
        let (sender, mut commands) = mpsc::channel(64);
        self.configured.metrics.start(sender.clone()).await;
        let (stop, stopped) = oneshot::channel::<()>();
        let mut server = pin!(server::serve(
            listener,
            sender,
            self.authority.clone(),
            stopped,
        ));
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Runtime)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(Error::Runtime)?;
        let mut changes = pin!(Netlink::watch()?);
        let missing = self.tunnels.values().any(|it| it.wireguard.is_none());
        let mut settled = missing.then(time::Instant::now);
        let mut reload = None;
        let mut look = clock::every(LOOK);
        let mut tunnels = clock::every(failover::LOOK);
        let mut room = clock::every(room::LOOK);
        let mut said = room::Said::default();
        let mut sleep = Sleep::new();
        let mut watchdog = service::watchdog().map(time::interval);
        announce.say(&Ready::Serving);
        service::ready();
        let down = loop {
            let choice = self.has_choice();
            tokio::select! {
                Some(command) = commands.recv() => {
                    if let Some(reply) = self.answer(command).await {
                        break Some(reply);
                    }
                }
                Some(_) = changes.next() => {
                    settled = Some(self.soon(settled));
                }
                () = until(settled) => {
                    settled = self.heal().await;
                }
                Some(death) = self.deaths.join_next_with_id() => {
                    // An error is the end of a vigil: the tunnel was taken down.
                    if let Ok((id, error)) = death {
                        self.bury(id, &error);
                        settled = Some(self.soon(settled));
                    }
                }
                // An error is the end of a lookup that nobody waits for.
                Some(found) = self.lookups.join_next_with_id() => if let Ok((id, found)) = found {
                    settled = self.names_came(id, found, settled).await;
                },
                _ = tunnels.tick(), if choice => self.look_at_tunnels().await,
                () = Configured::changed(self.configured.watch.as_mut()) => {
                    reload = Some(time::Instant::now() + WRITTEN);
                }
                _ = hangup.recv() => reload = Some(time::Instant::now()),
                () = until(reload) => {
                    reload = None;
                    if self.reload().await {
                        settled = Some(time::Instant::now());
                    }
                }
                () = self.configured.installed.changed() => self.refresh_rules(),
                _ = look.tick(), if self.options.lifetime == Lifetime::UntilLastJob => {
                    let unasked = commands.capacity() == commands.max_capacity();
                    if unasked && self.waiting.is_empty() && self.is_idle() {
                        break None;
                    }
                }
                _ = room.tick() => {
                    said.look(&self.kernel);
                    if let Some(slept) = sleep.noticed() {
                        info!(?slept, "the machine was asleep; looking at all anew");
                        settled = Some(time::Instant::now());
                    }
                }
                () = turn(&mut watchdog) => self.tell_service(),
                _ = terminate.recv() => break None,
                _ = interrupt.recv() => break None,
                () = &mut server => unreachable!("the server ends when it is stopped"),
            }
        };
        service::stopping();
        // From here on no client may think that it is heard.
        drop(commands);
        let living = self.kernel.policed().count();
        if down.is_none() && (living > 0 || self.configured.has_rules()) {
            warn!(
                processes = living,
                "ending; rules hold and policed programs stay bound, silent where the tunnel was ours"
            );
            return self.leave();
        }
        let removed = self.take_down().await;
        match (down, removed) {
            (Some(reply), removed) => {
                let _client_gone = reply.send(removed);
                // The answer still has to be written.
                let _server_gone = stop.send(());
                let _ = time::timeout(Duration::from_secs(1), server).await;
                Ok(())
            }
            (None, removed) => removed.map(drop),
        }
    }

    /// Answers a request; `down` is given back, for it ends the loop.
    async fn answer(&mut self, command: Command) -> Option<server::Reply<Removed>> {
        // A client that has gone away needs no answer.
        match command {
            Command::Status(caller, reply) => {
                let status = self.status().await;
                let seen = status.map(|it| caller.filter(it, |name| self.owner(name)));
                drop(reply.send(seen));
            }
            Command::Tunnels(caller, reply) => {
                let statuses = self.tunnel_statuses().await.map(|mut tunnels| {
                    tunnels.retain(|it| caller.sees(&it.name, self.owner(&it.name)));
                    tunnels
                });
                drop(reply.send(statuses));
            }
            Command::Tunnel(caller, name, reply) => {
                let status = match caller.see(&name, self.owner(&name)) {
                    Ok(()) => self.tunnel_status(&name).await,
                    Err(error) => Err(error),
                };
                drop(reply.send(status));
            }
            Command::Metrics(reply) => drop(reply.send(self.measure().await)),
            Command::Run(_, _, _, reply) if reply.is_closed() => {}
            Command::Run(caller, run, found, reply) => {
                match self.run(&caller, run.clone(), found.clone()).await {
                    Err(Error::LookingUp) => {
                        self.waiting.push(Command::Run(caller, run, found, reply));
                    }
                    answer => drop(reply.send(answer)),
                }
            }
            Command::Explain(caller, pid, reply) => {
                drop(reply.send(self.explain(&caller, pid).await));
            }
            // Whoever asked has thought better of it: then nothing is changed.
            Command::Attach(_, _, _, reply) | Command::Detach(_, _, reply) if reply.is_closed() => {
            }
            Command::Attach(caller, request, found, reply) => {
                match self.attach(&caller, request.clone(), found.clone()).await {
                    Err(Error::LookingUp) => {
                        let attach = Command::Attach(caller, request, found, reply);
                        self.waiting.push(attach);
                    }
                    answer => drop(reply.send(answer)),
                }
            }
            Command::Detach(caller, request, reply) => {
                drop(reply.send(self.detach(&caller, &request)));
            }
            Command::TunnelUp(caller, request, found, reply) => {
                // Whoever asked has thought better of it.
                if !reply.is_closed() {
                    drop(reply.send(self.tunnel_up_for(&caller, request, found).await));
                }
            }
            Command::TunnelDown(caller, name, reply) => {
                drop(reply.send(self.tunnel_down_for(&caller, &name).await));
            }
            Command::Down(reply) => return Some(reply),
        }
        None
    }

    async fn run(
        &mut self,
        caller: &Caller,
        run: Run,
        found: Option<Endpoints>,
    ) -> Result<Running, Error> {
        let (pid, handle) = caller.peer.process()?;
        Self::require_sane(&run.terms)?;
        if let Some(request) = run.tunnel {
            self.tunnel_up_for(caller, request, found).await?;
        }
        let (terms, mut notices) = self.ready(caller, run.terms).await?;
        // Judged before a policy is made for nothing, and again when nothing can come in between.
        let police = |daemon: &Self| {
            let present = daemon.present(pid);
            let change = Change {
                asker: present.as_ref(),
                present: present.as_ref(),
                wanted: Some(&terms),
            };
            caller.police(pid, &*handle, change)
        };
        police(self)?;
        let id = self.policy(terms.clone()).await?;
        police(self)?;
        let terms = self.through_tunnel(id).unwrap_or(terms);
        let before = self.kernel.standing(pid);
        self.kernel.set_process(pid, Some(id))?;
        let reset = Existing::Reset;
        match inherited::bind(handle.as_fd(), pid, self.options.field, id, &terms, reset) {
            Ok(0) => {}
            Ok(1) => notices.push("1 open connection of this program was cut".to_owned()),
            Ok(cut) => notices.push(format!("{cut} open connections of this program were cut")),
            Err(error) => {
                self.kernel.set_standing(pid, before)?;
                return Err(error.into());
            }
        }
        // The number may have got another owner while we looked elsewhere.
        if has_ended(&handle) {
            self.kernel.set_process(pid, None)?;
            return Err(Error::NoProcess);
        }
        self.had_job = true;
        Ok(Running {
            policy: id,
            mark: self.options.field.mark(id.get()),
            notices,
            resolvers: self.resolvers(&terms),
            search: self.search_domains(&terms),
            open_sockets: self.open_sockets(&terms),
        })
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

    /// Tells the service manager that we live, and what we have.
    fn tell_service(&self) {
        service::alive();
        service::status(&format!(
            "{} policies, {} tunnels, {} programs",
            self.policies.len(),
            self.tunnels.len(),
            self.kernel.policed().count()
        ));
    }

    /// Goes on with what has waited for names; returns when to try again, if need be.
    async fn names_came(
        &mut self,
        lookup: task::Id,
        found: Result<Endpoints, wireguard::Error>,
        planned: Option<time::Instant>,
    ) -> Option<time::Instant> {
        let next = match self.looked_up(lookup, found) {
            Restored::All => self.heal().await,
            Restored::Partly => planned.or_else(|| Some(time::Instant::now() + RETRY)),
        };
        for command in std::mem::take(&mut self.waiting) {
            // It may have to wait for another one; none of these ends the loop.
            drop(self.answer(command).await);
        }
        next
    }

    /// When to answer news that come now, unless it is to be looked sooner.
    fn soon(&mut self, planned: Option<time::Instant>) -> time::Instant {
        let soon = time::Instant::now() + self.pace.wait(Instant::now());
        planned.map_or(soon, |planned| planned.min(soon))
    }

    /// Answers a change in the network that somebody else made; returns when to try again, if need be.
    async fn heal(&mut self) -> Option<time::Instant> {
        self.pace.looked(Instant::now());
        let restored = self.restore_tunnels().await;
        if self.has_choice() {
            self.look_at_tunnels().await;
        }
        let reconciled = self.reconcile_after(Cause::News).await;
        if let Err(error) = &reconciled {
            let error = error.refusal();
            spare!(
                self.lines,
                warn,
                ?error,
                "cannot restore rules and routes; programs are silent where they are missing"
            );
        }
        (restored == Restored::Partly || reconciled.is_err()).then(|| time::Instant::now() + RETRY)
    }

    /// Whether the last job has ended: no policed process lives and nobody asked for a tunnel to stay.
    fn is_idle(&mut self) -> bool {
        let asked = |tunnel: &Tunnel| tunnel.request.lifetime == Lifetime::UntilDown;
        if self.tunnels.values().any(asked) || self.configured.has_rules() {
            return false;
        }
        if !self.had_job && self.started.elapsed() < FIRST_JOB {
            return false;
        }
        let deserted = self.kernel.is_deserted().unwrap_or_else(|error| {
            warn!(%error, "cannot tell whether a policed process lives");
            false
        });
        if !deserted {
            self.deserted = None;
            return false;
        }
        if self.keeps_connections {
            self.keeps_connections = socket::has_connections(self.options.field).unwrap_or(false);
            if self.keeps_connections {
                return false;
            }
        }
        let since = *self.deserted.get_or_insert_with(Instant::now);
        since.elapsed() > LAST_WORDS
            || !self.is_talking().unwrap_or_else(|error| {
                warn!(%error, "cannot tell whether a connection has something left to send");
                true
            })
    }

    /// Whether a connection of a program that has ended still needs its rules.
    ///
    /// On an interface that stays when we go, something may arrive for it, and the kernel's reply to that would
    /// leave by the default route. The kernel forgets a connection after a minute (`TCP_TIMEWAIT_LEN`).
    fn is_talking(&self) -> io::Result<bool> {
        let field = self.options.field;
        if socket::is_sending(field)? {
            return Ok(true);
        }
        let stays = |id: &PolicyId| {
            let mut tunnels = self.policies.get(id).into_iter().flat_map(Terms::tunnels);
            tunnels.any(|name| !self.tunnels.contains_key(name))
        };
        Ok(self.policies.keys().any(stays) && socket::policies(field)?.iter().any(stays))
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

    /// Ends without taking anything back.
    fn leave(self) -> Result<(), Error> {
        self.save()?;
        if self.options.socket_of == SocketOf::Service {
            return Ok(());
        }
        remove_socket(&self.options.socket).map_err(|source| Error::Socket {
            path: self.options.socket.clone(),
            source,
        })
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

/// The next time that the service manager wants to hear of us, if ever.
async fn turn(watchdog: &mut Option<time::Interval>) {
    match watchdog {
        Some(interval) => drop(interval.tick().await),
        None => pending().await,
    }
}

async fn until(deadline: Option<time::Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline).await,
        None => pending().await,
    }
}
