//! What a tunnel shows, and what it must not.

use std::{
    fmt::Write as _,
    io,
    sync::{Arc, Mutex},
};

use gotatun::x25519;
use lockne_core::wgquick::PublicKey;
use tracing_subscriber::fmt::MakeWriter;

use crate::{
    Needs, Test,
    carry::confs,
    conf::{conf, down, peer, public, secret, up},
    side::{Side, eventually},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "status_shows_handshake_endpoint_and_bytes",
        status_shows_handshake_endpoint_and_bytes,
        Needs::Nothing,
    ),
    (
        "peers_are_shown_in_the_order_of_the_file",
        peers_are_shown_in_the_order_of_the_file,
        Needs::Nothing,
    ),
    (
        "endpoint_may_be_a_host_name",
        endpoint_may_be_a_host_name,
        Needs::Nothing,
    ),
    (
        "own_packets_carry_the_mark",
        own_packets_carry_the_mark,
        Needs::Program("ss"),
    ),
    (
        "device_has_its_addresses_and_nothing_else",
        device_has_its_addresses_and_nothing_else,
        Needs::Nothing,
    ),
    ("no_key_is_logged", no_key_is_logged, Needs::Nothing),
];

fn status_shows_handshake_endpoint_and_bytes() {
    let (a, b) = Side::pair();
    let (here, there) = confs();
    let here = up(&a, "wg0", &here);
    let before = peer(&a, &here);
    assert_eq!(before.handshake_age_seconds, None);
    assert_eq!((before.rx_bytes, before.tx_bytes), (0, 0));
    let there = up(&b, "wg0", &there);

    assert!(a.pings("10.9.0.2"));

    let after = peer(&a, &here);
    assert_eq!(after.public_key, public(2));
    assert_eq!(after.endpoint, Some("192.0.2.2:50009".parse().unwrap()));
    assert_eq!(
        after.allowed_ips,
        ["10.9.0.2/32", "fd00:9::2/128"].map(|net| net.parse().unwrap())
    );
    assert!(after.handshake_age_seconds.is_some_and(|age| age < 5));
    assert!(after.rx_bytes > 100 && after.tx_bytes > 100);
    down(&a, here);
    down(&b, there);
}

fn peers_are_shown_in_the_order_of_the_file() {
    let side = Side::new();
    let mut text = conf(9, 1, 2, "");
    for end in 3..20 {
        let key = public(end);
        write!(text, "[Peer]\nPublicKey={key}\nAllowedIPs=10.9.1.{end}\n").unwrap();
    }

    let tunnel = up(&side, "wg0", &text);

    let status = tunnel.clone();
    let peers = side.run(async move { status.status().await }).unwrap();
    let keys: Vec<_> = peers.into_iter().map(|peer| peer.public_key).collect();
    assert_eq!(keys, (2..20).map(public).collect::<Vec<_>>());
    down(&side, tunnel);
}

fn endpoint_may_be_a_host_name() {
    let side = Side::new();
    let more = "Endpoint = localhost:50010\nPersistentKeepalive = 1";
    let here = up(&side, "wg9", &conf(9, 1, 2, more));
    let there = conf(10, 2, 1, "");

    let there = up(&side, "wg10", &there);

    eventually("there is a handshake", || {
        peer(&side, &here).handshake_age_seconds.is_some()
    });
    assert!(peer(&side, &here).endpoint.unwrap().ip().is_loopback());
    down(&side, here);
    down(&side, there);
}

fn own_packets_carry_the_mark() {
    let side = Side::new();
    let text = conf(9, 1, 2, "").replace("[Peer]", "FwMark = 0xca6c\n[Peer]");

    let tunnel = up(&side, "wg0", &text);

    let sockets = side.must("ss", "-H -u -a -n -e sport = 50009");
    assert!(sockets.contains("fwmark:0xca6c"), "{sockets}");
    down(&side, tunnel);
}

fn device_has_its_addresses_and_nothing_else() {
    let side = Side::new();
    let text = conf(9, 1, 2, "").replace("[Peer]", "MTU = 1333\n[Peer]");
    let config = lockne_core::wgquick::Config::parse(&text).unwrap();

    // Without the routes that other tests add.
    let tunnel = crate::conf::try_up(&side, "wg0", &text).unwrap();

    let addresses = side.ip("-o address show dev wg0");
    assert_eq!(
        addresses.lines().count(),
        config.addresses.len(),
        "{addresses}"
    );
    for net in config.addresses {
        assert!(addresses.contains(&format!(" {net} ")), "{addresses}");
    }
    assert!(side.ip("link show dev wg0").contains("mtu 1333"));
    assert_eq!(side.ip("route show"), "");
    assert!(!side.ip("-6 route show").contains("wg0"));
    side.run(tunnel.down()).unwrap();
}

fn hex(byte: u8) -> impl Iterator<Item = char> {
    let digits = [u32::from(byte >> 4), u32::from(byte & 15)];
    let digit = |digit| char::from_digit(digit, 16).unwrap();
    digits.into_iter().map(digit)
}

/// Everything that was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn no_key_is_logged() {
    let (a, b) = Side::pair();
    let log = Log::default();
    let writer = log.clone();
    a.run(async move {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(writer)
            .finish();
        // For as long as the thread lives.
        std::mem::forget(tracing::subscriber::set_default(subscriber));
    });
    let preshared = PublicKey::from_bytes([0x77; 32]).to_string();
    let (here, there) = confs();
    let here = format!("{here}PresharedKey = {preshared}\n");
    let there = format!("{there}PresharedKey = {preshared}\n");
    let hook = format!("PostUp = echo the key is {}\n[Peer]", secret(1));
    let here = up(&a, "wg0", &here.replace("[Peer]", &hook));
    let there = up(&b, "wg0", &there);
    assert!(a.pings("10.9.0.2"));
    let failing = conf(9, 1, 2, "");
    assert!(crate::conf::try_up(&a, "wg1", &failing).is_err());
    down(&a, here);
    down(&b, there);

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();

    assert!(log.contains("the key is (hidden)"), "{log}");
    assert!(log.contains("gotatun"), "gotatun logs, too");
    let shared = x25519::StaticSecret::from([1; 32]);
    let shared = shared.diffie_hellman(&x25519::PublicKey::from(&x25519::StaticSecret::from(
        [2; 32],
    )));
    for key in [[1; 32], [0x77; 32], shared.to_bytes()] {
        let base64 = PublicKey::from_bytes(key).to_string();
        let hex: String = key.into_iter().flat_map(hex).collect();
        let list = format!("{key:?}");
        for form in [&base64, &hex, &list[1..list.len() - 1]] {
            assert!(!log.contains(form), "a key is in the log");
        }
    }
}
