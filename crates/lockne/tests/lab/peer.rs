//! Providers that are not ours: `wireguard-go` at the other end, real clients through it, and the ways
//! an endpoint can be given.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU32,
            Ordering::{self, SeqCst},
        },
    },
    thread,
};

use lockne_lab::{
    Namespace,
    device::Device,
    internet::{HOME_V4, LAN_V4, ORIGIN_V4, ORIGIN_V6},
    origin::Service,
    packet::{Content, Transport},
    probe::Action,
    program::Killed,
    provider::Provider,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    desktop::with_own_mounts,
    fault::Hammers,
    home::{Daemon, Home, text, wait_until},
    tests, way,
};

tests! {
    curl_goes_through_a_provider_that_is_not_ours needs ["wireguard-go", "wg", "ip", "curl"],
    download_through_it_is_the_same_byte_for_byte needs ["wireguard-go", "wg", "ip", "curl"],
    iperf3_runs_through_it_both_ways needs ["wireguard-go", "wg", "ip", "iperf3"],
    tunnel_goes_to_an_ipv6_endpoint,
    resolver_that_is_dead_keeps_nobody_waiting_but_who_needs_it,
    endpoint_by_name_is_looked_up_outside_the_tunnel needs ["unshare", "mount"],
}

/// A `wireguard-go` that serves a provider; ended when dropped.
struct WireguardGo(Child);

impl WireguardGo {
    /// Puts it in the place of the provider's own.
    fn serve(home: &Home, provider: &Provider) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        provider.stop_wireguard();
        let namespace = provider.namespace();
        if let Some(own) = Device::find(namespace, "wg0").unwrap() {
            own.delete().unwrap();
        }
        // Its control sockets lie in one directory for the whole machine.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lk{}n{number}", std::process::id());
        let child = namespace
            .command("wireguard-go")
            .args(["--foreground", &name])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let serving = Self(child);
        let conf = provider.server_conf();
        let (keys, addresses) = split(&conf);
        let file = home.write("server.conf", &keys);
        let file = file.to_str().unwrap();
        wait_until("wireguard-go takes its configuration", || {
            let mut wg = namespace.command("wg");
            wg.args(["setconf", &name, file]);
            wg.output().unwrap().status.success()
        });
        for address in addresses {
            ip(namespace, &["address", "add", &address, "dev", &name]);
        }
        ip(namespace, &["link", "set", &name, "mtu", "1420", "up"]);
        serving
    }
}

impl Drop for WireguardGo {
    fn drop(&mut self) {
        // It takes its control socket with it only if it is asked.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// What `wg setconf` takes of a wg-quick file, and the addresses.
fn split(conf: &str) -> (String, Vec<String>) {
    let is_of_quick = |line: &&str| line.starts_with("Address") || line.starts_with("Table");
    let keys = conf.lines().filter(|line| !is_of_quick(line));
    let keys: Vec<&str> = keys.collect();
    let addresses = conf
        .lines()
        .find_map(|line| line.strip_prefix("Address = "))
        .unwrap();
    let addresses = addresses.split(", ").map(ToOwned::to_owned);
    (keys.join("\n") + "\n", addresses.collect())
}

fn ip(namespace: &Namespace, arguments: &[&str]) {
    let output = namespace.command("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
}

/// A home whose tunnel `a` ends at a `wireguard-go`.
fn with_foreign_provider() -> (Home, WireguardGo) {
    let home = Home::new();
    let provider = WireguardGo::serve(&home, &home.lab.provider_a);
    home.tunnel_up("a", &home.lab.provider_a);
    (home, provider)
}

fn client(home: &Home) -> [IpAddr; 2] {
    let provider = &home.lab.provider_a;
    [provider.client_v4().into(), provider.client_v6().into()]
}

fn curl_goes_through_a_provider_that_is_not_ours() {
    let (home, _provider) = with_foreign_provider();
    let urls = [
        format!("http://{ORIGIN_V4}/"),
        format!("http://[{ORIGIN_V6}]/"),
    ];

    for (url, address) in urls.iter().zip(client(&home)) {
        let said = home.must(["run", "--via", "a", "--", "curl", "-sS", "-m", "10", url]);

        assert_eq!(said, format!("{address}\n"));
        assert_eq!(home.lab.origin.times(Service::Http, address), 1);
    }
    assert_eq!(home.lab.origin.seen().len(), 2);
    home.assert_no_leak();
}

/// Bytes in which none can be lost, doubled or swapped without notice.
fn content() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(8 << 20);
    while bytes.len() < 8 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn download_through_it_is_the_same_byte_for_byte() {
    let (home, _provider) = with_foreign_provider();
    let content = content();
    for (host, to) in [
        (ORIGIN_V4.to_string(), IpAddr::from(ORIGIN_V4)),
        (format!("[{ORIGIN_V6}]"), IpAddr::from(ORIGIN_V6)),
    ] {
        let bind = || TcpListener::bind((to, 8000)).unwrap();
        let listener = home.lab.internet.run(bind).unwrap();
        let body = content.clone();
        let server = thread::spawn(move || {
            let (mut caller, address) = listener.accept().unwrap();
            let mut request = [0; 1024];
            assert!(caller.read(&mut request).unwrap() > 0);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            caller.write_all(head.as_bytes()).unwrap();
            caller.write_all(&body).unwrap();
            address.ip()
        });

        let url = format!("http://{host}:8000/");
        let mut curl = home.lockne(["run", "--via", "a", "--", "curl", "-sS", "-m", "60"]);
        let output = curl.arg(url).output().unwrap();

        assert!(output.status.success(), "{}", output.status);
        assert!(output.stdout == content, "{} bytes", output.stdout.len());
        assert!(client(&home).contains(&server.join().unwrap()));
    }
    home.assert_no_leak();
}

fn iperf3_runs_through_it_both_ways() {
    let (home, _provider) = with_foreign_provider();
    let server = home
        .lab
        .internet
        .command("iperf3")
        .args(["--server", "--port", "5201"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    let _server = Killed(server.unwrap());
    wait_until("iperf3 listens", || {
        let connect = || std::net::TcpStream::connect((ORIGIN_V4, 5201)).is_ok();
        home.lab.internet.run(connect).unwrap()
    });

    let ways = [(ORIGIN_V4.to_string(), 0), (ORIGIN_V6.to_string(), 1)];
    for (host, family) in ways {
        for direction in [&[][..], &["--reverse"]] {
            let mut iperf3 = home.lockne(["run", "--via", "a", "--", "iperf3", "--json"]);
            iperf3.args(["--time", "1", "--client", &host]);
            let output = iperf3.args(direction).output().unwrap();

            assert!(output.status.success(), "{}", text(&output));
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let connected = &report["start"]["connected"][0]["local_host"];
            assert_eq!(*connected, client(&home)[family].to_string());
            let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
            let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
            eprintln!(
                "iperf3 {host} {direction:?}: {:.0} Mbit/s",
                rate.unwrap() / 1e6
            );
            assert!(received > 100_000, "{received} bytes");
        }
    }
    home.assert_no_leak();
}

fn tunnel_goes_to_an_ipv6_endpoint() {
    let home = Home::new();
    let provider = &home.lab.provider_a;
    let endpoint = provider.endpoints()[1];
    let conf = provider.client_conf_to(endpoint);
    let file = home.write("a.conf", &conf);

    home.must(["tunnel", "up", file.to_str().unwrap()]);

    Hammers::through_a(&home).finish();
    let outer = home.wire.count(|packet| match &packet.content {
        Content::Ip(ip) => ip.destination == endpoint.ip(),
        _ => false,
    });
    assert!(outer > 0, "nothing went to {endpoint}");
}

/// Answers questions for addresses of the family IPv4, while it is told to.
struct NameServer {
    answers: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
}

impl NameServer {
    fn start(home: &Home, address: Ipv4Addr, answers: bool) -> Self {
        let bind = || UdpSocket::bind((LAN_V4, 53)).unwrap();
        let socket = home.lab.internet.run(bind).unwrap();
        let server = Self {
            answers: Arc::new(AtomicBool::new(answers)),
            asked: Arc::default(),
        };
        let (answers, asked) = (Arc::clone(&server.answers), Arc::clone(&server.asked));
        thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, caller)) = socket.recv_from(&mut query) {
                asked.fetch_add(1, SeqCst);
                if !answers.load(SeqCst) {
                    continue;
                }
                let query = &query[..length];
                // After the header comes one question: labels up to an empty one, type and class.
                let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
                let asks_v4 = query[end - 4..end - 2] == [0, 1];
                let mut answer = query[..end].to_vec();
                answer[2..4].copy_from_slice(&[0x81, 0x80]);
                answer[6..12].copy_from_slice(&[0, u8::from(asks_v4), 0, 0, 0, 0]);
                if asks_v4 {
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
                    answer.extend(address.octets());
                }
                let _ = socket.send_to(&answer, caller);
            }
        });
        server
    }

    fn answer(&self, answers: bool) {
        self.answers.store(answers, SeqCst);
    }

    /// Waits until it was asked since the last time.
    fn wait_until_asked(&self) {
        wait_until("the name server is asked", || {
            self.asked.swap(0, SeqCst) > 0
        });
    }
}

/// The file of the first provider with a name for its endpoint, and that one's address.
fn named(home: &Home) -> (PathBuf, Ipv4Addr) {
    let provider = &home.lab.provider_a;
    let endpoint = provider.endpoints()[0];
    let SocketAddr::V4(address) = endpoint else {
        panic!("the first one is of IPv4");
    };
    let conf = provider.client_conf();
    let named = conf.replace(&endpoint.to_string(), "vpn.example.net:51820");
    assert_ne!(*conf, named);
    (home.write("a.conf", &named), *address.ip())
}

/// Writes a resolv.conf that has the name server asked again after three seconds, for a quarter of a minute.
fn resolv_conf(home: &Home) -> PathBuf {
    let text = format!("nameserver {LAN_V4}\noptions timeout:3 attempts:5\n");
    home.write("resolv.conf", &text)
}

/// Starts a daemon that asks the name server.
fn daemon_that_asks(home: &Home) -> Daemon {
    let resolv = resolv_conf(home);
    let mut daemon: Command = home.lab.home.command("unshare");
    daemon
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg("mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"")
        .arg("sh")
        .arg(resolv)
        .arg(env!("CARGO_BIN_EXE_lockne"))
        .arg("--state-dir")
        .arg(home.state_dir())
        .arg("daemon");
    Daemon::start(home, daemon)
}

fn resolver_that_is_dead_keeps_nobody_waiting_but_who_needs_it() {
    // The pins of a daemon with mounts of its own would go with it.
    with_own_mounts(dead_resolver);
}

fn dead_resolver() {
    const FAILED: &str = "cannot bring the tunnel up again";
    let home = Home::new();
    let (file, address) = named(&home);
    let config = home.write(
        "lockne.toml",
        &format!("[tunnels.a]\nconfig = \"{}\"\n", file.display()),
    );
    let server = NameServer::start(&home, address, false);
    let arguments = ["--config", config.to_str().unwrap()];
    rustix::mount::mount_bind(resolv_conf(&home), "/etc/resolv.conf").unwrap();
    let daemon = home.daemon_with(&arguments);
    // Each is answered before the daemon knows whether there is such a name.
    let others_are_answered = || {
        server.wait_until_asked();
        for _ in 0..3 {
            assert!(home.status().is_some());
            assert!(
                home.lockne(["run", "--block", "true"])
                    .status()
                    .unwrap()
                    .success()
            );
        }
        assert!(!home.said().contains(FAILED), "it has given up too soon");
    };

    // A program that asks for the tunnel waits until it is there.
    let to = way::ORIGIN[0];
    let client = way::client(&home.lab.provider_a);
    let probe = way::probe(Action::Tcp, to);
    thread::scope(|scope| {
        let report = scope.spawn(|| home.run(["--via", "a"], &probe));
        others_are_answered();
        server.answer(true);
        way::assert_answered(&report.join().unwrap(), to, client, &probe);
    });

    // So does a tunnel whose daemon died, while its programs are silent.
    let hammers = Hammers::through_a(&home);
    server.answer(false);
    daemon.kill();
    server.asked.store(0, SeqCst);
    let _daemon = home.daemon_with(&arguments);
    others_are_answered();
    server.answer(true);
    hammers.wait_until_they_arrive();
}

fn endpoint_by_name_is_looked_up_outside_the_tunnel() {
    let home = Home::new();
    let (file, address) = named(&home);
    let _server = NameServer::start(&home, address, true);
    let file = file.to_str().unwrap();
    let _daemon = daemon_that_asks(&home);

    home.must(["tunnel", "up", file]);
    let hammers = Hammers::through_a(&home);
    for _ in 0..2 {
        // The programs are policed and their tunnel is gone while the name is looked up.
        home.must(["tunnel", "down", "a"]);
        home.must(["tunnel", "up", file]);
        hammers.wait_until_they_arrive();
    }

    // The daemon's own questions are all that left beside the tunnel.
    drop(hammers);
    let flows = home.leaks();
    assert!(!flows.is_empty(), "nobody asked");
    for flow in flows {
        let Content::Ip(ip) = &flow.packet.content else {
            panic!("{flow:?}");
        };
        let ends = [ip.source, ip.destination];
        let is_dns = matches!(
            ip.transport,
            Transport::Udp { source: 53, .. }
                | Transport::Udp {
                    destination: 53,
                    ..
                }
        );
        assert!(
            is_dns && ends.contains(&HOME_V4.into()) && ends.contains(&LAN_V4.into()),
            "{flow:?}"
        );
    }
}
