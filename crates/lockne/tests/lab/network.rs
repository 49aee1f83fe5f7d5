//! Changes that others make to the network.

use std::{path::PathBuf, process::Command};

use lockne_lab::{
    internet::ReversePathFilter,
    link::Link,
    probe::{Action, Outcome, Running, SocketFrom},
};

use crate::{
    home::{Daemon, Home, text as text_of, wait_until},
    tests,
    way::{self, ORIGIN, PLAIN, assert_answered, assert_arrives, probe},
};

tests! {
    routes_of_a_hostile_network_change_nothing,
    rules_put_ahead_leak_nothing_and_are_overtaken,
    vpn_that_takes_everything_is_overtaken_by_direct_programs,
    vpn_that_wg_quick_makes_before_or_after_changes_nothing needs ["wg-quick", "wg", "wireguard-go", "ip", "nft", "sysctl"],
    firewalld_that_asks_for_the_way_back_lets_answers_in needs ["nft"],
    flushed_table_leaks_nothing_and_is_filled_again,
    deleted_rules_leak_nothing_and_come_back,
    daemon_that_runs_heals_by_itself,
}

/// As CVE-2024-3661 (`TunnelVision`) makes them by DHCP.
fn routes_of_a_hostile_network_change_nothing() {
    let home = Home::with_tunnels();
    home.ip("-4 route add 0.0.0.0/1 via 192.0.2.1 dev eth0");
    home.ip("-4 route add 128.0.0.0/1 via 192.0.2.1 dev eth0");
    home.ip("-4 route add 203.0.113.10/32 via 192.0.2.1 dev eth0");
    home.ip("-6 route add ::/1 via 2001:db8:2::1 dev eth0");
    home.ip("-6 route add 2001:db8:113::10/128 via 2001:db8:2::1 dev eth0");

    assert_arrives(
        &home,
        ["--via", "a"],
        ORIGIN,
        way::client(&home.lab.provider_a),
    );

    home.assert_no_leak();
}

/// A home with programs that wait under a policy, whose tunnel needs no daemon.
struct Waiting {
    programs: Vec<(Running, Action)>,
    daemon: Daemon,
    _link: Link,
    home: Home,
}

impl Waiting {
    fn new() -> Self {
        let home = Home::new();
        let link = home.add_corp0();
        let daemon = home.daemon();
        let programs = [
            Action::Tcp,
            Action::UdpConnected,
            Action::UdpUnconnected,
            Action::RawPing,
        ];
        let programs = programs.into_iter().flat_map(|action| {
            ORIGIN.map(|to| {
                let probe = probe(action, to)
                    .on(SocketFrom::AfterGo)
                    .waiting(std::time::Duration::from_millis(300));
                let mut running = home.start(["--via", "corp0"], &probe);
                running.wait_until_ready().unwrap();
                (running, action)
            })
        });
        Self {
            programs: programs.collect(),
            daemon,
            _link: link,
            home,
        }
    }

    /// Fails if anything leaks after `change`, while no daemon runs; or if a new daemon does not bring
    /// the traffic back.
    fn assert_held_and_healed(self, change: impl FnOnce(&Home)) {
        let Self {
            programs,
            daemon,
            _link,
            home,
        } = self;
        daemon.kill();
        change(&home);
        for (mut running, action) in programs {
            running.go().unwrap();
            let report = running.finish().unwrap();
            assert!(
                !matches!(report.outcome, Outcome::Answered { .. }),
                "{action:?}: {report:?}"
            );
        }
        home.assert_no_leak();
        assert_eq!(home.lab.origin.seen(), []);

        let _daemon = home.daemon();
        assert_arrives(&home, ["--via", "corp0"], ORIGIN, PLAIN);
        home.assert_no_leak();
    }
}

fn rules_put_ahead_leak_nothing_and_are_overtaken() {
    // Without a preference they get one before all others.
    Waiting::new().assert_held_and_healed(|home| home.ip_both("rule add table main"));
}

fn flushed_table_leaks_nothing_and_is_filled_again() {
    Waiting::new().assert_held_and_healed(|home| {
        home.ip_both("route flush table 108001");
    });
}

fn deleted_rules_leak_nothing_and_come_back() {
    Waiting::new().assert_held_and_healed(|home| {
        home.ip_both("rule del pref 101");
        home.ip_both("rule del pref 102");
        home.ip_both("route flush table 108001");
    });
}

fn vpn_that_takes_everything_is_overtaken_by_direct_programs() {
    let home = Home::new();
    let _link = home
        .lab
        .add_plain_tunnel("vpn0", ReversePathFilter::Off)
        .unwrap();
    let _daemon = home.daemon();
    assert_arrives(&home, ["--direct"], ORIGIN, way::HOME);

    // As wg-quick does it, after lockne.
    home.ip_both("route add default dev vpn0 table 51820");
    home.ip_both("rule add not fwmark 0xca6c table 51820");
    home.ip_both("rule add table main suppress_prefixlength 0");

    for to in ORIGIN {
        wait_until("the direct program is past the VPN", || {
            let report = home.run(["--direct"], &probe(Action::UdpUnconnected, to));
            let saw = way::of_family(way::HOME, to);
            matches!(report.outcome, Outcome::Answered { saw: Some(it) } if it.ip() == saw)
        });
    }
    assert_arrives(&home, ["--direct"], ORIGIN, way::HOME);
}

/// The VPN of the second provider, which takes everything, as wg-quick(8) makes it.
struct WgQuick<'a> {
    home: &'a Home,
    file: PathBuf,
}

impl<'a> WgQuick<'a> {
    fn up(home: &'a Home) -> Self {
        // The sockets by which wireguard-go is asked are the machine's, not the namespace's.
        let name = format!("q{}", std::process::id());
        let conf = home.lab.provider_b.client_conf();
        // Names are not what this is about, and would change files of the machine.
        let lines = conf.lines().filter(|line| !line.starts_with("DNS"));
        let text = lines.fold(String::new(), |text, line| text + line + "\n");
        let vpn = Self {
            home,
            file: home.write(&format!("{name}.conf"), &text),
        };
        let output = vpn.command("up").output().unwrap();
        assert!(output.status.success(), "{}", text_of(&output));
        vpn
    }

    fn command(&self, how: &str) -> Command {
        let mut command = self.home.lab.home.command("wg-quick");
        command
            .arg(how)
            .arg(&self.file)
            .env("WG_QUICK_USERSPACE_IMPLEMENTATION", "wireguard-go")
            .env("WG_SUDO", "1");
        command
    }

    fn down(self) {
        let output = self.command("down").output().unwrap();
        assert!(output.status.success(), "{}", text_of(&output));
    }
}

impl Drop for WgQuick<'_> {
    fn drop(&mut self) {
        // It may be down already.
        drop(self.command("down").output());
    }
}

fn vpn_that_wg_quick_makes_before_or_after_changes_nothing() {
    for is_before in [true, false] {
        let home = Home::new();
        let _daemon = home.daemon();
        let (a, b) = (
            way::client(&home.lab.provider_a),
            way::client(&home.lab.provider_b),
        );
        let vpn = if is_before {
            let vpn = WgQuick::up(&home);
            home.tunnel_up("a", &home.lab.provider_a);
            vpn
        } else {
            home.tunnel_up("a", &home.lab.provider_a);
            assert_arrives(&home, ["--via", "a"], ORIGIN, a);
            WgQuick::up(&home)
        };

        for to in ORIGIN {
            let free = probe(Action::Tcp, to);
            assert_answered(&free.run(&home.lab.home).unwrap(), to, b, &free);
        }
        assert_arrives(&home, ["--via", "a"], ORIGIN, a);
        home.assert_no_leak();
        for to in ORIGIN {
            wait_until("the direct program is past the VPN", || {
                let report = home.run(["--direct"], &probe(Action::UdpUnconnected, to));
                let saw = way::of_family(way::HOME, to);
                matches!(report.outcome, Outcome::Answered { saw: Some(it) } if it.ip() == saw)
            });
        }
        vpn.down();
        assert_arrives(&home, ["--via", "a"], ORIGIN, a);
    }
}

/// What firewalld makes of `IPv6_rpfilter=strict` and a zone that lets nothing in, for both families.
const FIREWALLD: &str = "
table inet firewalld {
    chain filter_PREROUTING {
        type filter hook prerouting priority filter + 10; policy accept;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        fib saddr . mark . iif oif missing counter drop
    }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname \"lo\" accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
        ct state invalid counter drop
        reject with icmpx admin-prohibited
    }
    chain filter_OUTPUT {
        type filter hook output priority filter + 10; policy accept;
        ct state { established, related } accept
        oifname \"lo\" accept
        ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 2002:a00::/24 } reject with icmpv6 addr-unreachable
    }
}
";

fn firewalld_that_asks_for_the_way_back_lets_answers_in() {
    for is_before in [true, false] {
        let home = Home::new();
        let _link = home
            .lab
            .add_plain_tunnel("corp0", ReversePathFilter::Strict)
            .unwrap();
        let load = || {
            let rules = home.write("firewalld.nft", FIREWALLD);
            let mut nft = home.lab.home.command("nft");
            let output = nft.arg("-f").arg(rules).output().unwrap();
            assert!(output.status.success(), "{}", text_of(&output));
        };
        if is_before {
            load();
        }
        let _daemon = home.daemon();
        home.tunnel_up("a", &home.lab.provider_a);
        if !is_before {
            load();
        }

        let a = way::client(&home.lab.provider_a);
        assert_arrives(&home, ["--via", "a"], ORIGIN, a);
        assert_arrives(&home, ["--via", "corp0"], ORIGIN, PLAIN);
        home.assert_no_leak();
        assert_arrives(&home, ["--direct"], ORIGIN, way::HOME);
    }
}

fn daemon_that_runs_heals_by_itself() {
    let home = Home::with_tunnels();
    let tunnel = way::client(&home.lab.provider_a);
    assert_arrives(&home, ["--via", "a"], ORIGIN, tunnel);
    let changes: [fn(&Home); 4] = [
        |home| home.ip_both("route flush table 108001"),
        |home| home.ip_both("rule del pref 102"),
        |home| home.ip_both("rule del pref 101"),
        |home| home.ip_both("rule add table main"),
    ];
    for change in changes {
        change(&home);
        for to in ORIGIN {
            wait_until("the tunnel is back", || {
                let report = home.run(["--via", "a"], &probe(Action::Tcp, to));
                matches!(report.outcome, Outcome::Answered { .. })
            });
        }
        assert_arrives(&home, ["--via", "a"], ORIGIN, tunnel);
        home.assert_no_leak();
    }
}
