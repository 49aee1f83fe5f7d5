//! What others change is told and put right.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use lockne_daemon::route::{Change, Netlink};
use tokio::time::timeout;

use crate::netns::{Router, ip, tunnel, uplink, via};

pub(crate) async fn watch_tells_what_changed() {
    uplink();
    let mut news = Netlink::watch().unwrap();

    ip("link add work type veth peer name far");
    until(&mut news, Change::Link).await;
    for address in ["10.9.0.2/32", "fd00:9::2/128"] {
        drain(&mut news).await;
        ip(&format!("address add {address} dev work"));
        until(&mut news, Change::Address).await;
    }
    for family in ["-4", "-6"] {
        drain(&mut news).await;
        ip(&format!("{family} route add unreachable default table 77"));
        assert_eq!(drain(&mut news).await, BTreeSet::from([Change::Route]));
        ip(&format!("{family} rule add pref 77 lookup 77"));
        assert_eq!(drain(&mut news).await, BTreeSet::from([Change::Rule]));
    }
}

pub(crate) async fn watch_that_was_not_read_tells_of_an_overflow() {
    uplink();
    let mut news = Netlink::watch().unwrap();

    let route = |table| format!("route add unreachable default table {table}");
    let batch: Vec<_> = (1000..5000).map(route).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), batch.join("\n")).unwrap();
    ip(&format!("-batch {}", file.path().display()));

    assert_eq!(drain(&mut news).await, BTreeSet::from([Change::Overflow]));
    ip("rule add pref 77 lookup 77");
    assert_eq!(drain(&mut news).await, BTreeSet::from([Change::Rule]));
}

pub(crate) async fn route_comes_back_with_its_interface() {
    uplink();
    tunnel("work");
    let mut router = Router::new([via(1, "work", &[])]);
    router.reconcile().await;
    let before = router.text().await;
    let mut news = Netlink::watch().unwrap();

    ip("link set work down");
    until(&mut news, Change::Link).await;
    let down = router.text().await;
    assert!(!down.iter().any(|it| it.contains("dev work")), "{down:?}");
    router.reconcile().await;
    assert_eq!(
        router.text().await,
        down,
        "nothing is to be done while it is down"
    );

    ip("link set work up");
    // Going down took its IPv6 address.
    ip("address replace fd00:9::2/128 dev work nodad");
    until(&mut news, Change::Link).await;
    router.reconcile().await;

    assert_eq!(router.text().await, before);
}

pub(crate) async fn recreated_interface_gets_the_route() {
    uplink();
    tunnel("work");
    let mut router = Router::new([via(1, "work", &[])]);
    router.reconcile().await;
    let before = router.observe().await;
    let mut news = Netlink::watch().unwrap();

    ip("link del work");
    until(&mut news, Change::Link).await;
    tunnel("work");
    router.reconcile().await;

    let after = router.observe().await;
    assert_ne!(after.routes, before.routes, "the index is another one");
    assert_eq!(after.routes, router.desired(&after).routes);
    assert_eq!(router.steps().await, []);
}

pub(crate) async fn flushed_rules_are_put_back() {
    uplink();
    tunnel("work");
    let mut router = Router::new([via(1, "work", &["192.0.2.0/24"])]);
    router.reconcile().await;
    let before = router.text().await;
    let mut news = Netlink::watch().unwrap();

    ip("-4 rule flush");
    ip("-6 rule flush");
    ip("route flush table 108001");
    until(&mut news, Change::Rule).await;
    assert!(router.text().await.len() < before.len());
    router.reconcile().await;

    assert_eq!(router.text().await, before);
}

pub(crate) async fn gateway_of_others_is_followed() {
    uplink();
    tunnel("lte0");
    ip("address add 198.51.100.7/24 dev lte0");
    let mut router = Router::new([via(1, "lte0", &[])]);
    ip("route add default via 198.51.100.9 dev lte0 metric 700");
    ip("route add default via 198.51.100.1 dev lte0 table 40 metric 600");
    ip("-6 route add default via fe80::1 dev lte0 table 40");

    router.reconcile().await;

    let text = router.text().await.join("\n");
    assert!(
        text.contains("-4 route default via 198.51.100.1 dev lte0 onlink"),
        "{text}"
    );
    assert!(
        text.contains("-6 route default via fe80::1 dev lte0 onlink"),
        "{text}"
    );
    assert_eq!(
        router.steps().await,
        [],
        "our own route is not taken for theirs"
    );
    ip("route flush table 40");
    ip("-6 route flush table 40");
    router.reconcile().await;
    let text = router.text().await.join("\n");
    assert!(
        text.contains("-4 route default via 198.51.100.9 dev lte0 onlink"),
        "{text}"
    );
    assert!(text.contains("-6 route default dev lte0 table"), "{text}");
    assert_eq!(router.steps().await, []);
}

async fn until(news: &mut (impl Stream<Item = Change> + Unpin), change: Change) {
    let told = async { while news.next().await != Some(change) {} };
    let told = timeout(Duration::from_secs(10), told).await;
    assert!(told.is_ok(), "nobody told of {change:?}");
}

/// What has been told by now: the kernel tells before the command ends that made the change.
async fn drain(news: &mut (impl Stream<Item = Change> + Unpin)) -> BTreeSet<Change> {
    // The runtime looks at its sockets before it goes on with a task that yielded.
    tokio::task::yield_now().await;
    let mut told = BTreeSet::new();
    while let Some(change) = news.next().now_or_never() {
        told.insert(change.expect("the stream does not end"));
    }
    told
}
