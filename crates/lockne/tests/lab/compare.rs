//! The ways out, side by side: what else people use is tried by the same programs, in the same lab.
//!
//! `LOCKNE_COMPARISON=docs/comparison.md cargo test -p lockne --test lab` measures and writes the page.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Write as _,
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, TcpStream},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use lockne_lab::{
    Namespace,
    escape::{self, Case, Outcome, Scene, Way, Who, cgroups},
    namespace::Service,
};

use crate::{
    escape::{Judged, Stage},
    home::{Home, text, wait_until},
    tests,
};

tests! {
    comparison_has_each_way,
}

const PAGE: &str = include_str!("../../../../docs/comparison.md");

/// The table of routes into the tunnel, and the marks and the user whose packets ask it.
const TABLE: u32 = 77;
const MARKED: u32 = 0x77;
const CLOSED: u32 = 0x78;
const PROXY: u32 = 4242;

/// Something that puts a program into a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rival {
    Nothing,
    Namespace,
    Marks,
    ClosedMarks,
    Proxy,
    Lockne,
}

impl Rival {
    /// Those that are shown, with what stands above them.
    const SHOWN: [(Self, &'static str); 5] = [
        (Self::Namespace, "namespace"),
        (Self::Marks, "nft marks"),
        (Self::ClosedMarks, "nft marks, closed"),
        (Self::Proxy, "SOCKS wrapper"),
        (Self::Lockne, "lockne"),
    ];
}

type Results = BTreeMap<(Who, Rival), Judged>;

/// A home whose tunnel is the device `a`, and all the others' ways into it.
struct Rivals {
    proxy: Child,
    inside: Namespace,
    conf: PathBuf,
    _tunnel: Service,
    stage: Stage,
    // Behind the home: only then is everybody in them gone.
    marked: Group,
    closed: Group,
}

/// A cgroup of its own.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Self {
        let name = format!("lockne-compare-{}-{name}", std::process::id());
        let path = cgroups().unwrap().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// As nft has it: below /sys/fs/cgroup.
    fn nft(&self) -> String {
        let below = self.0.strip_prefix("/sys/fs/cgroup").unwrap();
        format!("socket cgroupv2 level 1 \"{}\"", below.display())
    }

    /// The words that start a program in it.
    fn words(&self) -> Vec<OsString> {
        let enter = format!("echo 0 > {}/cgroup.procs; exec \"$@\"", self.0.display());
        ["sh", "-ec", &enter, "sh"].map(OsString::from).into()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        wait_until("the cgroup is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

impl Rivals {
    fn new() -> Self {
        let home = Home::new();
        let tunnel = home.lab.provider_a.connect(&home.lab.home, "a").unwrap();
        home.ip_both(&format!("route add default dev a table {TABLE}"));
        home.ip_both(&format!(
            "route add unreachable default metric 9000 table {TABLE}"
        ));
        let selectors = [
            "iif vpn0".to_owned(),
            format!("fwmark {MARKED}"),
            format!("fwmark {CLOSED}"),
            format!("uidrange {PROXY}-{PROXY}"),
        ];
        for selector in selectors {
            home.ip_both(&format!("rule add {selector} table {TABLE} pref 90"));
        }
        let inside = inside(&home);
        let (marked, closed) = (Group::new("marked"), Group::new("closed"));
        nft(&home, &marked, &closed);
        let proxy = proxy(&home);
        let conf = "strict_chain\ntcp_read_time_out 3000\ntcp_connect_time_out 3000\n\
                    [ProxyList]\nsocks5 127.0.0.1 1080\n";
        Self {
            conf: home.write("proxychains.conf", conf),
            proxy,
            inside,
            _tunnel: tunnel,
            stage: Stage::around(home),
            marked,
            closed,
        }
    }

    /// The words that put a program under one, and what it finds there.
    fn words(&self, rival: Rival) -> (Vec<OsString>, Scene) {
        let scene = self.stage.scene.clone();
        match rival {
            Rival::Nothing => (Vec::new(), scene),
            Rival::Namespace => {
                let net = format!("--net={}", path(&self.inside));
                let words = ["nsenter", &net, "--"].map(OsString::from).into();
                let source = (INSIDE_V4, INSIDE_V6);
                (words, Scene { source, ..scene })
            }
            Rival::Marks => (self.marked.words(), scene),
            Rival::ClosedMarks => (self.closed.words(), scene),
            Rival::Proxy => {
                let words = ["proxychains4", "-q", "-f"].map(OsString::from);
                let words = words.into_iter().chain([self.conf.clone().into()]);
                (words.collect(), scene)
            }
            Rival::Lockne => unreachable!("it has a home of its own"),
        }
    }
}

impl Drop for Rivals {
    fn drop(&mut self) {
        self.proxy.kill().unwrap();
        self.proxy.wait().unwrap();
    }
}

const INSIDE_V4: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);
const INSIDE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xc8, 0, 0, 0, 0, 0, 2);

fn path(namespace: &Namespace) -> String {
    let fd = namespace.as_fd().as_raw_fd();
    format!("/proc/{}/fd/{fd}", std::process::id())
}

/// A namespace whose only device leads home, which routes what comes from there into the tunnel.
fn inside(home: &Home) -> Namespace {
    let inside = Namespace::create("inside").unwrap();
    let settings = [
        ("ipv4/ping_group_range", "0 2147483647"),
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
    ];
    inside.set_all(&settings).unwrap();
    let forward = [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];
    home.lab.home.set_all(&forward).unwrap();
    home.ip(&format!(
        "link add vpn0 type veth peer name eth0 netns {}",
        path(&inside)
    ));
    home.ip("address add 10.200.0.1/24 dev vpn0");
    home.ip("-6 address add fd00:c8::1/64 dev vpn0 nodad");
    home.ip("link set vpn0 up");
    for words in [
        "link set lo up",
        "address add 10.200.0.2/24 dev eth0",
        "-6 address add fd00:c8::2/64 dev eth0 nodad",
        "link set eth0 up",
        "route add default via 10.200.0.1",
        "-6 route add default via fd00:c8::1",
    ] {
        must(inside.command("ip").args(words.split(' ')));
    }
    inside
}

fn nft(home: &Home, marked: &Group, closed: &Group) {
    let rules = format!(
        "table inet rivals {{
           chain output {{
             type route hook output priority mangle;
             {} meta mark set {MARKED}
             {} meta mark set {CLOSED}
           }}
           chain late {{
             type filter hook postrouting priority filter;
             meta mark {CLOSED} oifname != {{ \"a\", \"lo\" }} drop
           }}
           chain source {{
             type nat hook postrouting priority srcnat;
             oifname \"a\" masquerade
           }}
         }}",
        marked.nft(),
        closed.nft()
    );
    let file = home.write("rivals.nft", &rules);
    must(home.lab.home.command("nft").arg("-f").arg(file));
}

/// A proxy whose user's packets go into the tunnel.
fn proxy(home: &Home) -> Child {
    let user = PROXY.to_string();
    let mut command = home.lab.home.command("setpriv");
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
    command.args(["microsocks", "-i", "127.0.0.1", "-p", "1080"]);
    let proxy = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let proxy = proxy.spawn().unwrap();
    let serves = || TcpStream::connect(("127.0.0.1", 1080)).is_ok();
    wait_until("the proxy serves", || home.lab.home.run(serves).unwrap());
    proxy
}

fn must(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
}

fn measure() -> Results {
    let rivals = Rivals::new();
    let order = [
        Rival::Nothing,
        Rival::Namespace,
        Rival::Marks,
        Rival::ClosedMarks,
        Rival::Proxy,
    ];
    let tried = each_who(|number, who| {
        let tried = (number * 5..).zip(order).map(|(set, rival)| {
            eprintln!("{who:?}: {rival:?}");
            let (words, scene) = rivals.words(rival);
            let cases = escape::ways().flat_map(|way| way.cases(set, &scene));
            let cases = cases.collect();
            let tried = rivals.stage.try_through(words, who, &scene, cases);
            ((who, rival), tried)
        });
        tried.collect()
    });
    let mut results = judge(&rivals.stage, tried);
    drop(rivals);
    let stage = Stage::new();
    let tried = each_who(|set, who| {
        eprintln!("{who:?}: lockne");
        let tried = stage.try_all(who, true, set);
        vec![((who, Rival::Lockne), tried)]
    });
    results.extend(judge(&stage, tried));
    results
}

type Tried = Vec<((Who, Rival), Vec<(Case, Outcome)>)>;

/// When all have tried: none disturbs what another counts.
fn judge(stage: &Stage, tried: Tried) -> Results {
    let judged = tried
        .into_iter()
        .map(|(key, tried)| (key, stage.judge(tried)));
    judged.collect()
}

/// Does it for each at the same time.
fn each_who(work: impl Fn(u8, Who) -> Tried + Sync) -> Tried {
    thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = (0..)
            .zip(Who::ALL)
            .map(|(number, who)| scope.spawn(move || work(number, who)))
            .collect();
        let done = running.into_iter().map(|it| it.join().unwrap());
        done.flatten().collect()
    })
}

/// What came of a way for somebody.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is none here, without anything.
    NoWay,
    Open,
    Tunnelled,
    Silent,
}

fn verdict(results: &Results, way: &Way, who: Who, rival: Rival) -> Verdict {
    let of = |rival| results[&(who, rival)].values();
    let controls = of(Rival::Nothing).zip(of(rival));
    let mine: Vec<_> = controls
        .filter(|((case, control), _)| case.way == way.name && control.leaked > 0)
        .map(|(_, (_, result))| result)
        .collect();
    if mine.is_empty() {
        Verdict::NoWay
    } else if mine.iter().any(|it| it.leaked > 0) {
        Verdict::Open
    } else if mine.iter().any(|it| it.tunnelled > 0) {
        Verdict::Tunnelled
    } else {
        Verdict::Silent
    }
}

fn cell(results: &Results, way: &Way, rival: Rival) -> String {
    // What listens before is bound to the address inside, which the home has not.
    if (way.name, rival) == ("inherited-listener", Rival::Namespace) {
        return "not tried".to_owned();
    }
    let all = Who::ALL.map(|who| (who, verdict(results, way, who, rival)));
    let tried: Vec<_> = all.iter().filter(|(_, it)| *it != Verdict::NoWay).collect();
    let open: Vec<_> = tried
        .iter()
        .filter(|(_, it)| *it == Verdict::Open)
        .collect();
    if open.is_empty() {
        let is_tunnelled = tried.iter().any(|(_, it)| *it == Verdict::Tunnelled);
        return if is_tunnelled { "tunnel" } else { "nothing" }.to_owned();
    }
    if open.len() == tried.len() {
        return "**open**".to_owned();
    }
    let names: Vec<_> = open.iter().map(|(who, _)| name(*who)).collect();
    format!("**open** ({})", names.join(", "))
}

const fn name(who: Who) -> &'static str {
    match who {
        Who::User => "user",
        Who::RootWithoutNetAdmin => "root-",
        Who::Root => "root",
    }
}

fn page(results: &Results) -> Result<String, std::fmt::Error> {
    let mut page = String::new();
    let heads = Rival::SHOWN.map(|(_, head)| head).join(" | ");
    writeln!(
        page,
        "{}",
        HEAD.trim_end().replace("{VERSIONS}", &versions())
    )?;
    writeln!(page, "\n## How many are open\n")?;
    writeln!(
        page,
        "| who tries | ways | {heads} |\n|---|--:|--:|--:|--:|--:|--:|"
    )?;
    for who in Who::ALL {
        let count = |rival, wanted: fn(Verdict) -> bool| {
            let verdicts = escape::ways().map(|way| verdict(results, way, who, rival));
            verdicts.filter(|it| wanted(*it)).count()
        };
        let tried = count(Rival::Lockne, |it| it != Verdict::NoWay);
        let open =
            Rival::SHOWN.map(|(rival, _)| count(rival, |it| it == Verdict::Open).to_string());
        let who = match who {
            Who::User => "a user",
            Who::RootWithoutNetAdmin => "root- (without `CAP_NET_ADMIN`)",
            Who::Root => "root",
        };
        writeln!(page, "| {who} | {tried} | {} |", open.join(" | "))?;
    }
    writeln!(page, "\n## Way by way\n")?;
    writeln!(
        page,
        "| way | what it is | {heads} |\n|---|---|---|---|---|---|---|"
    )?;
    let is_one = |way: &Way| {
        let mut all = Who::ALL.into_iter();
        all.any(|who| verdict(results, way, who, Rival::Lockne) != Verdict::NoWay)
    };
    for way in escape::ways().filter(|way| is_one(way)) {
        let cells = Rival::SHOWN.map(|(rival, _)| cell(results, way, rival));
        writeln!(
            page,
            "| `{}` | {} | {} |",
            way.name,
            way.tries,
            cells.join(" | ")
        )?;
    }
    let none: Vec<_> = escape::ways()
        .filter(|way| !is_one(way))
        .map(|way| format!("`{}`", way.name))
        .collect();
    if !none.is_empty() {
        let none = none.join(", ");
        writeln!(
            page,
            "\nNo ways on the machine where this was measured: {none}."
        )?;
    }
    Ok(page)
}

fn versions() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let kernel = kernel
        .trim()
        .split('-')
        .next()
        .unwrap_or_default()
        .to_owned();
    let version = |package: &str| {
        let mut query = Command::new("dpkg-query");
        query.args(["--show", "--showformat", "${Version}", package]);
        String::from_utf8(query.output().unwrap().stdout).unwrap()
    };
    let packages = ["nftables", "proxychains4", "microsocks"];
    let packages = packages.map(|it| format!("{it} {}", version(it)));
    format!("Linux {kernel}, {}", packages.join(", "))
}

/// Measures, and writes the page.
pub(crate) fn write(page_path: &Path) {
    // Cargo runs tests in the directory of their package.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join(page_path);
    let results = measure();
    let written: io::Result<()> = fs::write(&path, page(&results).unwrap());
    written.unwrap();
    eprintln!("{} is written", path.display());
}

fn comparison_has_each_way() {
    for way in escape::ways() {
        let name = format!("`{}`", way.name);
        assert!(
            PAGE.contains(&name),
            "{name} is not compared: measure again"
        );
    }
}

const HEAD: &str = "\
# Side by side

Which ways out of a tunnel are open, in lockne and in what else people use. Measured, not argued: the same small programs
(the catalogue of `lockne_lab::escape`, as in `lockne leaktest`) are tried in the same lab, and what counts is packets on the
home's cable. A way is tried without anything first; where its packet is not seen then, it is no way here and does not
count. One command measures and writes this page:

    LOCKNE_COMPARISON=docs/comparison.md cargo test -p lockne --test lab

Measured with {VERSIONS}. The tunnel is up, and the same for all: embedded WireGuard. What a tunnel that fails, flaps
or is made anew does is not compared here; for lockne it is in [leaks.md](leaks.md).

| column | what it is |
|---|---|
| namespace | A network namespace with a veth pair; the home masquerades what comes from it into the tunnel, by a table that ends in `unreachable`. |
| nft marks | A cgroup; nft's `socket cgroupv2` sets a mark in the output hook, a rule leads the mark to the same table, and the tunnel masquerades. The shape of split tunnels that go by cgroup. |
| nft marks, closed | The same, and a chain behind the routing drops what has the mark and leaves by another device than the tunnel. |
| SOCKS wrapper | proxychains4 before the program; microsocks at home as a user whose packets are led to the same table. |
| lockne | `lockne run --via a`. |

These are plain set-ups made by hand for this page, as a careful user makes them, and no product: Mullvad's and Mozilla's
programs have firewalls of their own around theirs. What they do by design differs too. A namespace gives
the program another machine's view: no neighbours, no services on this machine's loopback. A SOCKS wrapper is for
programs that let themselves be wrapped, and carries connections only.

**open**: packets on the home's cable, for everybody for whom it is a way or for those in brackets (user; root-: root
without `CAP_NET_ADMIN`; root). tunnel: none, and they came through the tunnel, for one of them at least. nothing: none
anywhere. not tried: the way as it is written does not fit.
";
