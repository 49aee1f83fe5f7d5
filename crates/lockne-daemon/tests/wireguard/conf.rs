//! Configurations for tests.

use std::sync::Arc;

use gotatun::x25519;
use lockne_core::{
    api::PeerStatus,
    wgquick::{Config, HookPolicy, PrivateKey, PublicKey},
};
use lockne_daemon::wireguard::{Backend, Error, Wireguard};

use crate::side::Side;

/// The secret key of the end with this number, in base64.
pub(crate) fn secret(end: u8) -> String {
    let key = PrivateKey::from_bytes([end; 32]);
    // Public keys can be written, and the bytes are all that counts.
    PublicKey::from_bytes(*key.secret_bytes()).to_string()
}

/// The public key of the end with this number, in base64.
pub(crate) fn public(end: u8) -> String {
    let secret = x25519::StaticSecret::from([end; 32]);
    PublicKey::from_bytes(x25519::PublicKey::from(&secret).to_bytes()).to_string()
}

/// End `me` of a tunnel in network `net`: `10.NET.0.ME` and `fd00:NET::ME`.
pub(crate) fn conf(net: u8, me: u8, peer: u8, more: &str) -> String {
    format!(
        "[Interface]\n\
         PrivateKey = {secret}\n\
         Address = 10.{net}.0.{me}/24, fd00:{net}::{me}/64\n\
         ListenPort = {port}\n\
         [Peer]\n\
         PublicKey = {public}\n\
         AllowedIPs = 10.{net}.0.{peer}/32, fd00:{net}::{peer}/128\n\
         {more}\n",
        secret = secret(me),
        port = 50_000 + u16::from(net),
        public = public(peer),
    )
}

/// Brings up an embedded tunnel.
pub(crate) fn try_up(side: &Side, name: &str, conf: &str) -> Result<Wireguard, Error> {
    let (name, config) = (name.parse().unwrap(), Config::parse(conf).unwrap());
    side.run(
        async move { Wireguard::up(&name, &config, Backend::Embedded, HookPolicy::Allow).await },
    )
}

/// Brings up an embedded tunnel that must come up, with routes to its networks.
pub(crate) fn up(side: &Side, name: &str, conf: &str) -> Arc<Wireguard> {
    let tunnel = try_up(side, name, conf).unwrap();
    for net in Config::parse(conf).unwrap().addresses {
        side.ip(&format!("route replace {} dev {name}", net.trunc()));
    }
    Arc::new(tunnel)
}

/// The only peer of a tunnel.
pub(crate) fn peer(side: &Side, tunnel: &Arc<Wireguard>) -> PeerStatus {
    let tunnel = tunnel.clone();
    let mut peers = side.run(async move { tunnel.status().await }).unwrap();
    assert_eq!(peers.len(), 1);
    peers.remove(0)
}

/// Takes a tunnel down that nobody else holds.
pub(crate) fn down(side: &Side, tunnel: Arc<Wireguard>) {
    let tunnel = Arc::into_inner(tunnel).unwrap();
    side.run(tunnel.down()).unwrap();
}
