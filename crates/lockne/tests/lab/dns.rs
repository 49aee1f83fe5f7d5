//! Names: whomever a policed program asks, its tunnel's resolver answers, and the home's hears nothing.

pub(crate) mod bench;
mod program;

use std::net::IpAddr;

use self::bench::{Bench, FAR_ANSWER, HOME_ANSWER, PROGRAMS, RESOLV_CONFS};
use crate::{home::text, tests};

tests! {
    every_program_with_every_resolv_conf_asks_the_tunnels_resolver
        needs ["dnsmasq", "dig", "busybox", "python3", "curl", "hey", "musl-gcc"],
    program_sees_the_resolver_that_it_asked needs ["dnsmasq", "python3"],
    socket_of_another_address_or_version_is_answered_too needs ["dnsmasq", "dig"],
    stub_answers_nobody_but_its_policy needs ["dnsmasq", "dig"],
    without_a_resolver_questions_take_the_tunnel_and_this_machine_is_refused
        needs ["dnsmasq", "dig"],
    resolver_of_the_command_line_wins needs ["dnsmasq", "dig"],
    resolver_past_the_tunnel_is_refused,
    blocked_program_asks_nobody needs ["dnsmasq", "dig"],
    direct_program_asks_the_home needs ["dnsmasq", "dig"],
    older_connection_to_a_resolver_of_this_machine_is_silent needs ["dnsmasq", "python3"],
    questions_go_on_without_a_daemon_and_the_stub_is_closed needs ["dnsmasq", "dig"],
    sockets_of_resolvers_refuse_policed_programs needs ["dnsmasq", "python3"],
    sockets_of_resolvers_are_hidden_where_the_kernel_cannot_refuse_them
        needs ["dnsmasq", "python3"],
    system_bus_is_open_to_policed_programs needs ["dnsmasq", "python3"],
    multicast_names_do_not_reach_the_local_network needs ["python3"],
    search_domains_of_the_tunnel_are_searched,
}

fn every_program_with_every_resolv_conf_asks_the_tunnels_resolver() {
    let bench = Bench::new();
    let _daemon = bench.home.daemon();
    bench.home.tunnels_up();
    let musl = bench.musl_program();
    let musl: &[&str] = &[musl.to_str().unwrap()];
    for resolv_conf in RESOLV_CONFS {
        for program in PROGRAMS.iter().chain([&musl]) {
            let output = bench.run(&["--via", "a"], resolv_conf, program);

            let said = text(&output);
            assert!(
                output.status.success() && bench.tells(&output, FAR_ANSWER),
                "{resolv_conf:?} {program:?}: {said}"
            );
            assert!(
                !said.contains(HOME_ANSWER),
                "{resolv_conf:?} {program:?}: {said}"
            );
        }
    }
    bench.assert_home_heard_nothing();

    // The same ones still work for everybody else.
    for resolv_conf in RESOLV_CONFS {
        let output = bench.run_free(resolv_conf, &["getent", "ahosts", "test.example"]);
        assert!(
            bench.tells(&output, HOME_ANSWER),
            "{resolv_conf:?}: {}",
            text(&output)
        );
    }
    assert!(bench.home_heard() > 0);
}

fn program_sees_the_resolver_that_it_asked() {
    let bench = Bench::new();
    let _daemon = bench.home.daemon();
    bench.home.tunnels_up();
    let asked = [
        "127.0.0.53",
        "192.0.2.50",
        "8.8.8.8",
        "::1",
        "2001:db8:2::50",
        "::ffff:127.0.0.53",
    ];
    for asked in asked {
        let output = bench.run(
            &["--via", "a"],
            "",
            &["python3", "-c", program::NAMES, asked],
        );

        assert!(output.status.success(), "{asked}: {}", text(&output));
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            "as asked",
            "{asked}"
        );
    }
    bench.assert_home_heard_nothing();
}

fn socket_of_another_address_or_version_is_answered_too() {
    let bench = Bench::new();
    let _daemon = bench.home.daemon();
    bench.home.tunnels_up();
    for dig in [
        // The tunnel's resolver has IPv4 only.
        "@::1",
        "@2001:db8:2::50",
        "-b 127.0.0.1 @127.0.0.53",
        "-b ::1 @::1",
        "-b 192.0.2.2 @192.0.2.50",
        "-b 2001:db8:2::2 @2001:db8:2::50",
    ] {
        for transport in ["+notcp", "+tcp"] {
            let output = bench.dig(&["--via", "a"], &format!("{dig} {transport}"));

            assert!(
                bench.tells(&output, FAR_ANSWER),
                "{dig} {transport}: {}",
                text(&output)
            );
        }
    }
    bench.assert_home_heard_nothing();
}

fn stub_answers_nobody_but_its_policy() {
    let bench = Bench::new();
    let _daemon = bench.home.daemon();
    bench.home.tunnels_up();
    let output = bench.dig(&["--via", "a"], "-b 127.0.0.1 @127.0.0.53");
    assert!(bench.tells(&output, FAR_ANSWER), "{}", text(&output));
    let ports = bench.stub_ports();
    assert!(!ports.is_empty());

    for port in ports {
        for transport in ["+notcp", "+tcp"] {
            let question = format!("-p {port} @127.0.0.1 {transport} +timeout=1 +tries=1");
            let free = bench.run_free("", &bench::dig(&question));
            let other = bench.dig(&["--via", "b"], &question);
            let blocked = bench.dig(&["--block"], &question);
            for output in [free, other, blocked] {
                assert!(
                    !bench.tells(&output, FAR_ANSWER),
                    "{question}: {}",
                    text(&output)
                );
            }
        }
        let output = bench.dig(&["--via", "a"], &format!("-p {port} @127.0.0.1"));
        assert!(
            bench.tells(&output, FAR_ANSWER),
            "{port}: {}",
            text(&output)
        );
    }
}

fn without_a_resolver_questions_take_the_tunnel_and_this_machine_is_refused() {
    let bench = Bench::new();
    let _link = bench.home.add_corp0();
    bench.resolver_on_the_plain_tunnel();
    let _daemon = bench.home.daemon();

    let output = bench.dig(&["--via", "corp0"], "@10.9.1.1");
    assert!(bench.tells(&output, FAR_ANSWER), "{}", text(&output));
    // The home's resolver has an address that is reached from everywhere.
    let output = bench.dig(&["--via", "corp0"], "@192.0.2.50");
    assert!(bench.tells(&output, HOME_ANSWER), "{}", text(&output));
    bench.home.assert_no_leak();
    bench.clear();

    let refused = |arguments: &[&str], question: &str| {
        let before = bench.refused();
        let output = bench.dig(arguments, &format!("{question} +timeout=1 +tries=1"));
        assert!(!output.status.success(), "{question}: {}", text(&output));
        assert!(bench.refused() > before, "{question}: nothing is counted");
        output
    };
    for question in [
        "@127.0.0.53",
        "@127.0.0.53 +tcp",
        "@::1",
        "@::1 +tcp",
        "@192.0.2.2",
    ] {
        refused(&["--via", "corp0"], question);
    }
    for question in ["@192.0.2.50", "@192.0.2.50 +tcp"] {
        refused(&["--via", "corp0", "--lan", "192.0.2.0/24"], question);
    }
    let output = bench.run(&["--via", "corp0"], "nameserver 127.0.0.53\n", &["true"]);
    assert!(text(&output).contains("--dns ADDRESS"), "{}", text(&output));
    bench.assert_home_heard_nothing();
}

fn resolver_of_the_command_line_wins() {
    let bench = Bench::new();
    let _link = bench.home.add_corp0();
    bench.resolver_on_the_plain_tunnel();
    let _daemon = bench.home.daemon();
    bench.home.tunnels_up();
    for (tunnel, resolver) in [("corp0", "10.9.1.1"), ("a", "fd00:8:1::1")] {
        for question in ["@127.0.0.53", "@192.0.2.50 +tcp", "@::1"] {
            let arguments = ["--via", tunnel, "--dns", resolver];
            let output = bench.dig(&arguments, question);

            assert!(
                bench.tells(&output, FAR_ANSWER),
                "{arguments:?} {question}: {}",
                text(&output)
            );
        }
        let resolver: IpAddr = resolver.parse().unwrap();
        let policies = bench.home.status().unwrap().policies;
        assert!(
            policies.iter().any(|policy| policy.resolvers == [resolver]),
            "{policies:?}"
        );
    }
    bench.assert_home_heard_nothing();
}

fn resolver_past_the_tunnel_is_refused() {
    let home = crate::home::Home::with_tunnels();
    for (arguments, said) in [
        (
            ["--dns", "127.0.0.1", "--lan", "192.0.2.0/24"],
            "is on this machine",
        ),
        (
            ["--dns", "192.0.2.50", "--lan", "192.0.2.0/24"],
            "asked past the tunnel",
        ),
        (
            ["--lan", "10.0.0.0/8", "--lan", "192.0.2.0/24"],
            "asked past the tunnel",
        ),
    ] {
        let mut command = home.lockne(["run", "--via", "a"]);
        let output = command
            .args(arguments)
            .args(["--", "true"])
            .output()
            .unwrap();

        assert_eq!(output.status.code(), Some(125), "{}", text(&output));
        assert!(text(&output).contains(said), "{}", text(&output));
    }
}

fn blocked_program_asks_nobody() {
    let bench = Bench::new();
    let _daemon = bench.home.daemon();
    for question in [
        "@127.0.0.53",
        "@127.0.0.53 +tcp",
        "@::1",
        "-b 127.0.0.1 @127.0.0.53",
        "@192.0.2.50",
    ] {
        let output = bench.dig(&["--block"], &format!("{question} +timeout=1 +tries=1"));

        assert!(!output.status.success(), "{question}: {}", text(&output));
    }
    bench.assert_home_heard_nothing();
}

fn direct_program_asks_the_home() {
    let bench = Bench::new();
    let _daemon = bench.home.daemon();
    for question in ["@127.0.0.53", "@::1 +tcp", "@192.0.2.50"] {
        let output = bench.dig(&["--direct"], question);

        assert!(
            bench.tells(&output, HOME_ANSWER),
            "{question}: {}",
            text(&output)
        );
    }
}

fn older_connection_to_a_resolver_of_this_machine_is_silent() {
    let bench = Bench::new();
    let _daemon = bench.home.daemon();
    bench.home.tunnels_up();
    let state = bench.home.state_dir();
    let lockne = env!("CARGO_BIN_EXE_lockne");
    let mut command = bench.home.lab.home.command("python3");
    command.args(["-c", program::OLDER, lockne, state.to_str().unwrap()]);

    let output = command.output().unwrap();

    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "EPERM",
        "{}",
        text(&output)
    );
    bench.assert_home_heard_nothing();
}

fn questions_go_on_without_a_daemon_and_the_stub_is_closed() {
    let bench = Bench::new();
    let _link = bench.home.add_corp0();
    bench.resolver_on_the_plain_tunnel();
    let daemon = bench.home.daemon();
    let arguments = ["--via", "corp0", "--dns", "10.9.1.1"];
    let mut running = bench.start(&arguments, &["sh", "-c", "read go; dig +short @127.0.0.53 test.example; dig +short +timeout=1 +tries=1 -b 127.0.0.1 @127.0.0.53 test.example || echo closed"]);
    daemon.kill();

    let mut go = running.stdin.take().unwrap();
    std::io::Write::write_all(&mut go, b"go\n").unwrap();
    drop(go);
    let output = running.wait_with_output().unwrap();

    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.starts_with(FAR_ANSWER) && said.contains("closed"),
        "{}",
        text(&output)
    );
    bench.assert_home_heard_nothing();
}

fn sockets_of_resolvers_refuse_policed_programs() {
    assert_sockets(&[], "refused refused refused refused in in in refused in");
}

fn sockets_of_resolvers_are_hidden_where_the_kernel_cannot_refuse_them() {
    assert_sockets(
        &["--without", "unix-sockets"],
        "gone gone gone gone in in in gone gone",
    );
}

/// Fails unless programs under a policy come in where it says, and others everywhere.
fn assert_sockets(daemon: &[&str], policed: &str) {
    let bench = Bench::new();
    let _daemon = bench.home.daemon_with(daemon);
    bench.home.tunnels_up();
    let state = bench.home.state_dir();
    // A `/run` of its own, where all of them have their sockets.
    let script = "mount -t tmpfs t /run && exec python3 -c \"$0\" \"$@\"";
    let shell = ["sh", "-c", script, program::SOCKETS];
    let arguments = [env!("CARGO_BIN_EXE_lockne"), state.to_str().unwrap()];

    let output = bench.run_free(
        "nameserver 127.0.0.53\n",
        &[&shell[..], &arguments].concat(),
    );

    let free = "in in in in in in in in in";
    let file = "nameserver 127.0.0.53";
    let wanted = format!(
        ": {free} {file}\nnscd was asked\n\
         --via a : {policed} {file}\nnscd was not asked\n\
         --block : {policed} {file}\nnscd was not asked\n\
         --direct : {free} {file}\nnscd was asked\n"
    );
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, wanted, "{}", text(&output));
}

/// What the contract says of names over D-Bus.
fn system_bus_is_open_to_policed_programs() {
    let bench = Bench::new();
    let _daemon = bench.home.daemon();
    bench.home.tunnels_up();
    let state = bench.home.state_dir();
    let script = "mount -t tmpfs t /run && exec python3 -c \"$0\" \"$@\"";
    let shell = ["sh", "-c", script, program::BUS];
    let arguments = [env!("CARGO_BIN_EXE_lockne"), state.to_str().unwrap()];

    let output = bench.run_free("", &[&shell[..], &arguments].concat());

    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("ResolveHostname"), "{}", text(&output));
}

fn multicast_names_do_not_reach_the_local_network() {
    let home = crate::home::Home::with_tunnels();
    let _daemon = home.daemon();
    let run = |arguments: &[&str]| {
        let mut command = home.lockne(["run", "--via", "a"]);
        command
            .args(arguments)
            .args(["--", "python3", "-c", program::MULTICAST]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    };
    run(&[]);
    home.assert_no_leak();

    // mDNS, for whom the local network is open.
    run(&["--lan", "224.0.0.251", "--lan", "ff02::fb"]);
    let leaks = home.leaks();
    let to: std::collections::BTreeSet<String> =
        leaks.iter().filter_map(bench::destination).collect();
    let wanted = ["224.0.0.251:5353", "[ff02::fb]:5353"].map(ToOwned::to_owned);
    assert_eq!(to, wanted.into(), "{leaks:#?}");
}

fn search_domains_of_the_tunnel_are_searched() {
    let home = crate::home::Home::new();
    let conf = home
        .lab
        .provider_a
        .client_conf()
        .replace("DNS = ", "DNS = corp.example, lab.example, ");
    let conf = home.write("search.conf", &conf);
    let run = |domain: Option<&str>| {
        let mut command = home.lockne([
            "run",
            "--via",
            conf.to_str().unwrap(),
            "--",
            "sh",
            "-c",
            "echo $LOCALDOMAIN",
        ]);
        command.env_remove("LOCALDOMAIN");
        if let Some(domain) = domain {
            command.env("LOCALDOMAIN", domain);
        }
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };

    assert_eq!(run(None), "corp.example lab.example");
    assert_eq!(run(Some("own.example")), "own.example");
}
