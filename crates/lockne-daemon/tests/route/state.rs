//! What is desired is what is there, and nothing else is touched.

use std::{collections::BTreeMap, collections::BTreeSet, fs};

use lockne_core::{
    plan::{Desired, Family, Rule, Step, Sysctl, Target, diff},
    policy::{Action, Terms},
};
use lockne_daemon::route::{Removed, sysctl};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::{
    netns::{FIELD, Router, ip, policy, tunnel, uplink, via},
    shown::{everything_shown, shown_routes, shown_rules},
};

fn everything() -> Router {
    uplink();
    tunnel("work");
    tunnel("home");
    Router::new([
        via(1, "work", &["192.0.2.0/24", "2001:db8::/64"]),
        via(2, "home", &[]),
        via(3, "gone", &[]),
        policy(4, Terms::new(Action::Block)),
        policy(255, Terms::new(Action::Direct)),
    ])
}

pub(crate) async fn applied_plan_is_what_ip_shows() {
    let mut router = everything();
    let desired = router.desired(&router.observe().await);

    router.reconcile().await;

    assert_eq!(shown_rules(), texts(&desired.rules, Rule::family));
    let families = desired.routes.iter().map(|it| (it, it.family()));
    let expected: BTreeSet<_> = families
        .map(|(it, family)| format!("{family} {it}"))
        .collect();
    assert_eq!(shown_routes(), expected);
}

pub(crate) async fn steps_in_words_are_what_ip_takes() {
    let router = everything();
    let steps = router.steps().await;

    for step in steps.iter().map(ToString::to_string) {
        if let Some(arguments) = step.strip_prefix("ip ") {
            ip(arguments);
        }
    }

    let left = router.steps().await;
    assert!(
        left.iter().all(|it| matches!(it, Step::SetSysctl(..))),
        "{left:?}"
    );
}

pub(crate) async fn satisfied_plan_needs_no_second_apply() {
    let mut router = everything();

    router.reconcile().await;

    assert_eq!(router.steps().await, []);
    assert_eq!(router.observe().await.policies(FIELD).len(), 5);
}

pub(crate) async fn steps_can_be_applied_twice() {
    let mut router = everything();
    let steps = router.steps().await;
    router.netlink.apply(&steps).await.unwrap();

    router.netlink.apply(&steps).await.unwrap();

    assert_eq!(router.steps().await, []);
    let back = diff(&Desired::default(), &router.observe().await);
    router.netlink.apply(&back).await.unwrap();
    router.netlink.apply(&back).await.unwrap();
    assert_eq!(router.text().await, Vec::<String>::new());
}

pub(crate) async fn what_others_made_is_left_alone() {
    let mut router = everything();
    for family in Family::ALL {
        // The first differs from one of ours by its protocol alone.
        ip(&format!(
            "{family} rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol static"
        ));
        ip(&format!(
            "{family} rule add pref 100 fwmark 0xca6c lookup 51820"
        ));
        ip(&format!("{family} route add default dev work table 51820"));
        ip(&format!(
            "{family} route add unreachable default metric 9 table 108003"
        ));
    }
    let before = everything_shown();

    router.reconcile().await;
    assert_ne!(everything_shown(), before);
    router.netlink.remove_all(FIELD).await.unwrap();

    assert_eq!(everything_shown(), before);
}

pub(crate) async fn route_of_others_in_our_table_gives_way() {
    let mut router = everything();
    for family in Family::ALL {
        ip(&format!(
            "{family} route add default dev eth0 metric 1024 table 108001"
        ));
        ip(&format!(
            "{family} route add unreachable default metric 4294967295 table 108001"
        ));
    }

    router.reconcile().await;

    assert_eq!(router.steps().await, []);
    assert!(!ip("-4 route show table 108001").contains("eth0"));
    assert!(!ip("-6 route show table 108001").contains("eth0"));
}

pub(crate) async fn remove_all_leaves_nothing() {
    let mut router = everything();
    let before = everything_shown();
    router.reconcile().await;
    let ours = router.observe().await;
    // A rule that no version of ours would make, but which says it is ours.
    ip("rule add pref 7 fwmark 0x9000000/0xff000000 from 192.0.2.9 lookup main protocol 108");

    let removed = router.netlink.remove_all(FIELD).await.unwrap();

    let expected = Removed {
        rules: u32::try_from(ours.rules.len()).unwrap() + 1,
        routes: u32::try_from(ours.routes.len()).unwrap(),
    };
    assert_eq!(removed, expected);
    assert_eq!(everything_shown(), before);
    let again = router.netlink.remove_all(FIELD).await.unwrap();
    assert_eq!(again, Removed::default());
}

pub(crate) async fn marks_of_others_are_named() {
    let mut router = everything();
    router.reconcile().await;
    ip("rule add pref 32000 fwmark 0xca6c lookup 51820");
    assert_eq!(router.netlink.foreign_marks(FIELD).await.unwrap(), [""; 0]);

    ip("-6 rule add pref 900 fwmark 0x6d6f6c65 lookup 77");
    ip("rule add pref 901 fwmark 0x100/0xff00 unreachable protocol 108");

    let expected = [
        "-4 pref 901 fwmark 0x100/0xff00 unreachable",
        "-6 pref 900 fwmark 0x6d6f6c65/0xffffffff lookup 77",
    ];
    assert_eq!(router.netlink.foreign_marks(FIELD).await.unwrap(), expected);
}

pub(crate) async fn sysctls_get_their_values_back() {
    uplink();
    tunnel("work.1");
    fs::write("/proc/sys/net/ipv6/fwmark_reflect", "1").unwrap();
    let mut router = Router::new([via(1, "work.1", &[])]);

    router.reconcile().await;

    assert_eq!(sysctls(), [Some(1), Some(1), Some(1)]);
    let changed: Vec<_> = router.netlink.originals().values().copied().collect();
    assert_eq!(
        changed,
        [0, 0],
        "what already had its value is not ours to restore"
    );
    router.netlink.restore_sysctls().unwrap();
    assert_eq!(sysctls(), [Some(0), Some(0), Some(1)]);
}

pub(crate) async fn sysctls_that_are_no_longer_needed_get_their_values_back() {
    uplink();
    tunnel("work.1");
    let mut router = Router::new([via(1, "work.1", &[])]);
    router.reconcile().await;
    let originals = router.netlink.originals().clone();
    // Another process goes on with what this one wrote down.
    let text = serde_json::to_string(&originals).unwrap();
    let originals: BTreeMap<Sysctl, i32> = serde_json::from_str(&text).unwrap();
    let mut router = Router::new([]);
    router.netlink.adopt_originals(originals);

    router.reconcile().await;

    assert_eq!(sysctls(), [Some(0), Some(0), Some(0)]);
    assert!(router.netlink.originals().is_empty());
    assert_eq!(router.steps().await, []);
}

pub(crate) async fn step_that_fails_is_named_and_stops_no_other() {
    let mut router = everything();
    let mut steps = router.steps().await;
    let Some(Step::AddRoute(route)) = steps
        .iter_mut()
        .find(|it| it.to_string().contains("dev work"))
    else {
        panic!("no route into the tunnel");
    };
    let Target::Device { gateway, .. } = &mut route.target else {
        panic!("{route} has no device");
    };
    // Nobody can be behind this machine's own address.
    *gateway = Some("10.9.0.2".parse().unwrap());

    let error = router.netlink.apply(&steps).await.unwrap_err();

    assert_eq!(
        error.to_string(),
        "cannot do what `ip -4 route add default via 10.9.0.2 dev work onlink table 108001 metric \
         1024 protocol 108` does"
    );
    assert!(error.hint().unwrap().contains("gateway"));
    let left: Vec<_> = router
        .steps()
        .await
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        left,
        ["ip -4 route add default dev work table 108001 metric 1024 protocol 108"]
    );
}

pub(crate) async fn interface_that_goes_in_between_stops_nothing() {
    let mut router = everything();
    let steps = router.steps().await;

    ip("link del work");
    ip("link set home down");
    router.netlink.apply(&steps).await.unwrap();

    assert_eq!(router.steps().await, []);
}

pub(crate) async fn ipv6_is_refused_also_where_it_is_off() {
    ip("link set lo up");
    for name in ["all", "default", "lo"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1").unwrap();
    }
    ip("link add work type veth peer name far");
    ip("link set work up");
    ip("address add 10.9.0.2/32 dev work");
    let mut router = Router::new([via(1, "work", &[])]);

    router.reconcile().await;

    assert_eq!(router.steps().await, []);
    let text = router.text().await;
    let v6 = text.iter().filter(|it| it.starts_with("-6"));
    assert_eq!(v6.count(), 3, "two rules and a route: {text:?}");
}

pub(crate) async fn unprivileged_user_is_told_which_capability() {
    let mut router = everything();
    let steps = router.steps().await;
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::NET_ADMIN);
    set_capabilities(None, sets).unwrap();

    let error = router.netlink.apply(&steps).await.unwrap_err();

    assert_eq!(
        error.to_string(),
        "cannot do what `ip -4 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable \
         protocol 108` does"
    );
    assert!(error.hint().unwrap().contains("CAP_NET_ADMIN"));
}

fn sysctls() -> [Option<i32>; 3] {
    [
        Sysctl::SrcValidMark("work.1".parse().unwrap()),
        Sysctl::FwmarkReflect(Family::V4),
        Sysctl::FwmarkReflect(Family::V6),
    ]
    .map(|it| sysctl::read(&it).unwrap())
}

fn texts(rules: &BTreeSet<Rule>, family: impl Fn(&Rule) -> Family) -> BTreeSet<String> {
    let rules = rules.iter();
    rules.map(|it| format!("{} {it}", family(it))).collect()
}
