//! A home with resolvers: one behind the tunnel, one in the local network, and one on the machine itself
//! that asks the latter.

use std::{
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use lockne_lab::{
    Namespace,
    packet::{Content, Flow, Transport},
};

use super::program;
use crate::home::{Home, text, wait_until};

/// What the resolver behind the tunnel answers: the server on the internet.
pub(crate) const FAR_ANSWER: &str = "203.0.113.10";
/// What the home's resolvers answer: nobody.
pub(crate) const HOME_ANSWER: &str = "192.0.2.51";

/// What programs may find in `/etc/resolv.conf`.
pub(crate) const RESOLV_CONFS: &[&str] = &[
    "nameserver 192.0.2.50\n",
    "nameserver 127.0.0.53\noptions edns0 trust-ad\n",
    "nameserver ::1\n",
    "nameserver 2001:db8:2::50\n",
    "nameserver 192.0.2.50\noptions use-vc\n",
    "nameserver 2001:db8:2::50\nnameserver 192.0.2.50\n",
];

/// Programs that ask in their own ways, each of which prints the address it found.
pub(crate) const PROGRAMS: &[&[&str]] = &[
    &["getent", "ahosts", "test.example"],
    &[
        "python3",
        "-c",
        "import socket; print(socket.getaddrinfo('test.example', 80, proto=6))",
    ],
    &["dig", "+short", "test.example"],
    &["dig", "+short", "+tcp", "test.example"],
    &["busybox", "nslookup", "test.example"],
    &[
        "curl",
        "--silent",
        "--verbose",
        "--max-time",
        "20",
        "http://test.example/",
    ],
    // Go's own resolver. Nobody listens there, and the error names the address.
    &[
        "env",
        "GODEBUG=netdns=go",
        "hey",
        "-n",
        "1",
        "-c",
        "1",
        "http://test.example:9/",
    ],
];

pub(crate) struct Bench {
    resolvers: std::cell::RefCell<Vec<Dnsmasq>>,
    pub(crate) home: Home,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let bench = Self {
            resolvers: std::cell::RefCell::default(),
            home: Home::new(),
        };
        let lab = &bench.home.lab;
        let far = ["10.8.1.1", "fd00:8:1::1"];
        let far_answer = format!("--address=/test.example/{FAR_ANSWER}");
        bench.resolver("far", lab.provider_a.namespace(), &far, &far_answer);
        let lan = ["192.0.2.50", "2001:db8:2::50"];
        let answer = format!("--address=/test.example/{HOME_ANSWER}");
        bench.resolver("lan", &lab.internet, &lan, &answer);
        // 192.0.2.2 is the machine's own address in the local network.
        let here = ["127.0.0.53", "::1", "192.0.2.2"];
        bench.resolver("here", &lab.home, &here, "--server=192.0.2.50");
        bench
    }

    /// A resolver that a plain tunnel leads to.
    pub(crate) fn resolver_on_the_plain_tunnel(&self) {
        let answer = format!("--address=/test.example/{FAR_ANSWER}");
        let provider = self.home.lab.provider_a.namespace();
        self.resolver("plain", provider, &["10.9.1.1"], &answer);
    }

    fn resolver(&self, name: &'static str, at: &Namespace, addresses: &[&str], source: &str) {
        let log = self.home.write(&format!("{name}.log"), "");
        let started = Dnsmasq::start(name, at, addresses, source, log);
        self.resolvers.borrow_mut().push(started);
    }

    /// Runs a program by `lockne run` with these arguments, with its own `/etc/resolv.conf`.
    pub(crate) fn run(&self, arguments: &[&str], resolv_conf: &str, program: &[&str]) -> Output {
        self.command(arguments, resolv_conf, program)
            .output()
            .unwrap()
    }

    /// Starts a program by `lockne run` and waits until it is under its policy.
    pub(crate) fn start(&self, arguments: &[&str], program: &[&str]) -> Child {
        let mut command = self.command(arguments, "", program);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        wait_until("the program is under its policy", || {
            let status = self.home.status().unwrap();
            status
                .policies
                .iter()
                .any(|policy| !policy.processes.is_empty())
        });
        child
    }

    /// The command of [`Self::run`].
    pub(crate) fn command(
        &self,
        arguments: &[&str],
        resolv_conf: &str,
        program: &[&str],
    ) -> Command {
        let mut command = self.with_files(resolv_conf);
        command
            .arg(env!("CARGO_BIN_EXE_lockne"))
            .arg("--state-dir")
            .arg(self.home.state_dir());
        command.arg("run").args(arguments).arg("--").args(program);
        command
    }

    /// Runs a program without lockne.
    pub(crate) fn run_free<S: AsRef<std::ffi::OsStr>>(
        &self,
        resolv_conf: &str,
        program: &[S],
    ) -> Output {
        self.with_files(resolv_conf).args(program).output().unwrap()
    }

    /// Asks by dig under these arguments of `lockne run`.
    pub(crate) fn dig(&self, arguments: &[&str], question: &str) -> Output {
        let program = dig(question);
        let program: Vec<&str> = program.iter().map(String::as_str).collect();
        self.run(arguments, "", &program)
    }

    /// A program that asks by musl's resolver.
    pub(crate) fn musl_program(&self) -> PathBuf {
        let source = self.home.write("names.c", program::LIBC);
        let binary = source.with_extension("");
        let output = Command::new("musl-gcc")
            .args([&source, std::path::Path::new("-o"), &binary])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        binary
    }

    /// The beginning of a command with these files of its own, in a mount namespace.
    fn with_files(&self, resolv_conf: &str) -> Command {
        let resolv_conf = self.home.write("resolv.conf", resolv_conf);
        let nsswitch = self.home.write("nsswitch.conf", "hosts: files dns\n");
        let mut command = self.home.lab.home.command("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg("mount --bind $0 /etc/resolv.conf && mount --bind $1 /etc/nsswitch.conf && shift && exec \"$@\"")
            .args([resolv_conf, nsswitch])
            .env_remove("LOCKNE_SOCKET")
            .stdin(Stdio::null());
        command
    }

    /// Whether the program found this address.
    #[allow(clippy::unused_self, reason = "reads well")]
    pub(crate) fn tells(&self, output: &Output, address: &str) -> bool {
        let said = [&*output.stdout, &*output.stderr].concat();
        String::from_utf8_lossy(&said).contains(address)
    }

    /// How many questions the home's resolvers have heard, for whatever name.
    pub(crate) fn home_heard(&self) -> usize {
        let resolvers = self.resolvers.borrow();
        let home = resolvers
            .iter()
            .filter(|it| matches!(it.name, "lan" | "here"));
        home.map(Dnsmasq::heard).sum()
    }

    /// Fails if a question came to the home's resolvers, or anything but a tunnel passed the home's cable.
    pub(crate) fn assert_home_heard_nothing(&self) {
        self.home.assert_no_leak();
        let resolvers = self.resolvers.borrow();
        for resolver in resolvers
            .iter()
            .filter(|it| matches!(it.name, "lan" | "here"))
        {
            assert_eq!(resolver.heard(), 0, "{}: {}", resolver.name, resolver.log());
        }
    }

    /// Forgets what the resolvers have heard, and what was on the cable.
    pub(crate) fn clear(&self) {
        for resolver in self.resolvers.borrow_mut().iter_mut() {
            resolver.skip = resolver.log().len();
        }
        self.home.wire.clear();
    }

    /// What was refused so far, all policies together.
    pub(crate) fn refused(&self) -> u64 {
        let policies = self.home.status().unwrap().policies;
        policies.iter().map(|policy| policy.traffic.refused).sum()
    }

    /// The ports of stubs on 127.0.0.1, of the first policy.
    pub(crate) fn stub_ports(&self) -> Vec<u16> {
        let mut command = self.home.lab.home.command("cat");
        let output = command.arg("/proc/self/net/udp").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let ports = text.lines().filter_map(|line| {
            let port = line.split_whitespace().nth(1)?.strip_prefix("0100007F:")?;
            u16::from_str_radix(port, 16).ok()
        });
        // Further policies take lower ones.
        ports
            .filter(|port| (640..=852).contains(port))
            .max()
            .into_iter()
            .collect()
    }
}

/// The command line of dig.
pub(crate) fn dig(question: &str) -> Vec<String> {
    let words = question.split(' ').map(ToOwned::to_owned);
    let mut program: Vec<String> = ["dig", "+short", "test.example"]
        .map(ToOwned::to_owned)
        .into();
    program.extend(words);
    program
}

/// Where a datagram went, as `ADDRESS:PORT`.
pub(crate) fn destination(flow: &Flow) -> Option<String> {
    let Content::Ip(ip) = &flow.packet.content else {
        return None;
    };
    match ip.transport {
        Transport::Udp { destination, .. } => {
            Some(SocketAddr::new(ip.destination, destination).to_string())
        }
        _ => None,
    }
}

/// A resolver that writes down what it is asked.
struct Dnsmasq {
    name: &'static str,
    log: PathBuf,
    skip: usize,
    process: Child,
}

impl Dnsmasq {
    fn start(
        name: &'static str,
        at: &Namespace,
        addresses: &[&str],
        source: &str,
        log: PathBuf,
    ) -> Self {
        let mut command = at.command("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
            ])
            .args([
                "--pid-file=",
                "--user=root",
                "--bind-interfaces",
                "--cache-size=0",
            ])
            .args(["--log-queries", source])
            .args((!source.starts_with("--server")).then_some("--local=/test.example/"))
            .arg(format!("--log-facility={}", log.display()))
            .args(
                addresses
                    .iter()
                    .map(|address| format!("--listen-address={address}")),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = command.spawn().unwrap();
        for address in addresses {
            let address = SocketAddr::new(address.parse().unwrap(), 53);
            wait_until("the resolver listens", || {
                let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(5));
                at.run(connect).unwrap().is_ok()
            });
        }
        Self {
            name,
            log,
            skip: 0,
            process,
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn heard(&self) -> usize {
        let log = self.log();
        log[self.skip..]
            .lines()
            .filter(|line| line.contains(" query["))
            .count()
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
