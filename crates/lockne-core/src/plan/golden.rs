//! The whole text of plans, for policies and tunnels as people have them.

use std::fmt::Write as _;

use insta::assert_snapshot;

use super::*;
use crate::policy::Terms;

#[test]
fn one_tunnel_with_both_families() {
    let wg = wireguard(3, &["10.9.0.2/32", "fd00:9::2/128"], &["0.0.0.0/0", "::/0"]);

    assert_snapshot!(text(&[via(1, "work")], &[("work", wg)]), @"
    ip -4 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -4 route add unreachable default table 108001 metric 4294967295 protocol 108
    ip -6 route add unreachable default table 108001 metric 4294967295 protocol 108
    sysctl -w net.ipv4.conf.work.src_valid_mark=1
    sysctl -w net.ipv4.fwmark_reflect=1
    sysctl -w net.ipv6.fwmark_reflect=1
    ip -4 route add default dev work table 108001 metric 1024 protocol 108
    ip -6 route add default dev work table 108001 metric 1024 protocol 108
    ip -4 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -6 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    stamp if3 policy 1
    guard policy 1 if3
    ");
}

#[test]
fn tunnel_without_an_ipv6_address_takes_no_ipv6() {
    let wg = wireguard(3, &["10.9.0.2/32", "fe80::1/64"], &["0.0.0.0/0", "::/0"]);

    assert_snapshot!(text(&[via(1, "work")], &[("work", wg)]), @"
    ip -4 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -4 route add unreachable default table 108001 metric 4294967295 protocol 108
    ip -6 route add unreachable default table 108001 metric 4294967295 protocol 108
    sysctl -w net.ipv4.conf.work.src_valid_mark=1
    sysctl -w net.ipv4.fwmark_reflect=1
    sysctl -w net.ipv6.fwmark_reflect=1
    ip -4 route add default dev work table 108001 metric 1024 protocol 108
    ip -4 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -6 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    stamp if3 policy 1
    guard policy 1 if3
    ");
}

#[test]
fn tunnel_to_one_network_refuses_the_rest() {
    let wg = wireguard(3, &["10.9.0.2/32"], &["10.0.0.0/8"]);

    assert_snapshot!(text(&[via(1, "work")], &[("work", wg)]), @"
    ip -4 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -4 route add unreachable default table 108001 metric 4294967295 protocol 108
    ip -6 route add unreachable default table 108001 metric 4294967295 protocol 108
    sysctl -w net.ipv4.conf.work.src_valid_mark=1
    sysctl -w net.ipv4.fwmark_reflect=1
    sysctl -w net.ipv6.fwmark_reflect=1
    ip -4 route add 10.0.0.0/8 dev work table 108001 metric 1024 protocol 108
    ip -4 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -6 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    stamp if3 policy 1
    guard policy 1 if3
    ");
}

#[test]
fn two_tunnels_have_a_table_each() {
    let work = wireguard(3, &["10.9.0.2/32"], &["0.0.0.0/0"]);
    let home = wireguard(4, &["10.8.0.2/32"], &["0.0.0.0/0"]);
    let policies = [via(1, "work"), via(2, "home")];

    assert_snapshot!(text(&policies, &[("work", work), ("home", home)]), @"
    ip -4 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -4 rule add pref 102 fwmark 0x2000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule add pref 102 fwmark 0x2000000/0xff000000 iif lo unreachable protocol 108
    ip -4 route add unreachable default table 108001 metric 4294967295 protocol 108
    ip -6 route add unreachable default table 108001 metric 4294967295 protocol 108
    ip -4 route add unreachable default table 108002 metric 4294967295 protocol 108
    ip -6 route add unreachable default table 108002 metric 4294967295 protocol 108
    sysctl -w net.ipv4.conf.home.src_valid_mark=1
    sysctl -w net.ipv4.conf.work.src_valid_mark=1
    sysctl -w net.ipv4.fwmark_reflect=1
    sysctl -w net.ipv6.fwmark_reflect=1
    ip -4 route add default dev work table 108001 metric 1024 protocol 108
    ip -4 route add default dev home table 108002 metric 1024 protocol 108
    ip -4 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -6 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -4 rule add pref 101 fwmark 0x2000000/0xff000000 iif lo lookup 108002 protocol 108
    ip -6 rule add pref 101 fwmark 0x2000000/0xff000000 iif lo lookup 108002 protocol 108
    stamp if3 policy 1
    stamp if4 policy 2
    guard policy 1 if3
    guard policy 2 if4
    ");
}

#[test]
fn two_policies_share_a_tunnel() {
    let wg = wireguard(3, &["10.9.0.2/32"], &["0.0.0.0/0"]);
    let policies = [via(7, "work"), with_lan(via(2, "work"), &["192.0.2.0/24"])];

    assert_snapshot!(text(&policies, &[("work", wg)]), @"
    ip -4 rule add pref 102 fwmark 0x2000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule add pref 102 fwmark 0x2000000/0xff000000 iif lo unreachable protocol 108
    ip -4 rule add pref 102 fwmark 0x7000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule add pref 102 fwmark 0x7000000/0xff000000 iif lo unreachable protocol 108
    ip -4 route add unreachable default table 108002 metric 4294967295 protocol 108
    ip -6 route add unreachable default table 108002 metric 4294967295 protocol 108
    ip -4 route add unreachable default table 108007 metric 4294967295 protocol 108
    ip -6 route add unreachable default table 108007 metric 4294967295 protocol 108
    sysctl -w net.ipv4.conf.work.src_valid_mark=1
    sysctl -w net.ipv4.fwmark_reflect=1
    sysctl -w net.ipv6.fwmark_reflect=1
    ip -4 route add default dev work table 108002 metric 1024 protocol 108
    ip -4 route add default dev work table 108007 metric 1024 protocol 108
    ip -4 rule add pref 101 fwmark 0x2000000/0xff000000 iif lo lookup 108002 protocol 108
    ip -6 rule add pref 101 fwmark 0x2000000/0xff000000 iif lo lookup 108002 protocol 108
    ip -4 rule add pref 101 fwmark 0x7000000/0xff000000 iif lo lookup 108007 protocol 108
    ip -6 rule add pref 101 fwmark 0x7000000/0xff000000 iif lo lookup 108007 protocol 108
    ip -4 rule add pref 100 fwmark 0x2000000/0xff000000 to 192.0.2.0/24 iif lo lookup main protocol 108
    stamp if3 policy 2
    guard policy 2 if3 shared
    guard policy 7 if3 shared
    ");
}

#[test]
fn block_is_the_rule_that_refuses() {
    assert_snapshot!(text(&[policy(4, Action::Block)], &[]), @"
    ip -4 rule add pref 102 fwmark 0x4000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule add pref 102 fwmark 0x4000000/0xff000000 iif lo unreachable protocol 108
    guard policy 4 none
    ");
}

#[test]
fn direct_asks_the_main_table() {
    assert_snapshot!(text(&[policy(255, Action::Direct)], &[]), @"
    ip -4 rule add pref 101 fwmark 0xff000000/0xff000000 iif lo lookup main protocol 108
    ip -6 rule add pref 101 fwmark 0xff000000/0xff000000 iif lo lookup main protocol 108
    guard policy 255 any
    ");
}

#[test]
fn rules_of_others_are_overtaken_and_what_refuses_goes_first() {
    let wg = wireguard(3, &["10.9.0.2/32"], &["0.0.0.0/0"]);
    let policy = with_lan(via(1, "work"), &["192.168.1.0/24"]);
    let usual = desired(&[policy], &[("work", wg)]);
    let observed = satisfied(&usual);
    let moved = usual.clone().before(Some(98));

    assert_snapshot!(lines(&diff(&moved, &observed)), @"
    ip -4 rule add pref 97 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule add pref 97 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -4 rule add pref 96 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -6 rule add pref 96 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -4 rule add pref 95 fwmark 0x1000000/0xff000000 to 192.168.1.0/24 iif lo lookup main protocol 108
    ip -4 rule del pref 100 fwmark 0x1000000/0xff000000 to 192.168.1.0/24 iif lo lookup main protocol 108
    ip -4 rule del pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -6 rule del pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -4 rule del pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule del pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ");
    assert_eq!(usual.clone().before(Some(5210)), usual);
    let lowest = usual.before(Some(1));
    assert_eq!(lowest.rules.iter().map(|rule| rule.pref).min(), Some(1));
}

#[test]
fn local_prefixes_go_past_the_tunnel() {
    let wg = wireguard(3, &["10.9.0.2/32"], &["0.0.0.0/0"]);
    let policy = with_lan(via(1, "work"), &["192.168.1.7/24", "fd00:1::/64"]);

    assert_snapshot!(text(&[policy], &[("work", wg)]), @"
    ip -4 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -4 route add unreachable default table 108001 metric 4294967295 protocol 108
    ip -6 route add unreachable default table 108001 metric 4294967295 protocol 108
    sysctl -w net.ipv4.conf.work.src_valid_mark=1
    sysctl -w net.ipv4.fwmark_reflect=1
    sysctl -w net.ipv6.fwmark_reflect=1
    ip -4 route add default dev work table 108001 metric 1024 protocol 108
    ip -4 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -6 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -4 rule add pref 100 fwmark 0x1000000/0xff000000 to 192.168.1.0/24 iif lo lookup main protocol 108
    ip -6 rule add pref 100 fwmark 0x1000000/0xff000000 to fd00:1::/64 iif lo lookup main protocol 108
    stamp if3 policy 1
    guard policy 1 if3
    ");
}

#[test]
fn tunnel_that_is_gone_leaves_silence() {
    assert_snapshot!(text(&[via(1, "work")], &[]), @"
    ip -4 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -4 route add unreachable default table 108001 metric 4294967295 protocol 108
    ip -6 route add unreachable default table 108001 metric 4294967295 protocol 108
    sysctl -w net.ipv4.fwmark_reflect=1
    sysctl -w net.ipv6.fwmark_reflect=1
    ip -4 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -6 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    guard policy 1 none
    ");
}

#[test]
fn tunnel_that_is_down_leaves_silence() {
    let mut wg = wireguard(3, &["10.9.0.2/32"], &["0.0.0.0/0"]);
    wg.state = LinkState::Down;

    assert_snapshot!(text(&[via(1, "work")], &[("work", wg)]), @"
    ip -4 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -4 route add unreachable default table 108001 metric 4294967295 protocol 108
    ip -6 route add unreachable default table 108001 metric 4294967295 protocol 108
    sysctl -w net.ipv4.conf.work.src_valid_mark=1
    sysctl -w net.ipv4.fwmark_reflect=1
    sysctl -w net.ipv6.fwmark_reflect=1
    ip -4 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -6 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    stamp if3 policy 1
    guard policy 1 if3
    ");
}

#[test]
fn interface_with_neighbours_is_used_through_its_gateway() {
    let mut link = link(5, &["198.51.100.7/24", "2001:db8::7/64"]);
    link.gateways
        .insert(Family::V4, "198.51.100.1".parse().unwrap());
    link.gateways.insert(Family::V6, "fe80::1".parse().unwrap());

    assert_snapshot!(text(&[via(1, "lte0")], &[("lte0", Tunnel::foreign(&link))]), @"
    ip -4 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule add pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -4 route add unreachable default table 108001 metric 4294967295 protocol 108
    ip -6 route add unreachable default table 108001 metric 4294967295 protocol 108
    sysctl -w net.ipv4.conf.lte0.src_valid_mark=1
    sysctl -w net.ipv4.fwmark_reflect=1
    sysctl -w net.ipv6.fwmark_reflect=1
    ip -4 route add default via 198.51.100.1 dev lte0 onlink table 108001 metric 1024 protocol 108
    ip -6 route add default via fe80::1 dev lte0 onlink table 108001 metric 1024 protocol 108
    ip -4 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -6 rule add pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    stamp if5 policy 1
    guard policy 1 if5
    ");
}

#[test]
fn kernel_without_ipv6_is_not_asked_about_it() {
    let wg = wireguard(3, &["10.9.0.2/32"], &["0.0.0.0/0", "::/0"]);
    let tunnels = BTreeMap::from([("work".parse().unwrap(), wg)]);
    let families = BTreeSet::from([Family::V4]);

    let desired = Desired::new(MarkField::DEFAULT, &families, &[via(1, "work")], &tunnels);

    assert_snapshot!(desired, @"
    -4 rule pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    -4 rule pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    -4 route default dev work table 108001 metric 1024 protocol 108
    -4 route unreachable default table 108001 metric 4294967295 protocol 108
    sysctl net.ipv4.conf.work.src_valid_mark=1
    sysctl net.ipv4.fwmark_reflect=1
    stamp if3 policy 1
    guard policy 1 if3
    ");
}

#[test]
fn tunnel_that_comes_back_replaces_its_routes() {
    let wg = |ifindex| wireguard(ifindex, &["10.9.0.2/32"], &["0.0.0.0/0"]);
    let before = desired(&[via(1, "work")], &[("work", wg(3))]);
    let after = desired(&[via(1, "work")], &[("work", wg(9))]);

    assert_snapshot!(lines(&diff(&after, &satisfied(&before))), @"ip -4 route replace default dev work table 108001 metric 1024 protocol 108");
}

#[test]
fn what_refuses_goes_last() {
    let wg = wireguard(3, &["10.9.0.2/32"], &["0.0.0.0/0"]);
    let policy = with_lan(via(1, "work"), &["192.0.2.0/24"]);
    let before = desired(&[policy], &[("work", wg)]);
    let mut observed = satisfied(&before);
    observed.originals = before.sysctls.keys().map(|it| (it.clone(), 0)).collect();

    assert_snapshot!(lines(&diff(&Desired::default(), &observed)), @"
    ip -4 rule del pref 100 fwmark 0x1000000/0xff000000 to 192.0.2.0/24 iif lo lookup main protocol 108
    ip -4 route del default dev work table 108001 metric 1024 protocol 108
    ip -4 rule del pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -6 rule del pref 101 fwmark 0x1000000/0xff000000 iif lo lookup 108001 protocol 108
    ip -4 route del unreachable default table 108001 metric 4294967295 protocol 108
    ip -6 route del unreachable default table 108001 metric 4294967295 protocol 108
    ip -4 rule del pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    ip -6 rule del pref 102 fwmark 0x1000000/0xff000000 iif lo unreachable protocol 108
    sysctl -w net.ipv4.conf.work.src_valid_mark=0
    sysctl -w net.ipv4.fwmark_reflect=0
    sysctl -w net.ipv6.fwmark_reflect=0
    ");
}

#[test]
fn satisfied_plan_has_no_steps() {
    let wg = wireguard(3, &["10.9.0.2/32", "fd00:9::2/128"], &["0.0.0.0/0", "::/0"]);
    let policies = [
        via(1, "work"),
        policy(2, Action::Block),
        policy(3, Action::Direct),
    ];
    let desired = desired(&policies, &[("work", wg)]);

    assert_eq!(diff(&desired, &satisfied(&desired)), []);
}

fn policy(id: u8, action: Action) -> Policy {
    Policy {
        id: PolicyId(id.try_into().unwrap()),
        terms: Terms::new(action),
    }
}

fn via(id: u8, tunnel: &str) -> Policy {
    policy(id, Action::Via(tunnel.parse().unwrap()))
}

fn with_lan(mut policy: Policy, lan: &[&str]) -> Policy {
    policy.terms.lan = lan.iter().map(|it| it.parse().unwrap()).collect();
    policy
}

fn link(ifindex: u32, addresses: &[&str]) -> Link {
    Link {
        ifindex,
        state: LinkState::Up,
        mtu: 1420,
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
        gateways: BTreeMap::new(),
    }
}

fn wireguard(ifindex: u32, addresses: &[&str], allowed_ips: &[&str]) -> Tunnel {
    let allowed_ips = allowed_ips.iter().map(|it| it.parse().unwrap());
    Tunnel::wireguard(&link(ifindex, addresses), allowed_ips)
}

fn desired(policies: &[Policy], tunnels: &[(&str, Tunnel)]) -> Desired {
    let tunnels = tunnels
        .iter()
        .map(|(name, tunnel)| (name.parse().unwrap(), tunnel.clone()))
        .collect();
    Desired::new(
        MarkField::DEFAULT,
        &BTreeSet::from(Family::ALL),
        policies,
        &tunnels,
    )
}

fn satisfied(desired: &Desired) -> Observed {
    Observed {
        rules: desired.rules.clone(),
        routes: desired.routes.clone(),
        sysctls: desired.sysctls.clone(),
        ..Observed::default()
    }
}

fn lines(steps: &[Step]) -> String {
    steps.iter().fold(String::new(), |mut text, step| {
        writeln!(text, "{step}").unwrap();
        text
    })
}

/// The steps from nothing, then what is for the kernel programs.
fn text(policies: &[Policy], tunnels: &[(&str, Tunnel)]) -> String {
    let desired = desired(policies, tunnels);
    let mut text = lines(&diff(&desired, &Observed::default()));
    for line in desired.to_string().lines() {
        if line.starts_with("stamp") || line.starts_with("guard") {
            writeln!(text, "{line}").unwrap();
        }
    }
    text
}
