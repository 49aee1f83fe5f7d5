//! From `up` to `down`, and what happens when somebody dies in between.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use lockne_core::{
    api::TunnelKind,
    wgquick::{Config, HookPolicy},
};
use lockne_daemon::wireguard::{Backend, Error, Wireguard};

use crate::{
    Needs, Test,
    carry::confs,
    conf::{conf, down, peer, try_up, up},
    side::{Side, eventually},
};

/// The variable that makes this program a daemon: the name of its tunnel.
pub(crate) const SERVE: &str = "LOCKNE_TEST_SERVE";

pub(crate) const TESTS: &[Test] = &[
    (
        "down_removes_the_device",
        down_removes_the_device,
        Needs::Nothing,
    ),
    (
        "killed_process_leaves_its_device_to_the_next",
        killed_process_leaves_its_device_to_the_next,
        Needs::Nothing,
    ),
    (
        "served_device_is_busy",
        served_device_is_busy,
        Needs::Nothing,
    ),
    (
        "device_of_somebody_else_is_refused_and_untouched",
        device_of_somebody_else_is_refused_and_untouched,
        Needs::Nothing,
    ),
    (
        "leftover_can_be_deleted",
        leftover_can_be_deleted,
        Needs::Nothing,
    ),
    (
        "deleted_device_is_noticed",
        deleted_device_is_noticed,
        Needs::Nothing,
    ),
    (
        "device_that_is_down_does_not_die",
        device_that_is_down_does_not_die,
        Needs::Nothing,
    ),
    (
        "port_in_use_is_said_and_nothing_is_left",
        port_in_use_is_said_and_nothing_is_left,
        Needs::Nothing,
    ),
    (
        "failing_command_undoes_everything",
        failing_command_undoes_everything,
        Needs::Nothing,
    ),
    (
        "commands_run_in_order",
        commands_run_in_order,
        Needs::Nothing,
    ),
    (
        "auto_falls_back_where_the_kernel_has_no_wireguard",
        auto_falls_back_where_the_kernel_has_no_wireguard,
        Needs::Nothing,
    ),
];

/// Serves a tunnel until it is killed.
pub(crate) fn serve(name: &str) -> ! {
    let text = std::io::read_to_string(std::io::stdin()).unwrap();
    let (name, config) = (name.parse().unwrap(), Config::parse(&text).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let tunnel = Wireguard::up(&name, &config, Backend::Embedded, HookPolicy::Refuse).await;
        let index = tunnel.as_ref().unwrap().ifindex();
        let mut stdout = std::io::stdout();
        stdout.write_all(format!("{index}\n").as_bytes()).unwrap();
        std::future::pending().await
    })
}

fn down_removes_the_device() {
    let side = Side::new();
    let tunnel = up(&side, "wg0", &conf(9, 1, 2, ""));
    assert!(side.has_link("wg0"));

    down(&side, tunnel);

    assert!(!side.has_link("wg0"));
    // The port is free at once.
    let again = up(&side, "wg0", &conf(9, 1, 2, ""));
    down(&side, again);
}

fn killed_process_leaves_its_device_to_the_next() {
    let (a, b) = Side::pair();
    let (here, there) = confs();
    let there = up(&b, "wg0", &there);
    let mut child = a
        .start(|| {
            Command::new(std::env::current_exe().unwrap())
                .env(SERVE, "wg0")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .join()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(here.as_bytes()).unwrap();
    drop(stdin);
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let index: u32 = line.trim().parse().unwrap();
    a.ip("route add 10.9.0.0/24 dev wg0");
    assert!(a.pings("10.9.0.2"));

    child.kill().unwrap();
    child.wait().unwrap();

    assert!(a.ip("route show").contains("10.9.0.0/24 dev wg0"));
    assert!(!a.output("ping", "-n -c 1 -W 1 10.9.0.2").status.success());
    let here = try_up(&a, "wg0", &here).unwrap();
    assert_eq!(here.ifindex(), index);
    assert!(a.pings("10.9.0.2"));

    a.run(here.down()).unwrap();
    assert!(!a.has_link("wg0"));
    down(&b, there);
}

fn served_device_is_busy() {
    let side = Side::new();
    let tunnel = up(&side, "wg0", &conf(9, 1, 2, ""));

    let error = try_up(&side, "wg0", &conf(10, 1, 2, "")).err().unwrap();

    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    assert!(side.has_link("wg0"));
    down(&side, tunnel);
}

fn device_of_somebody_else_is_refused_and_untouched() {
    let side = Side::new();
    side.ip("link add mine type veth peer name mine2");
    side.ip("tuntap add dev mytun mode tun");
    for name in ["mine", "mytun"] {
        side.ip(&format!("address add 10.5.5.5/24 dev {name}"));
        let before = side.ip(&format!("address show dev {name}"));

        let error = try_up(&side, name, &conf(9, 1, 2, "")).err().unwrap();

        assert!(matches!(error, Error::Busy { .. }), "{error:?}");
        assert!(error.hint().is_some());
        let stale = name.parse().unwrap();
        let stale = side.run(async move { Wireguard::delete_stale(&stale).await });
        assert!(matches!(stale, Err(Error::Busy { .. })));
        assert_eq!(side.ip(&format!("address show dev {name}")), before);
    }
}

fn leftover_can_be_deleted() {
    let side = Side::new();
    let tunnel = up(&side, "wg0", &conf(9, 1, 2, ""));
    side.run(async move { drop(tunnel) });
    assert!(side.has_link("wg0"));
    let name: lockne_core::tunnel::TunnelName = "wg0".parse().unwrap();
    assert_eq!(
        side.run(Wireguard::all()).unwrap(),
        std::slice::from_ref(&name)
    );

    let stale = name.clone();
    let deleted = side.run(async move { Wireguard::delete_stale(&stale).await });

    assert!(deleted.unwrap());
    assert!(!side.has_link("wg0"));
    let again = side.run(async move { Wireguard::delete_stale(&name).await });
    assert!(!again.unwrap());
}

fn deleted_device_is_noticed() {
    let side = Side::new();
    let tunnel = up(&side, "wg0", &conf(9, 1, 2, ""));
    let died = tunnel.died();

    side.ip("link delete dev wg0");

    let wait = async { tokio::time::timeout(std::time::Duration::from_secs(10), died).await };
    let error = side.run(wait).expect("it was noticed");
    assert_eq!(error.to_string(), "the tunnel `wg0` is dead");
    // What is gone cannot be taken away again, and that is no error.
    down(&side, tunnel);
}

fn device_that_is_down_does_not_die() {
    let (a, b) = Side::pair();
    let (here, there) = confs();
    let here = up(&a, "wg0", &here);
    let there = up(&b, "wg0", &there);
    assert!(a.pings("10.9.0.2"));

    a.ip("link set wg0 down");
    assert!(!b.output("ping", "-n -c 1 -W 1 10.9.0.1").status.success());
    a.ip("link set wg0 up");
    a.ip("route add 10.9.0.0/24 dev wg0");

    assert!(b.pings("10.9.0.1"));
    down(&a, here);
    down(&b, there);
}

fn port_in_use_is_said_and_nothing_is_left() {
    let side = Side::new();
    let tunnel = up(&side, "wg0", &conf(9, 1, 2, ""));

    let error = try_up(&side, "wg1", &conf(9, 1, 2, "")).err().unwrap();

    assert_eq!(error.to_string(), "UDP port 50009 is in use");
    assert!(error.hint().unwrap().contains("ListenPort"));
    assert!(!side.has_link("wg1"));
    down(&side, tunnel);
}

fn failing_command_undoes_everything() {
    let side = Side::new();
    for hook in [
        "PreUp = false",
        "PostUp = false",
        "PostUp = true\nPostUp = exit 3",
    ] {
        let text = conf(9, 1, 2, "").replace("[Peer]", &format!("{hook}\n[Peer]"));

        let error = try_up(&side, "wg0", &text).err().unwrap();

        assert!(matches!(error, Error::HookFailed { .. }), "{error:?}");
        assert!(!side.has_link("wg0"));
    }
    let refused = conf(9, 1, 2, "").replace("[Peer]", "PostUp = true\n[Peer]");
    let config = Config::parse(&refused).unwrap();
    let error = side.run(async move {
        let name = "wg0".parse().unwrap();
        let up = Wireguard::up(&name, &config, Backend::Embedded, HookPolicy::Refuse);
        up.await.err().unwrap()
    });
    assert!(matches!(error, Error::Hooks { .. }));
    assert!(!side.has_link("wg0"));
}

fn commands_run_in_order() {
    let side = Side::new();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let hook = |phase: &str, word: &str| {
        let seen = "ip -br link show dev %i 2>/dev/null | cut -d' ' -f1";
        format!("{phase} = echo {word} $({seen}) >> {}\n", log.display())
    };
    let hooks = [
        hook("PostDown", "five"),
        hook("PreUp", "one"),
        hook("PreUp", "two"),
        hook("PostUp", "three"),
        hook("PreDown", "four"),
    ];
    let text = conf(9, 1, 2, "").replace("[Peer]", &format!("{}[Peer]", hooks.concat()));

    let tunnel = up(&side, "wg0", &text);
    down(&side, tunnel);

    assert_eq!(
        std::fs::read_to_string(log).unwrap(),
        "one\ntwo\nthree wg0\nfour wg0\nfive\n"
    );
}

fn auto_falls_back_where_the_kernel_has_no_wireguard() {
    let side = Side::new();
    let probe = side.output("ip", "link add probe type wireguard");
    let config = Config::parse(conf(9, 1, 2, "")).unwrap();
    let again = config.clone();

    let tunnel = side.run(async move {
        let name = "wg0".parse().unwrap();
        Wireguard::up(&name, &config, Backend::Auto, HookPolicy::Refuse).await
    });
    let tunnel = tunnel.unwrap();
    let kernel = side.run(async move {
        let name = "wg1".parse().unwrap();
        Wireguard::up(&name, &again, Backend::Kernel, HookPolicy::Refuse).await
    });

    if probe.status.success() {
        assert_eq!(tunnel.kind(), TunnelKind::WireguardKernel);
    } else {
        assert_eq!(tunnel.kind(), TunnelKind::WireguardEmbedded);
        assert!(matches!(kernel, Err(Error::NoKernelWireguard)));
    }
    eventually("the tunnel is up", || side.has_link("wg0"));
    let tunnel = std::sync::Arc::new(tunnel);
    assert_eq!(peer(&side, &tunnel).handshake_age_seconds, None);
    down(&side, tunnel);
}
