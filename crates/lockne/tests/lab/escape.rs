//! The escape suite: every way out, tried by an ordinary user, by root without `CAP_NET_ADMIN`, and by
//! root; without a policy first, so that each is known to be a way, and then under one.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use lockne_lab::{
    device::Device,
    escape::{self, Batch, Case, Helper, Outcome, Scene, Target, Way, Who},
    internet::{HOME_V4, HOME_V6, LAN_V4, LAN_V6},
    packet::Direction,
    program,
    sniffer::Sniffer,
};
use socket2::{Domain, Socket, Type};

use crate::{
    home::{Home, text},
    tests,
};

tests! {
    no_way_out_is_open_but_those_that_the_contract_names needs ["ip", "nsenter"],
    contract_names_each_open_way,
}

/// What came of a case.
#[derive(Clone, Debug)]
pub(crate) struct Result {
    said: Outcome,
    /// Packets of it on the home's cable.
    pub(crate) leaked: u64,
    /// Packets of it in the tunnel.
    pub(crate) tunnelled: u64,
}

/// What came of each case, in the order of the ways.
pub(crate) type Judged = BTreeMap<(usize, String), (Case, Result)>;

/// A lab with all that the ways want.
pub(crate) struct Stage {
    pub(crate) scene: Scene,
    tunnel: Sniffer,
    _helper: Helper,
    pub(crate) home: Home,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::around(Home::with_tunnels())
    }

    /// Around a home whose tunnel is the device `a`.
    pub(crate) fn around(home: Home) -> Self {
        // The server answers for every address that the attempts send to.
        for arguments in [
            "-4 route add local 198.18.0.0/15 dev lo",
            "-6 route add local 2001:db8:e5c::/48 dev lo",
        ] {
            let mut ip = home.lab.internet.command("ip");
            let output = ip.args(arguments.split(' ')).output().unwrap();
            assert!(output.status.success(), "ip {arguments}: {}", text(&output));
        }
        let helper = home.beside("helper");
        let setuid_env = home.beside("env");
        program::copy(&which::which("env").unwrap(), &setuid_env).unwrap();
        std::fs::set_permissions(&setuid_env, PermissionsExt::from_mode(0o4755)).unwrap();
        let tunnel = Device::find(&home.lab.home, "a").unwrap().unwrap();
        Self {
            scene: Scene {
                device: "eth0".to_owned(),
                source: (HOME_V4, HOME_V6),
                neighbour: (LAN_V4, LAN_V6),
                helper: Some(helper.clone()),
                setuid_env: Some(setuid_env),
            },
            tunnel: Sniffer::on(&tunnel).unwrap(),
            _helper: Helper::start(&home.lab.home, &helper).unwrap(),
            home,
        }
    }

    /// Tries every way, under a policy or free; `set` keeps its packets apart from those of others.
    pub(crate) fn try_all(&self, who: Who, is_policed: bool, set: u8) -> Vec<(Case, Outcome)> {
        let through = if is_policed {
            self.policed()
        } else {
            Vec::new()
        };
        let cases = escape::ways().flat_map(|way| way.cases(set, &self.scene));
        self.try_through(through, who, &self.scene, cases.collect())
    }

    /// The words that put a program under a policy.
    fn policed(&self) -> Vec<OsString> {
        let state = self.home.state_dir();
        let mut words: Vec<OsString> = vec![env!("CARGO_BIN_EXE_lockne").into()];
        words.extend(["--state-dir".into(), state.into()]);
        words.extend(["run", "--via", "a", "--"].map(OsString::from));
        words
    }

    /// Tries the cases by a program that was started by these words.
    pub(crate) fn try_through(
        &self,
        through: Vec<OsString>,
        who: Who,
        scene: &Scene,
        cases: Vec<Case>,
    ) -> Vec<(Case, Outcome)> {
        let batch = Batch {
            who: Some(who),
            scene: scene.clone(),
            cases: cases.clone(),
        };
        let arguments = batch.arguments(through).unwrap();
        let mut command = self.home.lab.home.command(&arguments[0]);
        command.args(&arguments[1..]).stdin(Stdio::null());
        let output = self.called(&cases, command);
        let outcomes = batch.outcomes(&output.stdout);
        let outcomes = outcomes.unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
        cases.into_iter().zip(outcomes).collect()
    }

    /// Runs the command while somebody on the link calls every port where a way waits for it.
    fn called(&self, cases: &[Case], mut command: Command) -> std::process::Output {
        let ports: Vec<_> = cases
            .iter()
            .filter(|case| Way::named(&case.way).unwrap().target == Target::Caller)
            .map(|case| case.to)
            .collect();
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let call = || {
                    while !is_done.load(Ordering::Relaxed) {
                        let calls: Vec<_> = ports.iter().map(|to| knock(*to)).collect();
                        thread::sleep(Duration::from_millis(50));
                        drop(calls);
                    }
                };
                self.home.lab.internet.run(call).unwrap();
            });
            let output = command.output().unwrap();
            is_done.store(true, Ordering::Relaxed);
            output
        })
    }

    pub(crate) fn judge(&self, tried: Vec<(Case, Outcome)>) -> Judged {
        self.home.wire.settle().unwrap();
        self.tunnel.settle().unwrap();
        let count = |sniffer: &Sniffer, case: &Case, direction| {
            sniffer.count(|packet| packet.direction == direction && case.is_mine(packet))
        };
        let judged = tried.into_iter().map(|(case, said)| {
            let result = Result {
                said,
                leaked: count(&self.home.wire, &case, Direction::Received),
                tunnelled: count(&self.tunnel, &case, Direction::Sent),
            };
            let place = escape::ways().position(|way| way.name == case.way).unwrap();
            let key = (place, format!("{} {:?}", case.way, case.family));
            (key, (case, result))
        });
        judged.collect()
    }
}

/// Asks for a connection from the neighbour's address.
fn knock(to: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    let from: IpAddr = if to.is_ipv4() {
        LAN_V4.into()
    } else {
        LAN_V6.into()
    };
    socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    // It is under way, or refused because nobody listens yet.
    drop(socket.connect(&to.into()));
    socket
}

fn no_way_out_is_open_but_those_that_the_contract_names() {
    let stage = Stage::new();
    let (mut table, mut wrong, mut tried) = (String::new(), String::new(), 0);

    let runs: Vec<_> = thread::scope(|scope| {
        let runs: Vec<_> = (0..)
            .zip(Who::ALL)
            .map(|(number, who)| {
                let stage = &stage;
                scope.spawn(move || {
                    let free = stage.try_all(who, false, number * 2);
                    let policed = stage.try_all(who, true, number * 2 + 1);
                    (who, free, policed)
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });

    for (who, free, policed) in runs {
        let (free, policed) = (stage.judge(free), stage.judge(policed));
        for ((key, (case, control)), (_, result)) in free.iter().zip(policed.values()) {
            let way = Way::named(&case.way).unwrap();
            let is_known = way.open.contains(&who);
            let verdict = if control.leaked == 0 {
                format!("skipped: not a way out here, {}", said(&control.said))
            } else if result.leaked > 0 {
                "OPEN".to_owned()
            } else if result.tunnelled > 0 {
                "closed: tunnelled".to_owned()
            } else {
                format!("closed: {}", said(&result.said))
            };
            if control.leaked > 0 {
                tried += 1;
            }
            writeln!(table, "{who:?} {}: {verdict}", key.1).unwrap();
            // Even what is no way out without a policy is none under one.
            if (result.leaked > 0) != (is_known && control.leaked > 0) {
                writeln!(
                    wrong,
                    "{who:?} {}: {verdict}: {control:?} {result:?}",
                    key.1
                )
                .unwrap();
            }
        }
    }

    eprintln!("{table}");
    assert!(wrong.is_empty(), "{wrong}");
    assert!(tried > 100, "only {tried} ways were ways here");
}

fn said(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Sent => "dropped".to_owned(),
        Outcome::Refused { call, errno } => format!("{call} is refused, {errno}"),
        Outcome::Hung => "it came to no end".to_owned(),
    }
}

fn contract_names_each_open_way() {
    let contract = include_str!("../../../../docs/leaks.md");

    for way in escape::ways().filter(|way| !way.open.is_empty()) {
        assert!(
            contract.contains(&format!("`{}`", way.name)),
            "`{}` is open and the contract does not say so",
            way.name
        );
    }
}
