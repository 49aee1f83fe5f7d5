//! What lockne does to interfaces of its own.

use std::fs;

use lockne_core::plan::LinkState;
use lockne_daemon::route::{Error, Netlink};

use crate::netns::{ip, uplink};

pub(crate) async fn changes_can_be_made_twice() {
    uplink();
    ip("link add work type veth peer name far");
    let netlink = Netlink::open().unwrap();
    let name = "work".parse().unwrap();
    let addresses = ["10.9.0.2/24", "fd00:9::2/64"].map(|it| it.parse().unwrap());

    for _ in 0..2 {
        for address in addresses {
            netlink.set_address(&name, address).await.unwrap();
        }
        netlink.set_mtu(&name, 1420).await.unwrap();
        netlink.set_up(&name).await.unwrap();
    }

    let link = netlink.link(&name).await.unwrap().unwrap();
    assert_eq!((link.state, link.mtu), (LinkState::Up, 1420));
    assert!(
        addresses.iter().all(|it| link.addresses.contains(it)),
        "{link:?}"
    );
    let shown = ip("-6 address show dev work scope global");
    assert!(
        shown.contains("fd00:9::2/64") && !shown.contains("tentative"),
        "{shown}"
    );
    for _ in 0..2 {
        netlink.delete_link(&name).await.unwrap();
        assert_eq!(netlink.link(&name).await.unwrap(), None);
    }
}

pub(crate) async fn name_with_a_dot_is_no_path() {
    uplink();
    ip("link add eth0.7 type veth peer name far");
    let netlink = Netlink::open().unwrap();
    let name = "eth0.7".parse().unwrap();

    netlink.set_mtu(&name, 1300).await.unwrap();

    let other = netlink.link(&"eth0".parse().unwrap()).await.unwrap();
    assert_eq!(netlink.link(&name).await.unwrap().unwrap().mtu, 1300);
    assert_eq!(other.unwrap().mtu, 1500);
}

pub(crate) async fn missing_interface_is_named() {
    let netlink = Netlink::open().unwrap();

    let error = netlink.set_up(&"work".parse().unwrap()).await.unwrap_err();

    assert!(matches!(error, Error::NoInterface(_)));
    assert_eq!(error.to_string(), "there is no interface `work`");
}

pub(crate) async fn address_is_refused_with_a_hint_where_ipv6_is_off() {
    uplink();
    fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1").unwrap();
    let netlink = Netlink::open().unwrap();
    let name = "eth0".parse().unwrap();

    let error = netlink
        .set_address(&name, "fd00:9::2/64".parse().unwrap())
        .await;

    let error = error.unwrap_err();
    assert!(error.is_ipv6_off(), "{error:?}");
    assert!(error.hint().unwrap().contains("disable_ipv6"));
    netlink
        .set_address(&name, "10.9.0.2/24".parse().unwrap())
        .await
        .unwrap();
}
