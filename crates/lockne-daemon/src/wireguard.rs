//! WireGuard tunnels: of the kernel where it has WireGuard, else embedded in this process.
//!
//! A tunnel makes no routes: who may use it is for policies to say. Everything happens in the
//! network namespace of the calling thread, so the runtime must have one thread only.

mod embedded;
mod error;
mod hook;
mod kernel;
mod link;
mod peer;
mod resolve;
mod watch;

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    sync::Arc,
    time::Duration,
};

use lockne_core::{
    api::{PeerStatus, TunnelKind},
    tunnel::TunnelName,
    wgquick::{Config, Hook, HookPolicy, Phase},
};
use lockne_transport::{Death, Start, Tun};
use rtnetlink::packet_route::link::InfoKind;
use tokio::task::JoinHandle;

use self::{
    embedded::{Embedded, Settings},
    kernel::Kernel,
    link::{Link, Links, Owner},
    peer::{Named, Peer},
    watch::Watched,
};
pub use self::{error::Error, peer::Endpoints};

/// How old a session can be before it counts as stale, as in wireguard-tools' reresolve-dns.
const SESSION_LIFE: Duration = Duration::from_secs(135);

/// Which WireGuard to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's, else the embedded one.
    #[default]
    Auto,
    /// The kernel's only.
    Kernel,
    /// The embedded one only.
    Embedded,
}

/// A tunnel that is up.
///
/// Dropping it is what the death of the process would be: the interface and what routes to it stay,
/// so that nothing finds another way, and the next [`up`](Self::up) takes it over.
pub struct Wireguard {
    name: TunnelName,
    link: Link,
    mtu: u16,
    hooks: Vec<Hook>,
    watched: Arc<Watched>,
    task: JoinHandle<()>,
}

/// What makes the packets of a tunnel.
enum Device {
    Kernel(Kernel),
    Embedded(Embedded),
}

impl Wireguard {
    /// Looks up the endpoints and does [`up_at`](Self::up_at).
    ///
    /// # Errors
    ///
    /// As there, and if an endpoint cannot be found.
    pub async fn up(
        name: &TunnelName,
        config: &Config,
        backend: Backend,
        hooks: HookPolicy,
    ) -> Result<Self, Error> {
        let endpoints = Self::check(name, config, hooks).await?;
        Self::up_at(name, config, &endpoints, backend, hooks).await
    }

    /// Brings the tunnel `name` up as `config` says, or takes it over from a daemon that died.
    ///
    /// A tunnel of the kernel that is taken over keeps its sessions. The commands of the
    /// configuration run if `hooks` allows them, and not again when a tunnel is taken over.
    ///
    /// # Errors
    ///
    /// Fails if the configuration has commands and none may run, if one of them fails,
    /// if the interface exists and is not ours, or if the system refuses.
    /// Then nothing is left of what was begun.
    pub async fn up_at(
        name: &TunnelName,
        config: &Config,
        endpoints: &Endpoints,
        backend: Backend,
        hooks: HookPolicy,
    ) -> Result<Self, Error> {
        let checked = config.check_hooks(hooks);
        checked.map_err(|source| Error::Hooks {
            name: name.clone(),
            source,
        })?;
        let peers = config.peers.iter().enumerate();
        let peers: Vec<_> = peers
            .map(|(at, peer)| Peer::at(peer, endpoints.of(at), config.fwmark))
            .collect();
        let port = match &config.listen_port {
            Some(port) => resolve::port(port)?,
            None => 0,
        };
        let endpoints = peers.iter().filter_map(|peer| peer.endpoint);
        let mtu = config
            .mtu
            .unwrap_or_else(|| resolve::mtu(endpoints, config.fwmark));
        let plan = Plan {
            name,
            config,
            peers,
            port,
            mtu,
        };

        let links = Links::open()?;
        if let Some(link) = plan.leftover(&links, backend).await? {
            return plan.take_over(&links, link).await;
        }
        hook::run(&config.hooks, Phase::PreUp, name).await?;
        plan.make(&links, backend).await
    }

    /// Tries what [`up`](Self::up) may have to wait long for, and changes nothing: the commands are
    /// allowed, and the endpoints are found.
    ///
    /// # Errors
    ///
    /// Fails if the configuration has commands and none may run, or if an endpoint cannot be found.
    pub async fn check(
        name: &TunnelName,
        config: &Config,
        hooks: HookPolicy,
    ) -> Result<Endpoints, Error> {
        let checked = config.check_hooks(hooks);
        checked.map_err(|source| Error::Hooks {
            name: name.clone(),
            source,
        })?;
        Endpoints::find(config).await
    }

    /// Takes the tunnel down and removes its interface.
    ///
    /// # Errors
    ///
    /// Fails if the interface cannot be removed, or if a command of the configuration fails; the
    /// interface is gone then, too.
    pub async fn down(self) -> Result<(), Error> {
        let before = hook::run(&self.hooks, Phase::PreDown, &self.name).await;
        self.stop().await;
        Links::open()?.delete(&self.link).await?;
        before?;
        hook::run(&self.hooks, Phase::PostDown, &self.name).await
    }

    /// Ends everything in this process. The interface stays.
    async fn stop(&self) {
        self.task.abort();
        if let Device::Embedded(device) = &self.watched.device {
            device.stop().await;
        }
    }

    /// Removes the tunnel `name` that a dead daemon left over, and tells whether there was one.
    ///
    /// # Errors
    ///
    /// Fails if the interface is not ours, or cannot be removed.
    pub async fn delete_stale(name: &TunnelName) -> Result<bool, Error> {
        let links = Links::open()?;
        match links.find(name.as_str()).await? {
            Some(link) if link.owner == Owner::Lockne => {
                links.delete(&link).await?;
                Ok(true)
            }
            Some(_) => Err(busy(name)),
            None => Ok(false),
        }
    }

    /// Finds every tunnel of ours in this network namespace, served by somebody or left over.
    ///
    /// # Errors
    ///
    /// Fails if the kernel cannot be asked.
    pub async fn all() -> Result<Vec<TunnelName>, Error> {
        let links = Links::open()?.ours().await?;
        let names = links.into_iter().map(|link| link.name.parse());
        Ok(names.filter_map(Result::ok).collect())
    }

    /// What is known about the peers, in the order of the configuration.
    ///
    /// # Errors
    ///
    /// Fails if the kernel cannot be asked.
    pub async fn status(&self) -> Result<Vec<PeerStatus>, Error> {
        self.watched.status().await
    }

    /// How long ago the last handshake with each peer was, by its public key, as far as [`status`](Self::status) has seen.
    #[must_use]
    pub fn handshakes(&self) -> BTreeMap<String, Duration> {
        self.watched.handshakes()
    }

    /// How many bytes have come, beside those in [`status`](Self::status), only to say that a far end is there.
    #[must_use]
    pub fn keepalives(&self) -> u64 {
        match &self.watched.device {
            // It counts them among the rest.
            Device::Kernel(_) => 0,
            Device::Embedded(device) => device.keepalives(),
        }
    }

    /// Waits until the tunnel is dead: mostly, because somebody deleted its interface.
    pub fn died(&self) -> impl Future<Output = Error> + Send + 'static + use<> {
        let name = self.name.to_string();
        let death = self.watched.death.wait();
        async move {
            Error::Died {
                name,
                source: death.await,
            }
        }
    }

    /// Its name, and its interface's.
    #[must_use]
    pub const fn name(&self) -> &TunnelName {
        &self.name
    }

    /// Who makes its packets.
    #[must_use]
    pub fn kind(&self) -> TunnelKind {
        match self.watched.device {
            Device::Kernel(_) => TunnelKind::WireguardKernel,
            Device::Embedded(_) => TunnelKind::WireguardEmbedded,
        }
    }

    /// The index of its interface.
    #[must_use]
    pub const fn ifindex(&self) -> u32 {
        self.link.index
    }

    /// The largest packet it takes, in bytes.
    #[must_use]
    pub const fn mtu(&self) -> u16 {
        self.mtu
    }
}

impl Drop for Wireguard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A tunnel as it shall be, with all that had to be looked up.
struct Plan<'a> {
    name: &'a TunnelName,
    config: &'a Config,
    peers: Vec<Peer<'a>>,
    port: u16,
    mtu: u16,
}

impl Plan<'_> {
    /// The interface that a dead daemon left, if `backend` can use it. One that it cannot use is
    /// removed.
    async fn leftover(&self, links: &Links, backend: Backend) -> Result<Option<Link>, Error> {
        let Some(link) = links.find(self.name.as_str()).await? else {
            return Ok(None);
        };
        if link.owner != Owner::Lockne || link.name != self.name.as_str() {
            return Err(busy(self.name));
        }
        let fits = match link.kind {
            Some(InfoKind::Wireguard) => backend != Backend::Embedded,
            Some(InfoKind::Tun) => backend != Backend::Kernel,
            _ => false,
        };
        if !fits {
            links.delete(&link).await?;
            return Ok(None);
        }
        Ok(Some(link))
    }

    async fn take_over(&self, links: &Links, link: Link) -> Result<Wireguard, Error> {
        let death = Death::new();
        let device = if link.kind == Some(InfoKind::Wireguard) {
            self.configure_kernel(&link)?
        } else {
            let tun = Tun::open(&link.name, Start::Attach)?;
            self.start_embedded(&tun, &death).await?
        };
        tracing::info!(tunnel = %self.name, "took over the tunnel");
        self.finish(links, link, device, death).await
    }

    async fn make(&self, links: &Links, backend: Backend) -> Result<Wireguard, Error> {
        let tun = self.create(links, backend).await?;
        let name = self.name.as_str();
        let link = links.find(name).await?.ok_or_else(|| Error::Died {
            name: name.to_owned(),
            source: io::Error::from_raw_os_error(libc::ENODEV),
        })?;
        let result = self.fill(links, &link, tun).await;
        if result.is_err()
            && let Err(error) = links.delete(&link).await
        {
            tracing::warn!(tunnel = %self.name, ?error, "cannot remove what was begun");
        }
        result
    }

    /// Makes the interface: of the kernel, or else a TUN device that is gone with the value.
    async fn create(&self, links: &Links, backend: Backend) -> Result<Option<Tun>, Error> {
        let name = self.name.as_str();
        if backend != Backend::Embedded {
            match links.add_wireguard(name).await {
                Ok(()) => return Ok(None),
                Err(Error::NoKernelWireguard) if backend == Backend::Auto => {
                    tracing::debug!("no WireGuard in the kernel, use the embedded one");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(Tun::open(name, Start::Create)?))
    }

    /// Makes a tunnel of a new interface.
    async fn fill(&self, links: &Links, link: &Link, tun: Option<Tun>) -> Result<Wireguard, Error> {
        links.claim(link).await?;
        let death = Death::new();
        let device = match &tun {
            Some(tun) => {
                // Not before it is marked as ours: nobody could tell whose leftover it is.
                tun.persist()?;
                self.start_embedded(tun, &death).await?
            }
            None => self.configure_kernel(link)?,
        };
        let tunnel = self.finish(links, link.clone(), device, death).await?;
        if let Err(error) = hook::run(&self.config.hooks, Phase::PostUp, self.name).await {
            tunnel.stop().await;
            return Err(error);
        }
        Ok(tunnel)
    }

    fn configure_kernel(&self, link: &Link) -> Result<Device, Error> {
        let kernel = Kernel::configure(link, self.config, self.port, &self.peers)?;
        Ok(Device::Kernel(kernel))
    }

    async fn start_embedded(&self, tun: &Tun, death: &Death) -> Result<Device, Error> {
        let settings = Settings {
            name: self.name.as_str(),
            mtu: self.mtu,
            port: self.port,
            peers: &self.peers,
        };
        let embedded = Embedded::start(tun, self.config, settings, death).await?;
        Ok(Device::Embedded(embedded))
    }

    async fn finish(
        &self,
        links: &Links,
        link: Link,
        device: Device,
        death: Death,
    ) -> Result<Wireguard, Error> {
        let addresses = &self.config.addresses;
        let configured = links.configure(&link, self.mtu, addresses).await;
        configured.map_err(|error| match error {
            // The kernel's WireGuard takes its port when the interface is turned on.
            Error::Link { source, .. } if source.kind() == ErrorKind::AddrInUse => {
                let port = self.port;
                Error::PortInUse { port, source }
            }
            error => error,
        })?;

        let order = self.peers.iter().map(|peer| peer.config.public_key);
        let named = self.peers.iter();
        let named = named.filter_map(|peer| Named::new(peer.config)).collect();
        let watched = Arc::new(Watched::new(device, death, order.collect()));
        let task = watch::run(Arc::downgrade(&watched), named, self.config.fwmark);
        Ok(Wireguard {
            name: self.name.clone(),
            link,
            mtu: self.mtu,
            hooks: self.config.hooks.clone(),
            watched,
            task: tokio::spawn(task),
        })
    }
}

fn busy(name: &TunnelName) -> Error {
    Error::Busy {
        name: name.to_string(),
    }
}
