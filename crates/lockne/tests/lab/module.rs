//! Parts of the kernel that not every machine has, in the home that lockne runs in.
//!
//! `cargo xtask kernels` boots kernels that have them, and is alone in asking for these tests.

use crate::{
    dns::bench::{Bench, FAR_ANSWER, HOME_ANSWER},
    hole::{assert_closed, bound_to, each_by},
    home::{Home, text},
    tests,
    way::{self, HOME, ORIGIN, assert_arrives},
};

tests! {
    vrf_beside_the_tunnel_changes_nothing needs ["ip"],
    vrf_is_no_way_out needs ["ip"],
    fair_queues_on_every_device_change_nothing needs ["tc"],
    uplink_that_paces_and_limits_changes_nothing needs ["tc"],
    systemd_resolved_is_asked_by_the_free_and_not_by_the_policed needs ["dnsmasq", "python3", "getent"],
}

/// Runs systemd-resolved, then asks it the way libc does, free and under each policy.
const RESOLVED: &str = r#"
import os, subprocess, sys, time
lockne, state = sys.argv[1:]
with open("/etc/nsswitch.conf", "w") as file:
    file.write("hosts: resolve [!UNAVAIL=return] files dns\n")
os.makedirs("/run/systemd/resolve")
os.chown("/run/systemd/resolve", 998, 998)
server = subprocess.Popen(["/usr/lib/systemd/systemd-resolved"])
try:
    deadline = time.monotonic() + 60
    while not os.path.exists("/run/systemd/resolve/io.systemd.Resolve"):
        assert server.poll() is None and time.monotonic() < deadline, "resolved does not serve"
        time.sleep(0.1)
    for policy in [[], ["--via", "a"], ["--block"], ["--direct"]]:
        under = [lockne, "--state-dir", state, "run", *policy, "--"] if policy else []
        found = subprocess.run([*under, "getent", "ahostsv4", "test.example"], capture_output=True, text=True)
        print(*policy, ":", " ".join(found.stdout.split()[:1]), flush=True)
finally:
    server.kill()
    server.wait()
"#;

fn systemd_resolved_is_asked_by_the_free_and_not_by_the_policed() {
    let bench = Bench::new();
    let _daemon = bench.home.daemon();
    bench.home.tunnels_up();
    let state = bench.home.state_dir();
    // A `/run` of its own, as the server leaves files there.
    let script = "mount -t tmpfs t /run && exec python3 -c \"$0\" \"$@\"";
    let output = bench.run_free(
        "nameserver 192.0.2.50\n",
        &[
            "sh",
            "-c",
            script,
            RESOLVED,
            env!("CARGO_BIN_EXE_lockne"),
            state.to_str().unwrap(),
        ],
    );

    let said = String::from_utf8_lossy(&output.stdout);
    let wanted =
        format!(": {HOME_ANSWER}\n--via a : {FAR_ANSWER}\n--block : \n--direct : {HOME_ANSWER}\n");
    assert_eq!(said, wanted, "{}", text(&output));
}

/// Puts the second uplink into a VRF, which has a way to the internet.
fn with_vrf(home: &Home) -> lockne_lab::link::Link {
    let link = home.lab.add_second_uplink().unwrap();
    home.ip("link add vrf0 type vrf table 77");
    home.ip("link set vrf0 up");
    home.ip("link set eth1 master vrf0");
    // They went when the device changed its master.
    home.ip("-6 address replace 2001:db8:3::2/64 dev eth1 nodad");
    home.ip("-4 route add default via 203.0.113.129 dev eth1 table 77");
    home.ip("-6 route add default via 2001:db8:3::1 dev eth1 table 77");
    link
}

fn vrf_beside_the_tunnel_changes_nothing() {
    let home = Home::new();
    // The kernel's own rule for VRFs comes with the first one: once before lockne's rules, once after.
    let before = with_vrf(&home);
    home.tunnels_up();

    assert_arrives(
        &home,
        ["--via", "a"],
        ORIGIN,
        way::client(&home.lab.provider_a),
    );
    assert_arrives(&home, ["--direct"], ORIGIN, HOME);

    drop(before);
}

fn vrf_is_no_way_out() {
    let home = Home::with_tunnels();
    let link = with_vrf(&home);
    let wire = link.sniffer().unwrap();
    // The VRF is one: without a policy there is an answer.
    let ping = home
        .lab
        .home
        .command("ping")
        .args(["-c", "1", "-W", "10", "-I", "vrf0", "203.0.113.10"])
        .output()
        .unwrap();
    assert!(ping.status.success(), "{}", text(&ping));
    wire.settle().unwrap();
    let before = home.lab.leaks(&wire);
    assert!(!before.is_empty(), "the ping was not on the cable");

    for device in ["vrf0", "eth1"] {
        assert_closed(&home, bound_to(device), |_, _| true);
        assert_closed(&home, each_by(device), |_, _| true);
    }

    wire.settle().unwrap();
    assert_eq!(home.lab.leaks(&wire), before);
}

/// Runs tc(8) at home.
fn tc(home: &Home, arguments: &str) {
    let mut command = home.lab.home.command("tc");
    let output = command.args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "tc {arguments}: {}", text(&output));
}

fn fair_queues_on_every_device_change_nothing() {
    let home = Home::with_tunnels();
    for device in ["eth0", "a", "b"] {
        tc(&home, &format!("qdisc replace dev {device} root fq"));
    }
    each_way_is_taken(&home);
}

fn uplink_that_paces_and_limits_changes_nothing() {
    let home = Home::with_tunnels();
    tc(&home, "qdisc replace dev eth0 root fq maxrate 20mbit");
    each_way_is_taken(&home);
}

fn each_way_is_taken(home: &Home) {
    let (a, b) = (&home.lab.provider_a, &home.lab.provider_b);
    assert_arrives(home, ["--via", "a"], ORIGIN, way::client(a));
    assert_arrives(home, ["--via", "b"], ORIGIN, way::client(b));
    home.assert_no_leak();
    assert_arrives(home, ["--direct"], ORIGIN, HOME);
}
