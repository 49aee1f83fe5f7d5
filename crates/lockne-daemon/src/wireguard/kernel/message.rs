//! What is said to the kernel, and what it says.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use lockne_core::wgquick::{Config, KEY_BYTES, PublicKey};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags, WireguardTimeSpec,
};

use super::super::{
    SESSION_LIFE,
    peer::{Peer, PeerState},
};

/// Prefixes in one message. All peers of a message are one attribute, whose length has 16 bits; a
/// prefix takes 44 bytes at most, and a peer without them not more than 140.
const PREFIXES: usize = 400;

/// Peers in one message.
const PEERS: usize = 100;

/// The messages that turn a device with the peers `before` into one that does what `config` says.
pub(super) fn configure(
    ifindex: u32,
    config: &Config,
    port: u16,
    peers: &[Peer<'_>],
    before: &[PeerState],
) -> Vec<Vec<WireguardAttribute>> {
    let mut device = vec![
        WireguardAttribute::IfIndex(ifindex),
        WireguardAttribute::PrivateKey(clamp(*config.private_key.secret_bytes())),
        WireguardAttribute::Fwmark(config.fwmark.unwrap_or(0)),
    ];
    // The kernel has chosen one already, or chooses one when the device is turned on.
    if port != 0 {
        device.push(WireguardAttribute::ListenPort(port));
    }

    let stays = |key| peers.iter().any(|peer| peer.config.public_key == key);
    let gone = before.iter().filter(|peer| !stays(peer.public_key));
    let removals = gone.map(|peer| remove(&peer.public_key));
    let additions = peers.iter().flat_map(|peer| {
        let known = before
            .iter()
            .find(|known| known.public_key == peer.config.public_key);
        add(peer, known)
    });
    let parts: Vec<_> = removals.chain(additions).collect();

    let mut messages = vec![device];
    let mut peers = Vec::new();
    let mut prefixes = 0;
    for part in parts {
        let count = part.prefixes;
        if peers.len() == PEERS || prefixes + count > PREFIXES {
            messages.push(with_peers(ifindex, std::mem::take(&mut peers)));
            prefixes = 0;
        }
        prefixes += count;
        peers.push(part.peer);
    }
    if !peers.is_empty() {
        messages.push(with_peers(ifindex, peers));
    }
    messages
}

/// The message that changes the address of a peer.
pub(super) fn set_endpoint(
    ifindex: u32,
    peer: &PublicKey,
    endpoint: SocketAddr,
) -> Vec<WireguardAttribute> {
    let peer = WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(*peer.bytes()),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
        WireguardPeerAttribute::Endpoint(endpoint),
    ]);
    with_peers(ifindex, vec![peer])
}

/// The peers in an answer of several parts. A peer with many prefixes goes on in the next part.
pub(super) fn peers(messages: Vec<WireguardMessage>) -> Vec<PeerState> {
    let mut states: Vec<PeerState> = Vec::new();
    let attributes = messages.into_iter().flat_map(|message| message.attributes);
    for attribute in attributes {
        match attribute {
            WireguardAttribute::Peers(peers) => {
                for peer in peers {
                    let Some(state) = state(peer) else { continue };
                    match states.last_mut() {
                        Some(last) if last.public_key == state.public_key => {
                            last.allowed_ips.extend(state.allowed_ips);
                        }
                        _ => states.push(state),
                    }
                }
            }
            WireguardAttribute::PrivateKey(mut key) => zeroize::Zeroize::zeroize(&mut key),
            _ => {}
        }
    }
    states
}

/// The key as the kernel keeps it. It compares before it clamps (`wg_set_device`), and another key
/// than the one it has ends every session.
fn clamp(mut key: [u8; KEY_BYTES]) -> [u8; KEY_BYTES] {
    key[0] &= 0b1111_1000;
    key[KEY_BYTES - 1] = key[KEY_BYTES - 1] & 0b0111_1111 | 0b0100_0000;
    key
}

struct Part {
    peer: WireguardPeer,
    prefixes: usize,
}

fn with_peers(ifindex: u32, peers: Vec<WireguardPeer>) -> Vec<WireguardAttribute> {
    vec![
        WireguardAttribute::IfIndex(ifindex),
        WireguardAttribute::Peers(peers),
    ]
}

fn remove(key: &PublicKey) -> Part {
    let flags = WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly;
    Part {
        peer: WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(*key.bytes()),
            WireguardPeerAttribute::Flags(flags),
        ]),
        prefixes: 0,
    }
}

/// One part with all that is to say, and more of them where the peer has many prefixes.
fn add(peer: &Peer<'_>, known: Option<&PeerState>) -> Vec<Part> {
    let config = peer.config;
    let key = WireguardPeerAttribute::PublicKey(*config.public_key.bytes());
    let preshared = config.preshared_key.as_ref();
    let mut first = vec![
        key.clone(),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
        // Zeros take a key away that was there before.
        WireguardPeerAttribute::PresharedKey(
            preshared.map_or([0; KEY_BYTES], |key| *key.secret_bytes()),
        ),
        WireguardPeerAttribute::PersistentKeepalive(
            config.persistent_keepalive.map_or(0, Into::into),
        ),
    ];
    let is_alive = |known: &PeerState| known.handshake_age.is_some_and(|age| age < SESSION_LIFE);
    if let Some(endpoint) = peer.endpoint
        && !known.is_some_and(is_alive)
    {
        first.push(WireguardPeerAttribute::Endpoint(endpoint));
    }

    let mut chunks = config.allowed_ips.chunks(PREFIXES);
    let mut parts = vec![part(first, chunks.next().unwrap_or_default())];
    parts.extend(chunks.map(|chunk| part(vec![key.clone()], chunk)));
    parts
}

fn part(mut attributes: Vec<WireguardPeerAttribute>, prefixes: &[IpNet]) -> Part {
    if !prefixes.is_empty() {
        let list = prefixes.iter().map(allowed_ip).collect();
        attributes.push(WireguardPeerAttribute::AllowedIps(list));
    }
    Part {
        peer: WireguardPeer(attributes),
        prefixes: prefixes.len(),
    }
}

fn allowed_ip(net: &IpNet) -> WireguardAllowedIp {
    let family = match net {
        IpNet::V4(_) => WireguardAddressFamily::Ipv4,
        IpNet::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(net.addr()),
        WireguardAllowedIpAttr::Cidr(net.prefix_len()),
    ])
}

fn state(peer: WireguardPeer) -> Option<PeerState> {
    let mut key = None;
    let mut state = PeerState {
        public_key: PublicKey::from_bytes([0; KEY_BYTES]),
        endpoint: None,
        allowed_ips: Vec::new(),
        handshake_age: None,
        rx_bytes: 0,
        tx_bytes: 0,
    };
    for attribute in peer.0 {
        match attribute {
            WireguardPeerAttribute::PublicKey(bytes) => key = Some(bytes),
            WireguardPeerAttribute::PresharedKey(mut key) => zeroize::Zeroize::zeroize(&mut key),
            WireguardPeerAttribute::Endpoint(endpoint) => state.endpoint = Some(endpoint),
            WireguardPeerAttribute::LastHandshake(time) => state.handshake_age = age(time),
            WireguardPeerAttribute::RxBytes(bytes) => state.rx_bytes = bytes,
            WireguardPeerAttribute::TxBytes(bytes) => state.tx_bytes = bytes,
            WireguardPeerAttribute::AllowedIps(list) => {
                state.allowed_ips.extend(list.iter().filter_map(net));
            }
            _ => {}
        }
    }
    state.public_key = PublicKey::from_bytes(key?);
    Some(state)
}

fn net(allowed: &WireguardAllowedIp) -> Option<IpNet> {
    let (mut address, mut length) = (None, None);
    for attribute in &allowed.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(ip) => address = Some(*ip),
            WireguardAllowedIpAttr::Cidr(bits) => length = Some(*bits),
            _ => {}
        }
    }
    IpNet::new(address?, length?).ok()
}

/// The kernel tells the wall clock's time of the handshake, or 1970 if there was none.
fn age(time: WireguardTimeSpec) -> Option<Duration> {
    let seconds = u64::try_from(time.seconds).ok()?;
    let nanos = u32::try_from(time.nano_seconds).ok()?;
    let since_epoch = Duration::new(seconds, nanos);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    (!since_epoch.is_zero()).then(|| now.saturating_sub(since_epoch))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use netlink_packet_core::{Emitable, ParseableParametrized};
    use netlink_packet_generic::GenlHeader;
    use netlink_packet_wireguard::WireguardCmd;

    use super::*;

    fn config(prefixes: &[usize]) -> Config {
        let mut text = format!("[Interface]\nPrivateKey = {}\n", key(99));
        for (peer, count) in prefixes.iter().enumerate() {
            write!(text, "[Peer]\nPublicKey = {}\n", key(peer)).unwrap();
            text.push_str("Endpoint = 192.0.2.1:51820\n");
            for prefix in 0..*count {
                let (high, low) = (prefix / 250, prefix % 250);
                writeln!(text, "AllowedIPs = 2001:db8:{peer}:{high}::{low}").unwrap();
            }
        }
        Config::parse(text).unwrap()
    }

    fn key(peer: usize) -> PublicKey {
        PublicKey::from_bytes([u8::try_from(peer + 1).unwrap(); KEY_BYTES])
    }

    fn plan(config: &Config, before: &[PeerState]) -> Vec<Vec<WireguardAttribute>> {
        let endpoint = Some("192.0.2.1:51820".parse().unwrap());
        let peer = |config| Peer { config, endpoint };
        let peers: Vec<_> = config.peers.iter().map(peer).collect();
        configure(7, config, 0, &peers, before)
    }

    fn known(peer: usize, handshake_age: Option<Duration>) -> PeerState {
        PeerState {
            public_key: key(peer),
            endpoint: None,
            allowed_ips: Vec::new(),
            handshake_age,
            rx_bytes: 0,
            tx_bytes: 0,
        }
    }

    fn peers_of(message: &[WireguardAttribute]) -> &[WireguardPeer] {
        let peers = message.iter().find_map(|attribute| match attribute {
            WireguardAttribute::Peers(peers) => Some(peers.as_slice()),
            _ => None,
        });
        peers.unwrap_or_default()
    }

    fn has_endpoint(peer: &WireguardPeer) -> bool {
        let is_it = |attribute: &_| matches!(attribute, WireguardPeerAttribute::Endpoint(_));
        peer.iter().any(is_it)
    }

    fn flags(peer: &WireguardPeer) -> WireguardPeerFlags {
        let flags = peer.iter().find_map(|attribute| match attribute {
            WireguardPeerAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
        flags.unwrap_or(WireguardPeerFlags::empty())
    }

    /// Through bytes and back, with what the kernel would add.
    fn read_back(messages: Vec<Vec<WireguardAttribute>>) -> Vec<PeerState> {
        let messages = messages.into_iter().map(|attributes| {
            let cmd = WireguardCmd::SetDevice;
            let message = WireguardMessage { cmd, attributes };
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            let header = GenlHeader { cmd: 0, version: 1 };
            WireguardMessage::parse_with_param(&bytes, header).unwrap()
        });
        peers(messages.collect())
    }

    #[test]
    fn every_prefix_of_every_peer_is_told() {
        let config = config(&[3, 0, 1234, 399, 1, 400, 2]);

        let told = read_back(plan(&config, &[]));

        assert_eq!(told.len(), config.peers.len());
        for (told, peer) in told.iter().zip(&config.peers) {
            assert_eq!(told.public_key, peer.public_key);
            assert_eq!(told.allowed_ips, peer.allowed_ips);
        }
    }

    #[test]
    fn no_attribute_is_longer_than_its_length_can_say() {
        for prefixes in [vec![5000, 1, 399, 400, 401], vec![2; 254], vec![0; 254]] {
            for attributes in plan(&config(&prefixes), &[]) {
                let cmd = WireguardCmd::SetDevice;
                let message = WireguardMessage { cmd, attributes };
                assert!(message.buffer_len() < 40_000);
            }
        }
    }

    #[test]
    fn only_the_first_part_of_a_peer_replaces_its_prefixes() {
        let messages = plan(&config(&[1000]), &[]);

        let parts = messages.iter().flat_map(|message| peers_of(message));
        let replaces = |peer| flags(peer).contains(WireguardPeerFlags::ReplaceAllowedIps);
        let replaces: Vec<_> = parts.map(replaces).collect();
        assert_eq!(replaces, [true, false, false]);
    }

    #[test]
    fn take_over_removes_strangers_and_keeps_living_endpoints() {
        let config = config(&[1, 1, 1]);
        let before = [
            known(0, Some(Duration::from_secs(3))),
            known(1, Some(Duration::from_secs(500))),
            known(7, None),
        ];

        let messages = plan(&config, &before);

        let parts: Vec<_> = messages.iter().flat_map(|m| peers_of(m)).collect();
        let remove = WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly;
        assert_eq!(flags(parts[0]), remove);
        assert_eq!(
            parts[0].0[0],
            WireguardPeerAttribute::PublicKey(*key(7).bytes())
        );
        let endpoints: Vec<_> = parts[1..].iter().map(|peer| has_endpoint(peer)).collect();
        assert_eq!(endpoints, [false, true, true]);
        // Never the flag that drops all peers and their sessions.
        let device = messages.iter().flatten();
        assert_eq!(
            device
                .filter(|attribute| matches!(attribute, WireguardAttribute::Flags(_)))
                .count(),
            0
        );
    }

    #[test]
    fn handshake_in_1970_is_none() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seconds = i64::try_from(now.as_secs()).unwrap() - 40;
        let at = |seconds| WireguardTimeSpec {
            seconds,
            nano_seconds: 0,
        };

        assert_eq!(age(at(0)), None);
        assert_eq!(age(at(seconds)).map(|age| age.as_secs() / 10), Some(4));
        // The clock was turned back.
        assert_eq!(age(at(seconds + 1000)), Some(Duration::ZERO));
    }
}
