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
    reconcile::tunnel_of,
    wireguard::{self, Backend, Wireguard},
};

/// A tunnel that lockne brings up.
pub(crate) struct Tunnel {
    pub(crate) request: TunnelUp,
    pub(crate) config: Config,
    /// `None` while it could not be brought up again, after a restart or after its device died.
    pub(crate) wireguard: Option<Live>,
}

/// A tunnel that is up.
pub(crate) struct Live {
    pub(crate) wireguard: Wireguard,
    death: Vigil,
}

/// The task that waits for a tunnel's death.
struct Vigil(AbortHandle);

impl Drop for Vigil {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Hears of each tunnel that dies by itself.
pub(crate) type Deaths = JoinSet<wireguard::Error>;

impl Tunnel {
    /// Takes it down, with its interface.
    pub(crate) async fn down(self) -> Result<(), wireguard::Error> {
        match self.wireguard {
            Some(live) => live.wireguard.down().await,
            None => Ok(()),
        }
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
    ) -> Result<TunnelStatus, Error> {
        caller.tunnel_up(&request)?;
        let name = request.name.clone();
        if caller.root().is_ok() {
            return self.tunnel_up(request).await;
        }
        let uid = caller.peer.uid;
        if self.tunnels.contains_key(&name) {
            caller.see(&name, self.owner(&name))?;
        } else {
            let own = self.owners.values().filter(|owner| **owner == uid);
            caller.another_tunnel(own.count())?;
        }
        let is_new = !self.tunnels.contains_key(&name);
        let status = self.tunnel_up(request).await?;
        if is_new {
            self.owners.insert(name, uid);
        }
        Ok(status)
    }

    /// Brings a tunnel up. Asking for the same one twice is the same as once.
    pub(crate) async fn tunnel_up(&mut self, request: TunnelUp) -> Result<TunnelStatus, Error> {
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
            let wireguard = self.bring_up(&request, &config).await?;
            let tunnel = Tunnel {
                request,
                config,
                wireguard: Some(wireguard),
            };
            self.tunnels.insert(name.clone(), tunnel);
            info!(tunnel = %name, "up");
        }
        if let Err(error) = self.enforce().await {
            self.tunnel_down(&name).await?;
            return Err(error);
        }
        self.tunnel_status(&name).await
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
                    let tunnel = Tunnel {
                        request,
                        config,
                        wireguard: None,
                    };
                    self.tunnels.insert(tunnel.request.name.clone(), tunnel);
                }
                Err(error) => {
                    warn!(tunnel = %request.name, error = ?error.refusal(), "forgets a tunnel");
                }
            }
        }
        self.restore_tunnels().await;
    }

    /// Brings up again what is not up.
    pub(crate) async fn restore_tunnels(&mut self) -> Restored {
        let mut restored = Restored::All;
        let missing: Vec<TunnelName> = self
            .tunnels
            .iter()
            .filter(|(_, tunnel)| tunnel.wireguard.is_none())
            .map(|(name, _)| name.clone())
            .collect();
        for name in missing {
            let Some(tunnel) = self.tunnels.remove(&name) else {
                continue;
            };
            let wireguard = match self.bring_up(&tunnel.request, &tunnel.config).await {
                Ok(wireguard) => {
                    info!(tunnel = %name, "up again");
                    Some(wireguard)
                }
                Err(error) => {
                    let error = error.refusal();
                    warn!(tunnel = %name, ?error, "cannot bring the tunnel up again; its programs stay silent");
                    restored = Restored::Partly;
                    None
                }
            };
            self.tunnels.insert(
                name,
                Tunnel {
                    wireguard,
                    ..tunnel
                },
            );
        }
        restored
    }

    /// Takes note that a tunnel has died.
    pub(crate) fn bury(&mut self, death: task::Id, error: &wireguard::Error) {
        let dead = |tunnel: &&mut Tunnel| {
            let live = tunnel.wireguard.as_ref();
            live.is_some_and(|live| live.death.0.id() == death)
        };
        if let Some(tunnel) = self.tunnels.values_mut().find(dead) {
            warn!(tunnel = %tunnel.request.name, %error, "died");
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

    /// Makes the tunnel's interface, without routes.
    async fn bring_up(&mut self, request: &TunnelUp, config: &Config) -> Result<Live, Error> {
        let name = request.name.clone();
        let up = Wireguard::up(&name, config, Backend::Auto, request.hooks()).await;
        let wireguard = up.map_err(|source| Error::TunnelUp { name, source })?;
        Ok(Live {
            death: Vigil(self.deaths.spawn(wireguard.died())),
            wireguard,
        })
    }
}
