//! Rules, tunnels, daemons and programs that change in any order: who has a policy is tunnelled or silent.
//!
//! Each program sends to a port and to addresses of its own, so that what is seen on the home's cable says whose it is:
//! datagrams, connections that stay, and pings by a program that is setuid and by a raw socket. The order is
//! drawn from a seed, which is printed: `LOCKNE_ORDER_SEED` draws it again, `LOCKNE_ORDER_SECONDS` makes it longer.
//! What the system makes of it in the meantime is not drawn.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use lockne_lab::{
    packet::{Content, Direction, Ip, Transport},
    probe::{Action, Outcome},
    program,
};
use rustix::fs::{StatVfsMountFlags, statvfs};

use self::{hosts::Hosts, shell::Program};
use crate::{
    event::flush,
    home::{Daemon, Home, wait_until},
    leaktest::detach,
    tests,
    way::{ORIGIN, assert_answered, client, probe},
};

tests! {
    policed_programs_are_tunnelled_or_silent_in_whatever_order_things_happen needs ["bash", "ip", "ping"],
    order_without_a_guard_and_rules_is_seen_to_leak needs ["bash", "ip", "ping"],
}

mod hosts;
mod shell;

const SEED: u64 = 0x5eed_0de4_2026_0001;
const SECONDS: u64 = 15;
/// The port of the first program.
const PORTS: u16 = 20_000;
/// So many programs at a time: each is a shell that forks all the time.
const PROGRAMS: usize = 6;

/// Numbers that look like chance and are the same again from the same seed (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % end
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

/// How many packets of a program were seen.
type Seen = BTreeMap<Kind, u64>;

/// All that changes, and what is known of it for certain.
struct Order {
    daemon: Option<Daemon>,
    programs: Vec<Program>,
    /// Nobody polices it, and so it must be seen.
    witness: Program,
    next: u16,
    /// How often the ports of policed programs were seen before they were policed.
    policed: BTreeMap<u16, Seen>,
    log: Vec<String>,
    ruled: PathBuf,
    ping: PathBuf,
    config: PathBuf,
    _hosts: Hosts,
    home: Home,
}

/// What a program has sent, as it is told on the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Datagram,
    Connection,
    Ping,
}

const KINDS: [Kind; 3] = [Kind::Datagram, Kind::Connection, Kind::Ping];

/// A copy of ping that runs as another user than who starts it.
fn setuid_ping(home: &Home) -> PathBuf {
    let ping = home.beside("ping");
    program::copy(&which::which("ping").unwrap(), &ping).unwrap();
    std::os::unix::fs::chown(&ping, Some(4242), Some(4242)).unwrap();
    std::fs::set_permissions(&ping, PermissionsExt::from_mode(0o4755)).unwrap();
    let is_ignored = statvfs(&ping)
        .unwrap()
        .f_flag
        .contains(StatVfsMountFlags::NOSUID);
    assert!(!is_ignored, "`{}` does not become setuid", ping.display());
    ping
}

impl Order {
    fn new() -> Self {
        let home = Home::new();
        let ruled = home.beside("ruled");
        let bash = which::which("bash").unwrap();
        program::copy(&bash, &ruled).unwrap();
        let hosts = Hosts::start(&home);
        let ping = setuid_ping(&home);
        let witness = Program::start(home.lab.home.command("bash"), PORTS, &ping);
        let mut order = Self {
            daemon: None,
            programs: Vec::new(),
            witness,
            next: PORTS + 1,
            policed: BTreeMap::new(),
            log: Vec::new(),
            config: home.write("lockne.toml", ""),
            ruled,
            ping,
            _hosts: hosts,
            home,
        };
        order.write_rules("a", false);
        order.start_daemon();
        order
    }

    fn start_daemon(&mut self) {
        let config = self.config.to_str().unwrap();
        self.daemon = Some(self.home.daemon_with(&["--config", config]));
    }

    /// Writes the configuration anew: one rule that is always there, and perhaps another one before it.
    fn write_rules(&self, via: &str, more: bool) {
        let mut text = String::new();
        for (name, provider) in [
            ("a", &self.home.lab.provider_a),
            ("b", &self.home.lab.provider_b),
        ] {
            let conf = self.home.conf(name, provider);
            write!(text, "[tunnels.{name}]\nconfig = \"{}\"\n", conf.display()).unwrap();
        }
        if more {
            text += "[[rule]]\nname = \"other\"\nexe = \"/nowhere/other\"\nvia = \"b\"\n";
        }
        write!(
            text,
            "[[rule]]\nname = \"ruled\"\nexe = \"{}\"\nvia = \"{via}\"\n",
            self.ruled.display()
        )
        .unwrap();
        let next = self.home.write("next", &text);
        std::fs::rename(next, &self.config).unwrap();
    }

    /// How many packets each program has sent by the home's cable, and what else went there.
    ///
    /// Of connections, only what opens them and what has data: the kernel answers for those that are over by itself.
    fn seen(&self) -> (BTreeMap<u16, Seen>, Vec<String>) {
        let mut by_port: BTreeMap<u16, Seen> = BTreeMap::new();
        let mut add = |port, kind, packets| {
            *by_port.entry(port).or_default().entry(kind).or_default() += packets;
        };
        let mut others = Vec::new();
        for flow in self.home.leaks() {
            if flow.packet.direction == Direction::Sent {
                // The internet's answers to who may send.
                continue;
            }
            match &flow.packet.content {
                Content::Ip(Ip {
                    transport: Transport::Udp { destination, .. },
                    ..
                }) if *destination >= PORTS => {
                    add(*destination, Kind::Datagram, flow.packets);
                }
                Content::Ip(Ip {
                    destination,
                    transport,
                    ..
                }) if let Some(port) = Hosts::port(*destination) => match transport {
                    Transport::Tcp { flags, .. } if flags.is_syn() || flags.is_push() => {
                        add(port, Kind::Connection, flow.packets);
                    }
                    Transport::Tcp { .. } => {}
                    Transport::Icmp { kind: 8, .. } => add(port, Kind::Ping, flow.packets),
                    other => others.push(format!("{other:?} to {destination}")),
                },
                other => others.push(format!("{other:?}")),
            }
        }
        (by_port, others)
    }

    /// From now on nothing of it may be seen.
    fn judge(&mut self, port: u16) {
        let before = self.seen().0.remove(&port).unwrap_or_default();
        self.policed.entry(port).or_insert(before);
    }

    /// Whose packets were seen, and must not have been.
    fn leaks(&self) -> Vec<String> {
        let (by_port, mut leaks) = self.seen();
        for (port, before) in &self.policed {
            for (kind, now) in by_port.get(port).into_iter().flatten() {
                let before = before.get(kind).copied().unwrap_or_default();
                if *now > before {
                    leaks.push(format!("{} of {kind:?} by {port}", now - before));
                }
            }
        }
        leaks
    }

    /// Runs a lockne command, which may fail; says whether it did what it should.
    fn lockne(&mut self, arguments: &[&str]) -> bool {
        let output = self.home.lockne([]).args(arguments).output().unwrap();
        // Each refusal has a reason; a panic has none.
        assert_ne!(output.status.code(), Some(101), "{arguments:?}: {output:?}");
        output.status.success()
    }

    fn launch(&mut self, command: Command, policed: bool) {
        if self.programs.len() == PROGRAMS {
            drop(self.programs.remove(0));
        }
        let port = self.next;
        self.next += 1;
        if policed {
            self.judge(port);
        }
        self.programs
            .push(Program::start(command, port, &self.ping));
    }

    fn run(&mut self, how: &[&str]) {
        let mut command = self.home.lockne(["run"]);
        command.args(how).args(["--", "bash"]);
        self.launch(command, true);
    }

    /// One step, and what it was.
    fn step(&mut self, dice: &mut Dice) {
        const WAYS: [&[&str]; 4] = [
            &["--via", "a"],
            &["--via", "b"],
            &["--via", "a,b"],
            &["--block"],
        ];
        let way = WAYS[dice.below(WAYS.len())];
        let tunnel = dice.of(&["a", "b"]);
        let which = dice.below(self.programs.len().max(1));
        let what = dice.below(20);
        let serves = self.daemon.is_some();
        self.log
            .push(format!("{what} {way:?} {tunnel} {which} daemon {serves}"));
        match what {
            0..=2 if serves => self.run(way),
            3 | 4 => {
                let command = self.home.lab.home.command(&self.ruled);
                self.launch(command, true);
            }
            5 | 6 => {
                let command = self.home.lab.home.command("bash");
                self.launch(command, false);
            }
            7..=9 if serves && !self.programs.is_empty() => {
                let (pid, port) = (self.programs[which].pid(), self.programs[which].port);
                let attached = self.lockne(&[&["attach", "--pid", &pid], way].concat());
                if attached {
                    self.judge(port);
                }
            }
            10 if serves && !self.programs.is_empty() => {
                let (pid, port) = (self.programs[which].pid(), self.programs[which].port);
                self.policed.remove(&port);
                self.lockne(&["detach", "--pid", &pid]);
            }
            11 | 12 if !self.programs.is_empty() => {
                let word = dice.of(&["e", "f", "f", "x"]);
                self.programs[which].say(word);
            }
            13 => self.write_rules(dice.of(&["a", "b", "block"]), dice.below(2) == 0),
            14 if dice.below(3) == 0 => drop(self.home.write("lockne.toml", "[[rule]]\nvia = 7\n")),
            15 if serves => {
                self.lockne(&["tunnel", "down", tunnel]);
            }
            16 if serves => {
                let conf = self.config.with_file_name(format!("{tunnel}.conf"));
                self.lockne(&["tunnel", "up", conf.to_str().unwrap()]);
            }
            17 => {
                let how = dice.of(&["delete dev", "set down dev", "set up dev"]);
                let mut command = self.home.lab.home.command("ip");
                // It may not be there.
                let output = command
                    .arg("link")
                    .args(how.split(' '))
                    .arg(tunnel)
                    .output();
                drop(output.unwrap());
            }
            18 => flush(&self.home),
            19 => match self.daemon.take() {
                Some(daemon) => daemon.kill(),
                None => self.start_daemon(),
            },
            _ => {}
        }
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    let Ok(text) = env::var(name) else {
        return otherwise;
    };
    let hex = text
        .strip_prefix("0x")
        .map(|hex| u64::from_str_radix(hex, 16));
    hex.unwrap_or_else(|| text.parse()).expect("a number")
}

fn policed_programs_are_tunnelled_or_silent_in_whatever_order_things_happen() {
    let seed = number("LOCKNE_ORDER_SEED", SEED);
    eprintln!("LOCKNE_ORDER_SEED={seed:#x}");
    let mut dice = Dice(seed.max(1));
    let mut order = Order::new();
    let end = Instant::now() + Duration::from_secs(number("LOCKNE_ORDER_SECONDS", SECONDS));

    while Instant::now() < end {
        order.step(&mut dice);
        let leaks = order.leaks();
        assert!(
            leaks.is_empty(),
            "LOCKNE_ORDER_SEED={seed:#x}: {leaks:#?} after {:#?}",
            order.log
        );
    }

    eprintln!("{} steps, {} programs", order.log.len(), order.next - PORTS);
    let witnessed = order
        .seen()
        .0
        .remove(&order.witness.port)
        .unwrap_or_default();
    assert!(
        KINDS.iter().all(|kind| witnessed.contains_key(kind)),
        "{witnessed:?}"
    );
    // Silence is not all that it can.
    if order.daemon.is_none() {
        order.start_daemon();
    }
    for (tunnel, provider) in [
        ("a", &order.home.lab.provider_a),
        ("b", &order.home.lab.provider_b),
    ] {
        let probe = probe(Action::UdpUnconnected, ORIGIN[0]).waiting(Duration::from_secs(3));
        let mut report = None;
        // An emulated machine with these programs takes a minute for what else takes a moment.
        let deadline = Instant::now() + Duration::from_mins(3);
        while Instant::now() < deadline {
            let conf = order.home.conf(tunnel, provider);
            let mut up = order.home.lockne(["tunnel", "up", conf.to_str().unwrap()]);
            drop(up.output().unwrap());
            drop(
                order
                    .home
                    .lab
                    .home
                    .command("ip")
                    .args(["link", "set", "dev", tunnel, "up"])
                    .output(),
            );
            let now = order.home.run(["--via", tunnel], &probe);
            let is_answered = matches!(now.outcome, Outcome::Answered { .. });
            report = Some(now);
            if is_answered {
                break;
            }
        }
        assert_answered(&report.unwrap(), ORIGIN[0], client(provider), &probe);
    }
    let leaks = order.leaks();
    assert!(leaks.is_empty(), "{leaks:#?}");
}

/// The judge is no good if it never condemns.
fn order_without_a_guard_and_rules_is_seen_to_leak() {
    let mut order = Order::new();
    order.run(&["--via", "a"]);
    let command = order.home.lab.home.command(&order.ruled);
    order.launch(command, true);
    // It may still wait for the daemon.
    wait_until("both are policed", || {
        let policies = order.home.status().unwrap().policies;
        policies.iter().map(|it| it.processes.len()).sum::<usize>() >= 2
    });
    assert!(order.leaks().is_empty());

    order.daemon.take().unwrap().kill();
    detach(&order.home.state_dir().join("bpf/guard_egress"));
    flush(&order.home);

    wait_until("both are seen, by each kind", || {
        order.leaks().len() == 2 * KINDS.len()
    });
}
