//! The one loop: requests, network changes, timers and signals come in here, and are answered one after the other.

use std::{
    future::pending,
    io,
    os::fd::AsFd as _,
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use lockne_core::{
    api::{Lifetime, Removed, Run, Running},
    policy::{PolicyId, Terms},
    rule::Existing,
};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    task, time,
};
use tracing::{info, warn};

use super::Daemon;
use crate::{
    SocketOf,
    authority::{Caller, Change},
    clock::{self, Sleep},
    configured::Configured,
    error::Error,
    failover, inherited,
    mend::spare,
    process::has_ended,
    ready::{Announce, Ready},
    reconcile::Cause,
    room,
    route::Netlink,
    server::{self, Command},
    service, socket,
    state_dir::remove_socket,
    tunnels::{Restored, Tunnel},
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

impl Daemon {
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
