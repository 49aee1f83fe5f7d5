//! The tunnels that lockne brings up itself.

use lockne_core::{
    api::{Lifetime, TunnelDown, TunnelStatus, TunnelUp},
    tunnel::TunnelName,
    wgquick::Config,
};
use tokio::task::{self, AbortHandle, JoinSet};
use tracing::{info, warn};

use crate::{
    authority::Caller,
    daemon::Daemon,
    error::Error,
    mend::spare,
    reconcile::tunnel_of,
    wireguard::{self, Backend, Endpoints, Wireguard},
};

/// A tunnel that lockne brings up.
pub(crate) struct Tunnel {
    pub(crate) request: TunnelUp,
    pub(crate) config: Config,
    /// `None` while it could not be brought up again, after a restart or after its device died.
    pub(crate) wireguard: Option<Live>,
    /// Where its peers were found the last time. Later changes are for the live tunnel to find out.
    found: Option<Endpoints>,
    lookup: Lookup,
    /// What was said of it last, so that it is not said again every few seconds.
    complaint: Option<String>,
}

/// What is known of the names of a tunnel's endpoints.
enum Lookup {
    /// Nobody has asked yet.
    New,
    /// They are being looked up for the first time, or again.
    First(Vigil),
    Again(Vigil),
    /// That has ended, one way or the other.
    Done,
}

/// Looks up names beside the loop: a resolver that is silent keeps nobody waiting who does not need it.
pub(crate) type Lookups = JoinSet<Result<Endpoints, wireguard::Error>>;

/// A tunnel that is up.
pub(crate) struct Live {
    pub(crate) wireguard: Wireguard,
    death: Vigil,
}

/// A task that ends when nobody waits for it any more.
struct Vigil(AbortHandle);

impl Drop for Vigil {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Hears of each tunnel that dies by itself.
pub(crate) type Deaths = JoinSet<wireguard::Error>;

impl Tunnel {
    /// One that is not up yet.
    pub(crate) const fn new(request: TunnelUp, config: Config) -> Self {
        Self {
            request,
            config,
            wireguard: None,
            found: None,
            lookup: Lookup::New,
            complaint: None,
        }
    }

    /// Says why it is not up, once.
    fn complain(&mut self, error: &Error) {
        let error = error.refusal();
        let text = format!("{error:?}");
        if self.complaint.as_ref() != Some(&text) {
            let name = &self.request.name;
            warn!(tunnel = %name, ?error, "cannot bring the tunnel up again; its programs stay silent");
            self.complaint = Some(text);
        }
    }

    /// Takes it down, with its interface.
    pub(crate) async fn down(self) -> Result<(), wireguard::Error> {
        match self.wireguard {
            Some(live) => live.wireguard.down().await,
            None => Ok(()),
        }
    }
}

impl Lookup {
    fn id(&self) -> Option<task::Id> {
        match self {
            Self::First(vigil) | Self::Again(vigil) => Some(vigil.0.id()),
            Self::New | Self::Done => None,
        }
    }

    fn is_running(&self) -> bool {
        self.id().is_some()
    }
}

/// Whether all tunnels are there that should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restored {
    All,
    Partly,
}

impl Daemon {
    /// Brings a tunnel up for somebody, who then owns it if he is not root.
    ///
    /// One that is up already stays whose it is.
    pub(crate) async fn tunnel_up_for(
        &mut self,
        caller: &Caller,
        request: TunnelUp,
        found: Option<Endpoints>,
    ) -> Result<TunnelStatus, Error> {
        caller.tunnel_up(&request)?;
        caller.unless_policed(self.asker(caller)?.as_ref())?;
        let name = request.name.clone();
        if caller.root().is_ok() {
            return self.tunnel_up(request, found).await;
        }
        let uid = caller.peer.uid;
        if self.tunnels.contains_key(&name) {
            caller.see(&name, self.owner(&name))?;
        } else {
            let own = self.owners.values().filter(|owner| **owner == uid);
            caller.another_tunnel(own.count())?;
        }
        let is_new = !self.tunnels.contains_key(&name);
        let status = self.tunnel_up(request, found).await?;
        if is_new {
            self.owners.insert(name, uid);
        }
        Ok(status)
    }

    /// Brings a tunnel up whose peers were found there. Asking for the same one twice is the same as once.
    async fn tunnel_up(
        &mut self,
        request: TunnelUp,
        found: Option<Endpoints>,
    ) -> Result<TunnelStatus, Error> {
        let name = request.name.clone();
        if let Some(tunnel) = self.tunnels.get_mut(&name) {
            if tunnel.request.config != request.config {
                return Err(Error::TunnelExists { name });
            }
            if request.lifetime == Lifetime::UntilDown {
                tunnel.request.lifetime = Lifetime::UntilDown;
            }
            self.restore_tunnels().await;
        } else {
            let config = self.parse(&request)?;
            let mut tunnel = Tunnel::new(request, config);
            // Without, it was one of ours a moment ago.
            tunnel.found = found.or_else(|| Endpoints::written(&tunnel.config));
            if let Some(found) = &tunnel.found {
                let up = bring_up(&mut self.deaths, &tunnel.request, &tunnel.config, found);
                tunnel.wireguard = Some(up.await?);
            }
            self.tunnels.insert(name.clone(), tunnel);
            info!(tunnel = %name, "up");
        }
        if let Err(error) = self.enforce().await {
            self.tunnel_down(&name).await?;
            return Err(error);
        }
        self.tunnel_status(&name).await
    }

    /// Takes a tunnel down for somebody.
    pub(crate) async fn tunnel_down_for(
        &mut self,
        caller: &Caller,
        name: &TunnelName,
    ) -> Result<TunnelDown, Error> {
        caller.tunnel_down(self.owner(name))?;
        caller.unless_policed(self.asker(caller)?.as_ref())?;
        self.tunnel_down(name).await
    }

    /// Takes a tunnel down. Programs that use it are silent from then on.
    pub(crate) async fn tunnel_down(&mut self, name: &TunnelName) -> Result<TunnelDown, Error> {
        let Some(tunnel) = self.tunnels.remove(name) else {
            self.tunnel_status(name).await?;
            return Err(Error::NotOurs { name: name.clone() });
        };
        self.owners.remove(name);
        let down = tunnel.down().await;
        self.enforce().await?;
        down.map_err(|source| Error::Wireguard {
            name: name.clone(),
            source,
        })?;
        info!(tunnel = %name, "down");
        let users = self
            .policies
            .iter()
            .filter(|(id, _)| self.effective(**id).as_ref().and_then(tunnel_of) == Some(name));
        let silenced = users.map(|(id, _)| self.kernel.processes(*id).len() as u64);
        Ok(TunnelDown {
            name: name.clone(),
            silenced: silenced.sum(),
        })
    }

    /// Brings up again what an earlier daemon had up.
    pub(crate) async fn resume_tunnels(&mut self, requests: Vec<TunnelUp>) {
        for request in requests {
            match self.parse(&request) {
                Ok(config) => {
                    let tunnel = Tunnel::new(request, config);
                    self.tunnels.insert(tunnel.request.name.clone(), tunnel);
                }
                Err(error) => {
                    warn!(tunnel = %request.name, error = ?error.refusal(), "forgets a tunnel");
                }
            }
        }
        self.restore_tunnels().await;
    }

    /// Brings up again what is not up, once it is known where its peers are.
    pub(crate) async fn restore_tunnels(&mut self) -> Restored {
        let mut restored = Restored::All;
        for (name, tunnel) in &mut self.tunnels {
            if tunnel.wireguard.is_some() || tunnel.lookup.is_running() {
                continue;
            }
            let known = tunnel.found.clone();
            let Some(found) = known.or_else(|| Endpoints::written(&tunnel.config)) else {
                let config = tunnel.config.clone();
                let lookup = async move { Endpoints::find(&config).await };
                let vigil = Vigil(self.lookups.spawn(lookup));
                tunnel.lookup = match tunnel.lookup {
                    Lookup::New => Lookup::First(vigil),
                    _ => Lookup::Again(vigil),
                };
                continue;
            };
            match bring_up(&mut self.deaths, &tunnel.request, &tunnel.config, &found).await {
                Ok(wireguard) => {
                    spare!(self.lines, info, tunnel = %name, "up again");
                    tunnel.wireguard = Some(wireguard);
                    tunnel.found = Some(found);
                    tunnel.complaint = None;
                }
                Err(error) => {
                    tunnel.complain(&error);
                    restored = Restored::Partly;
                }
            }
        }
        restored
    }

    /// Takes note that names were looked up, and says whether they were found.
    pub(crate) fn looked_up(
        &mut self,
        lookup: task::Id,
        found: Result<Endpoints, wireguard::Error>,
    ) -> Restored {
        let asked = |tunnel: &&mut Tunnel| tunnel.lookup.id() == Some(lookup);
        let Some(tunnel) = self.tunnels.values_mut().find(asked) else {
            return Restored::All;
        };
        tunnel.lookup = Lookup::Done;
        match found {
            Ok(found) => {
                tunnel.found = Some(found);
                Restored::All
            }
            Err(source) => {
                let name = tunnel.request.name.clone();
                tunnel.complain(&Error::TunnelUp { name, source });
                Restored::Partly
            }
        }
    }

    /// Whether the names of a tunnel's endpoints are being looked up for the first time, so that it is worth to wait.
    pub(crate) fn is_looked_up(&self, name: &TunnelName) -> bool {
        let tunnel = self.tunnels.get(name);
        tunnel.is_some_and(|tunnel| matches!(tunnel.lookup, Lookup::First(_)))
    }

    /// Takes note that a tunnel has died.
    pub(crate) fn bury(&mut self, death: task::Id, error: &wireguard::Error) {
        let dead = |tunnel: &&mut Tunnel| {
            let live = tunnel.wireguard.as_ref();
            live.is_some_and(|live| live.death.0.id() == death)
        };
        if let Some(tunnel) = self.tunnels.values_mut().find(dead) {
            spare!(self.lines, warn, tunnel = %tunnel.request.name, %error, "died");
            tunnel.wireguard = None;
        }
    }

    pub(crate) fn parse(&self, request: &TunnelUp) -> Result<Config, Error> {
        let config = Config::parse(request.config.as_bytes()).map_err(|source| Error::Config {
            file: request.file.clone(),
            source,
        })?;
        let mask = self.options.field.mask();
        match config.fwmark {
            Some(fwmark) if fwmark & mask != 0 => Err(Error::FwMark {
                file: request.file.clone(),
                fwmark,
                mask,
            }),
            _ => Ok(config),
        }
    }
}

/// Makes the tunnel's interface, without routes.
async fn bring_up(
    deaths: &mut Deaths,
    request: &TunnelUp,
    config: &Config,
    found: &Endpoints,
) -> Result<Live, Error> {
    let name = request.name.clone();
    let up = Wireguard::up_at(&name, config, found, Backend::Auto, request.hooks()).await;
    let wireguard = up.map_err(|source| Error::TunnelUp { name, source })?;
    Ok(Live {
        death: Vigil(deaths.spawn(wireguard.died())),
        wireguard,
    })
}
