//! Tunnels with the kernel's WireGuard, where there is one.

use std::{sync::Arc, time::Duration};

use lockne_core::{
    api::TunnelKind,
    wgquick::{Config, HookPolicy},
};
use lockne_daemon::wireguard::{Backend, Wireguard};
use rustix::process::geteuid;

use crate::{
    Needs, Test,
    carry::{confs, tcp_bulk},
    conf::{down, peer, public, up},
    side::Side,
};

pub(crate) const TESTS: &[Test] = &[
    (
        "kernel_tunnel_talks_to_the_embedded_one",
        kernel_tunnel_talks_to_the_embedded_one,
        Needs::KernelWireguard,
    ),
    (
        "kernel_tunnel_is_taken_over_without_a_gap",
        kernel_tunnel_is_taken_over_without_a_gap,
        Needs::KernelWireguard,
    ),
    (
        "port_in_use_is_said_by_the_kernel_too",
        port_in_use_is_said_by_the_kernel_too,
        Needs::KernelWireguard,
    ),
    (
        "deleted_kernel_tunnel_is_noticed",
        deleted_kernel_tunnel_is_noticed,
        Needs::KernelWireguard,
    ),
];

/// Whether the kernel has WireGuard.
pub(crate) fn is_there() -> bool {
    geteuid().is_root() && {
        let output = Side::new().output("ip", "link add probe type wireguard");
        output.status.success()
    }
}

fn up_kernel(side: &Side, conf: &str) -> Arc<Wireguard> {
    let config = Config::parse(conf).unwrap();
    let tunnel = side.run(async move {
        let name = "wgk".parse().unwrap();
        Wireguard::up(&name, &config, Backend::Kernel, HookPolicy::Refuse).await
    });
    let tunnel = Arc::new(tunnel.unwrap());
    assert_eq!(tunnel.kind(), TunnelKind::WireguardKernel);
    side.ip("route replace 10.9.0.0/24 dev wgk");
    side.ip("route replace fd00:9::/64 dev wgk");
    tunnel
}

fn kernel_tunnel_talks_to_the_embedded_one() {
    let (a, b) = Side::pair();
    let (here, there) = confs();
    let here = up_kernel(&a, &here);
    let there = up(&b, "wg0", &there);

    for address in ["10.9.0.2", "fd00:9::2"] {
        assert!(a.pings(address), "{address}");
        tcp_bulk(&a, &b, address.parse().unwrap(), 1 << 20);
    }

    let status = peer(&a, &here);
    assert_eq!(status.public_key, public(2));
    assert_eq!(status.endpoint, Some("192.0.2.2:50009".parse().unwrap()));
    assert!(status.handshake_age_seconds.is_some_and(|age| age < 60));
    assert!(status.tx_bytes > 2 << 20);
    assert_eq!(status.allowed_ips.len(), 2);
    down(&a, here);
    assert!(!a.has_link("wgk"));
    down(&b, there);
}

fn kernel_tunnel_is_taken_over_without_a_gap() {
    let (a, b) = Side::pair();
    let (text, there) = confs();
    let there = up(&b, "wg0", &there);
    let third = format!("[Peer]\nPublicKey={}\nAllowedIPs=10.9.0.3/32\n", public(3));
    let first = up_kernel(&a, &format!("{text}{third}"));
    assert!(a.pings("10.9.0.2"));
    let (index, before) = (first.ifindex(), peer(&b, &there).rx_bytes);
    a.run(async move { drop(first) });

    let second = up_kernel(&a, &text);

    // One peer less, the other with its session: the bytes count on.
    assert_eq!(second.ifindex(), index);
    let status = peer(&a, &second);
    assert!(status.rx_bytes > 0 && status.handshake_age_seconds.is_some());
    assert!(a.pings("10.9.0.2"));
    // A ping and nothing else: a handshake would be 148 bytes more.
    let after = peer(&b, &there).rx_bytes;
    assert!(
        after - before < 200,
        "there was a new handshake: {before} {after}"
    );
    down(&a, second);
    down(&b, there);
}

fn port_in_use_is_said_by_the_kernel_too() {
    let side = Side::new();
    let text = crate::conf::conf(9, 1, 2, "");
    let embedded = up(&side, "wg0", &text);

    let config = Config::parse(&text).unwrap();
    let error = side.run(async move {
        let name = "wgk".parse().unwrap();
        Wireguard::up(&name, &config, Backend::Kernel, HookPolicy::Refuse).await
    });

    let error = error.err().unwrap();
    assert_eq!(error.to_string(), "UDP port 50009 is in use");
    assert!(!side.has_link("wgk"));
    down(&side, embedded);
}

fn deleted_kernel_tunnel_is_noticed() {
    let side = Side::new();
    let tunnel = up_kernel(&side, &crate::conf::conf(9, 1, 2, ""));
    let died = tunnel.died();

    side.ip("link delete dev wgk");

    let wait = async { tokio::time::timeout(Duration::from_secs(20), died).await };
    assert!(side.run(wait).is_ok());
    down(&side, tunnel);
}
