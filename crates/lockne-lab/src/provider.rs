//! A VPN provider: a WireGuard peer with an address on the internet, which forwards what its customers
//! send, under their tunnel addresses.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use ipnet::IpNet;
use lockne_core::wgquick::{Config, HookPolicy};
use lockne_daemon::wireguard::{Backend, Wireguard};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::{
    device,
    internet::{Error, ROUTER_SETTINGS, any, host, machine, net, plug},
    link::{Link, Medium},
    namespace::{self, Namespace, Service},
    netlink, ready,
};

/// The port of a provider's WireGuard.
pub const PORT: u16 = 51820;

const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1);
const UPLINK: u32 = 2;
const TUNNEL: &str = "wg0";

/// A VPN provider with one customer.
pub struct Provider {
    wireguard: Mutex<Option<Service>>,
    /// Its cable to the internet.
    pub uplink: Link,
    namespace: Namespace,
    number: u8,
    server: StaticSecret,
    client: StaticSecret,
}

impl Provider {
    pub(crate) fn build(number: u8, internet: &Namespace) -> Result<Self, Error> {
        let namespace = machine(&format!("provider {number}"), &ROUTER_SETTINGS)?;
        let near_prefixes = vec![host(outer_v4(number)), host(outer_v6(number))];
        let far = far_index(number);
        let uplink = Link::make(
            plug(&namespace, "eth0", UPLINK),
            plug(internet, &format!("provider{number}"), far),
            Medium::Ethernet,
            near_prefixes.clone(),
        )?;
        let provider = Self {
            wireguard: Mutex::new(None),
            uplink,
            namespace,
            number,
            server: StaticSecret::random(),
            client: StaticSecret::random(),
        };

        let gateways = [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)];
        netlink::configure(internet, async |netlink| {
            for gateway in gateways {
                netlink.add_address(far, host(gateway)).await?;
            }
            for prefix in near_prefixes {
                netlink.add_route(prefix, far, None).await?;
            }
            Ok(())
        })?;
        netlink::configure(&provider.namespace, async |netlink| {
            for outer in provider.outer() {
                netlink.add_address(UPLINK, host(outer)).await?;
            }
            for gateway in gateways {
                netlink.add_route(host(gateway), UPLINK, None).await?;
                netlink
                    .add_route(any(gateway), UPLINK, Some(gateway))
                    .await?;
            }
            Ok(())
        })?;
        provider.attract(internet, &provider.customers())?;
        Ok(provider)
    }

    /// Where its part of the network is.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Where its WireGuard listens, in IPv4 and IPv6.
    #[must_use]
    pub fn endpoints(&self) -> [SocketAddr; 2] {
        self.outer().map(|address| SocketAddr::new(address, PORT))
    }

    /// The customer's address in the tunnel.
    #[must_use]
    pub const fn client_v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 8, self.number, 2)
    }

    /// The customer's address in the tunnel.
    #[must_use]
    pub const fn client_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 8, self.number as u16, 0, 0, 0, 0, 2)
    }

    /// The wg-quick file for the customer, by the provider's IPv4 address.
    #[must_use]
    pub fn client_conf(&self) -> Zeroizing<String> {
        self.client_conf_to(self.endpoints()[0])
    }

    /// The wg-quick file for the customer, by `endpoint`.
    #[must_use]
    pub fn client_conf_to(&self, endpoint: SocketAddr) -> Zeroizing<String> {
        Zeroizing::new(format!(
            "[Interface]\n\
             PrivateKey = {}\n\
             Address = {}/32, {}/128\n\
             DNS = 10.8.{}.1\n\
             \n\
             [Peer]\n\
             PublicKey = {}\n\
             AllowedIPs = 0.0.0.0/0, ::/0\n\
             Endpoint = {endpoint}\n",
            *secret(&self.client),
            self.client_v4(),
            self.client_v6(),
            self.number,
            public(&self.server),
        ))
    }

    /// The wg-quick file for the provider.
    #[must_use]
    pub fn server_conf(&self) -> Zeroizing<String> {
        let number = self.number;
        Zeroizing::new(format!(
            "[Interface]\n\
             PrivateKey = {}\n\
             ListenPort = {PORT}\n\
             Address = 10.8.{number}.1/24, fd00:8:{number}::1/64\n\
             Table = off\n\
             \n\
             [Peer]\n\
             PublicKey = {}\n\
             AllowedIPs = {}/32, {}/128\n",
            *secret(&self.server),
            public(&self.client),
            self.client_v4(),
            self.client_v6(),
        ))
    }

    /// Starts its WireGuard: `start` gets the text of [`Self::server_conf`] and gives what keeps the
    /// peer alive. It works on a thread with a tokio loop inside the provider's namespace.
    ///
    /// # Errors
    ///
    /// When `start` fails.
    pub fn start_wireguard<Guard, Failure>(
        &self,
        start: impl AsyncFnOnce(Zeroizing<String>) -> Result<Guard, Failure> + Send + 'static,
    ) -> Result<(), namespace::Error>
    where
        Failure: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // The port must be free again before somebody listens on it anew.
        self.stop_wireguard();
        let conf = self.server_conf();
        let service = self
            .namespace
            .serve("wireguard", async move || start(conf).await)?;
        *self.lock() = Some(service);
        Ok(())
    }

    /// Starts its WireGuard with what lockne embeds.
    ///
    /// # Errors
    ///
    /// When the tunnel does not come up.
    pub fn start(&self) -> Result<(), Error> {
        self.start_wireguard(async |conf| up(TUNNEL, &conf).await)?;
        let Some(tunnel) = device::Device::find(&self.namespace, TUNNEL)? else {
            return Ok(());
        };
        // lockne's WireGuard makes no routes, not even for the prefixes of its addresses.
        netlink::configure(&self.namespace, async |netlink| {
            for prefix in self.customers() {
                netlink
                    .add_route(prefix.trunc(), tunnel.index(), None)
                    .await?;
            }
            Ok(())
        })?;
        ready::wait(&self.namespace, &[tunnel.index()])?;
        Ok(())
    }

    /// Brings the customer's tunnel up in `home` under the name `name`, as another VPN client would:
    /// with its addresses, but without routes.
    ///
    /// # Errors
    ///
    /// When the tunnel does not come up.
    pub fn connect(&self, home: &Namespace, name: &'static str) -> Result<Service, Error> {
        let conf = self.client_conf();
        let service = home.serve("client", async move || up(name, &conf).await)?;
        if let Some(tunnel) = device::Device::find(home, name)? {
            ready::wait(home, &[tunnel.index()])?;
        }
        Ok(service)
    }

    /// Kills its WireGuard, if it runs: the provider answers that nobody listens.
    pub fn stop_wireguard(&self) {
        drop(self.lock().take());
    }

    /// Cuts it off the internet without a word.
    ///
    /// # Errors
    ///
    /// When it is cut off already.
    pub fn cut(&self) -> Result<(), device::Error> {
        self.uplink.cut()
    }

    /// Undoes [`Self::cut`].
    ///
    /// # Errors
    ///
    /// When it is not cut off.
    pub fn restore(&self) -> Result<(), device::Error> {
        self.uplink.restore()
    }

    /// Makes the internet send what is for `prefixes` to this provider.
    pub(crate) fn attract(&self, internet: &Namespace, prefixes: &[IpNet]) -> Result<(), Error> {
        let far = far_index(self.number);
        let [outer_v4, outer_v6] = self.outer();
        netlink::configure(internet, async |netlink| {
            for prefix in prefixes {
                let gateway = match prefix {
                    IpNet::V4(_) => outer_v4,
                    IpNet::V6(_) => outer_v6,
                };
                netlink
                    .add_route(prefix.trunc(), far, Some(gateway))
                    .await?;
            }
            Ok(())
        })?;
        Ok(())
    }

    pub(crate) fn wait_until_usable(&self) -> Result<(), Error> {
        Ok(self.uplink.wait_until_usable()?)
    }

    fn outer(&self) -> [IpAddr; 2] {
        [outer_v4(self.number).into(), outer_v6(self.number).into()]
    }

    fn customers(&self) -> [IpNet; 2] {
        [net(self.client_v4(), 24), net(self.client_v6(), 64)]
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Service>> {
        self.wireguard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("number", &self.number)
            .field("uplink", &self.uplink)
            .finish_non_exhaustive()
    }
}

async fn up(name: &str, conf: &str) -> Result<Wireguard, Box<dyn std::error::Error + Send + Sync>> {
    let (name, conf) = (name.parse()?, Config::parse(conf)?);
    Ok(Wireguard::up(&name, &conf, Backend::Embedded, HookPolicy::Refuse).await?)
}

const fn far_index(number: u8) -> u32 {
    20 + number as u32
}

const fn outer_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 10 + number)
}

const fn outer_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x10 + number as u16)
}

fn secret(key: &StaticSecret) -> Zeroizing<String> {
    Zeroizing::new(BASE64_STANDARD.encode(key.as_bytes()))
}

fn public(key: &StaticSecret) -> String {
    BASE64_STANDARD.encode(PublicKey::from(key).as_bytes())
}
