//! The small network on which the ways are measured, and a way that is set up on it.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use which::which;

use super::{
    load::Load,
    network::{Background, Holder, Namespace, until},
    way::Way,
};
use crate::kernels::run_command as run;

/// Where the server is, by whatever cable or tunnel.
const SERVER: &str = "10.0.9.1";

/// The configuration of the lockne that is measured, in its directory.
const CONFIG: &str = "lockne.toml";

/// The programs that are measured.
pub(crate) struct Programs {
    pub(crate) lockne: PathBuf,
    pub(crate) load: PathBuf,
    pub(crate) peer: PathBuf,
    /// What lockne costs by the kernel's statistics.
    pub(crate) cost: PathBuf,
    /// The demo that finds the process of a packet by the cookie of its socket.
    pub(crate) cookie: PathBuf,
    /// The current one; the machine's own is the old one. Or why there is none.
    pub(crate) wireguard_go: Result<PathBuf, String>,
    /// As above.
    pub(crate) boringtun: Result<PathBuf, String>,
}

impl Programs {
    /// The program that is the WireGuard of a way, or why there is none.
    fn wireguard(&self, way: Way) -> Result<&Path, &String> {
        match way {
            Way::WireguardGo => self.wireguard_go.as_deref(),
            Way::Boringtun => self.boringtun.as_deref(),
            _ => Ok(Path::new("wireguard-go")),
        }
    }
}

/// The small network on which all are measured.
pub(crate) struct Scene {
    programs: Programs,
    place: tempfile::TempDir,
    _servers: Vec<Background>,
    home: Namespace,
    boxed: Namespace,
    _gate: Namespace,
    marked: Namespace,
    far: Namespace,
    keys: Keys,
}

struct Keys {
    home: [String; 2],
    far: [String; 2],
}

/// A way that is set up; it is taken down when this is dropped.
pub(crate) struct Open<'a> {
    scene: &'a Scene,
    way: Way,
    /// Ended from the first to the last: who is policed before lockne.
    holds: Vec<Background>,
    /// The process that makes the way, if there is one.
    maker: Option<u32>,
    cgroup: Option<Cgroup>,
    /// Devices that outlive who made them.
    links: Vec<(&'a Namespace, String)>,
    /// Ended before all else.
    load: Option<Holder>,
}

impl Scene {
    /// Builds it.
    pub(crate) fn build(programs: Programs) -> Result<Self> {
        let far = Namespace::new()?;
        let home = Namespace::new()?;
        let boxed = Namespace::new()?;
        let gate = Namespace::new()?;
        let marked = Namespace::new()?;
        let place = tempfile::tempdir()?;

        far.ip(&format!("address add {SERVER}/32 dev lo"))?;
        home.cable(("eth0", "10.0.1.2/24"), &far, ("e0", "10.0.1.1/24"))?;
        home.cable(("tun0", "10.0.2.2/24"), &far, ("t0", "10.0.2.1/24"))?;
        gate.cable(("eth0", "10.0.3.2/24"), &far, ("n0", "10.0.3.1/24"))?;
        boxed.cable(("eth0", "10.0.4.2/24"), &gate, ("box0", "10.0.4.1/24"))?;
        marked.cable(("eth0", "10.0.5.2/24"), &far, ("m0", "10.0.5.1/24"))?;
        marked.cable(("tun0", "10.0.6.2/24"), &far, ("m1", "10.0.6.1/24"))?;
        for (namespace, gateway) in [
            (&home, "10.0.1.1"),
            (&gate, "10.0.3.1"),
            (&boxed, "10.0.4.1"),
            (&marked, "10.0.5.1"),
        ] {
            namespace.ip(&format!("route add default via {gateway}"))?;
        }
        run(gate
            .command("sysctl")
            .args(["-qw", "net.ipv4.ip_forward=1"]))?;
        let masquerade = "table ip nat { chain post { type nat hook postrouting priority 100; oifname \"eth0\" masquerade; }; }";
        run(gate.command("nft").arg(masquerade))?;

        let mut servers = Vec::new();
        let mut pinned = |program: &Path, words: &[&str]| -> Result<()> {
            let mut command = far.command("taskset");
            servers.push(Background::start(
                command.args(["-c", "1"]).arg(program).args(words),
            )?);
            Ok(())
        };
        pinned(Path::new("iperf3"), &["-s"])?;
        pinned(&programs.load, &["serve", SERVER])?;
        if which("microsocks").is_ok() {
            let mut socks = home.command("microsocks");
            servers.push(Background::start(socks.args([
                "-i",
                "127.0.0.1",
                "-p",
                "1080",
            ]))?);
            let conf = "strict_chain\nquiet_mode\n[ProxyList]\nsocks5 127.0.0.1 1080\n";
            fs::write(place.path().join("proxychains.conf"), conf)?;
        }
        fs::write(place.path().join(CONFIG), "")?;
        let scene = Self {
            programs,
            place,
            _servers: servers,
            home,
            boxed,
            _gate: gate,
            marked,
            far,
            keys: Keys {
                home: keys()?,
                far: keys()?,
            },
        };
        let direct = scene.open(Way::Direct)?;
        until("the server", || {
            run(&mut direct.load("rtt", &["0.01"])).map(|_| true)
        })?;
        until("iperf3", || {
            run(direct.iperf3(false).args(["-n", "1K"])).map(|_| true)
        })?;
        drop(direct);
        Ok(scene)
    }

    /// Why it cannot be measured here, if it cannot.
    pub(crate) fn lack(&self, way: Way) -> Option<String> {
        if let Err(why) = self.programs.wireguard(way) {
            return Some(why.clone());
        }
        if way == Way::Kernel {
            if self.home.ip("link add trial type wireguard").is_err() {
                // An emulated machine has one, but no speed that would mean something.
                return Some("this machine's kernel has no WireGuard".to_owned());
            }
            drop(self.home.ip("link delete trial"));
        }
        let needs: &[&str] = match way {
            Way::Socks => &["microsocks", "proxychains4"],
            Way::WireguardGoOld => &["wireguard-go", "wg"],
            Way::WireguardGo | Way::Embedded | Way::Boringtun | Way::Kernel => &["wg"],
            _ => &[],
        };
        let missing = needs.iter().find(|name| which(name).is_err())?;
        Some(format!("there is no {missing}"))
    }

    /// Sets a way up.
    pub(crate) fn open(&self, way: Way) -> Result<Open<'_>> {
        let mut open = Open {
            scene: self,
            way,
            holds: Vec::new(),
            maker: None,
            cgroup: None,
            links: Vec::new(),
            load: None,
        };
        match way {
            Way::Direct | Way::Again | Way::Box | Way::Cookie | Way::Socks => {}
            Way::Cgroup => open.cgroup = Some(self.mark_cgroup()?),
            Way::Free | Way::Via => {
                self.start_lockne(&mut open)?;
                // Some program is policed, so that all of lockne is at work.
                let mut held = self.lockne(&["run", "--via", "tun0", "--", "sleep", "infinity"]);
                open.holds.insert(0, Background::start(&mut held)?);
                until("a policed program", || {
                    Ok(run(&mut self.lockne(&["status"]))?.contains("sleep"))
                })?;
            }
            Way::Embedded => {
                let far = self.file("far.conf", &self.far_conf(true))?;
                let mut peer = self.far.command(&self.programs.peer);
                open.holds
                    .push(Background::start(peer.arg("peer0").arg(&far))?);
                open.links.push((&self.far, "peer0".to_owned()));
                until("the far end", || {
                    self.far.ip("route replace 10.8.0.0/24 dev peer0")?;
                    Ok(true)
                })?;
                self.start_lockne(&mut open)?;
                let home = self.file("bench.conf", &self.home_conf(true))?;
                run(self.lockne(&["tunnel", "up"]).arg(&home))?;
            }
            Way::WireguardGo | Way::WireguardGoOld | Way::Boringtun | Way::Kernel => {
                self.start_wireguard(&mut open)?;
            }
        }
        if Way::TUNNELS.contains(&way) {
            until("the tunnel", || {
                run(&mut open.load("rtt", &["0.01"])).map(|_| true)
            })?;
        }
        Ok(open)
    }

    /// Sets up the way of a load, with that load on it.
    pub(crate) fn open_under(&self, load: Load) -> Result<Open<'_>> {
        let mut text = String::new();
        for number in 0..load.rules() {
            let program = self.file(&format!("program-{number}"), "")?;
            let program = program.display();
            writeln!(
                text,
                "[[rule]]\nname = \"r{number}\"\nexe = \"{program}\"\nvia = \"direct\""
            )?;
        }
        self.file(CONFIG, &text)?;
        let mut open = self.open(load.way())?;
        if let Some((what, count)) = load.held() {
            let mut hold = open.command(&self.programs.load);
            open.load = Some(Holder::start(hold.args([
                "hold",
                what,
                &count.to_string(),
            ]))?);
        }
        Ok(open)
    }

    /// What Mullvad's split tunneling does: nftables marks the packets of a cgroup.
    fn mark_cgroup(&self) -> Result<Cgroup> {
        let cgroup = Cgroup::make()?;
        let name = &cgroup.name;
        let rules = format!(
            "flush ruleset; table ip split {{ chain out {{ type route hook output priority mangle; \
             socket cgroupv2 level 1 \"{name}\" meta mark set 0x77; }}; }}"
        );
        // nft looks for cgroups there only.
        let script = "mount -t cgroup2 none /sys/fs/cgroup && nft \"$1\"";
        let mut nft = self.marked.command("unshare");
        run(nft.args(["--mount", "sh", "-c", script, "sh", &rules]))?;
        if run(self
            .marked
            .command("ip")
            .args(["rule", "show", "pref", "900"]))?
        .is_empty()
        {
            self.marked.ip("rule add pref 900 fwmark 0x77 lookup 77")?;
            self.marked
                .ip("route add default via 10.0.6.1 dev tun0 table 77")?;
        }
        Ok(cgroup)
    }

    /// Starts a daemon that stays.
    fn start_lockne(&self, open: &mut Open<'_>) -> Result<()> {
        let config = self.place.path().join(CONFIG);
        let mut command = self.lockne(&["daemon", "--config"]);
        command.arg(config);
        let daemon = Background::start(&mut command)?;
        open.maker = Some(daemon.id());
        open.holds.push(daemon);
        let socket = self.place.path().join("state/lockne.sock");
        until("lockne", || {
            Ok(socket.exists() && run(&mut self.lockne(&["status"])).is_ok())
        })
    }

    /// A command of lockne, at home.
    pub(crate) fn lockne(&self, words: &[&str]) -> Command {
        let mut command = self.home.command(&self.programs.lockne);
        command
            .arg("--state-dir")
            .arg(self.place.path().join("state"))
            .args(words)
            .env_remove("LOCKNE_SOCKET")
            .env_remove("LOCKNE_CONFIG");
        command
    }

    /// Starts both ends of a tunnel that is no lockne's.
    fn start_wireguard<'a>(&'a self, open: &mut Open<'a>) -> Result<()> {
        let lacks = |why: &String| anyhow::anyhow!("{why}");
        let program = self.programs.wireguard(open.way).map_err(lacks)?;
        let ends = [
            (&self.home, "h", self.home_conf(false), "10.8.0.2"),
            (&self.far, "f", self.far_conf(false), "10.8.0.1"),
        ];
        for (namespace, letter, conf, address) in ends {
            // Their control sockets lie in one directory for the whole machine.
            let name = format!("b{}{letter}", std::process::id());
            if open.way == Way::Kernel {
                namespace.ip(&format!("link add {name} type wireguard"))?;
                open.links.push((namespace, name.clone()));
            } else {
                let mut command = namespace.command(program);
                // The other gives up the right to make devices before it has made its own.
                if open.way == Way::Boringtun {
                    command.arg("--disable-drop-privileges");
                }
                let tunnel = Background::start(command.args(["--foreground", &name]))?;
                open.maker.get_or_insert(tunnel.id());
                open.holds.push(tunnel);
            }
            let file = self.file("setconf", &conf)?;
            until("WireGuard", || {
                run(namespace.command("wg").args(["setconf", &name]).arg(&file)).map(|_| true)
            })?;
            namespace.ip(&format!("address add {address}/24 dev {name}"))?;
            namespace.ip(&format!("link set {name} mtu 1420 up"))?;
            if letter == "h" {
                namespace.ip(&format!("route add {SERVER}/32 dev {name}"))?;
            }
        }
        Ok(())
    }

    fn home_conf(&self, is_quick: bool) -> String {
        let more = if is_quick {
            "Address = 10.8.0.2/32\nMTU = 1420\n"
        } else {
            ""
        };
        format!(
            "[Interface]\nPrivateKey = {}\n{more}[Peer]\nPublicKey = {}\nEndpoint = 10.0.1.1:51820\nAllowedIPs = 0.0.0.0/0\n",
            self.keys.home[0], self.keys.far[1]
        )
    }

    fn far_conf(&self, is_quick: bool) -> String {
        let more = if is_quick {
            "Address = 10.8.0.1/24\nMTU = 1420\n"
        } else {
            ""
        };
        format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 51820\n{more}[Peer]\nPublicKey = {}\nAllowedIPs = 10.8.0.2/32\n",
            self.keys.far[0], self.keys.home[1]
        )
    }

    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.place.path().join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

impl Open<'_> {
    /// A command that takes this way, on the first CPU.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let scene = self.scene;
        let namespace = match self.way {
            Way::Box => &scene.boxed,
            Way::Cgroup => &scene.marked,
            _ => &scene.home,
        };
        let mut command = match self.way {
            Way::Via => scene.lockne(&["run", "--via", "tun0", "--", "taskset"]),
            Way::Embedded => scene.lockne(&["run", "--via", "bench", "--", "taskset"]),
            Way::Cookie => {
                let mut command = namespace.command(&scene.programs.cookie);
                command.args(["--cookie-only", "--", "taskset"]);
                command
            }
            _ => namespace.command("taskset"),
        };
        command.args(["-c", "0"]);
        if let Some(cgroup) = &self.cgroup {
            let script = "echo 0 > \"$0\" && exec \"$@\"";
            command.args(["sh", "-c", script]);
            command.arg(cgroup.path.join("cgroup.procs"));
        }
        if self.way == Way::Socks {
            command.args(["proxychains4", "-q", "-f"]);
            command.arg(scene.place.path().join("proxychains.conf"));
        }
        command.arg(program);
        command
    }

    /// What the process that makes the way has in memory, in MiB.
    pub(crate) fn memory(&self) -> Result<Option<f64>> {
        let Some(id) = self.maker else {
            return Ok(None);
        };
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
        let kib: f64 = line.context("no `VmRSS`")?.trim().parse()?;
        Ok(Some(kib / 1024.0))
    }

    /// A load of our own.
    pub(crate) fn load(&self, what: &str, words: &[&str]) -> Command {
        let mut command = self.command(&self.scene.programs.load);
        command.args([what, SERVER]).args(words);
        command
    }

    /// A load of iperf3.
    pub(crate) fn iperf3(&self, is_reverse: bool) -> Command {
        let mut command = self.command(Path::new("iperf3"));
        command.args(["-J", "-c", SERVER]);
        if is_reverse {
            command.arg("-R");
        }
        command
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.load = None;
        self.holds.clear();
        // Not before: a daemon that reads it again looks at all sockets, and that would be measured.
        let _ = self.scene.file(CONFIG, "");
        for (namespace, name) in &self.links {
            let _ = namespace.ip(&format!("link delete {name}"));
        }
    }
}

/// A cgroup that is removed when it is dropped.
struct Cgroup {
    name: String,
    path: PathBuf,
}

impl Cgroup {
    fn make() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut mounts = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        let root = mounts
            .find(|words| words.get(2) == Some(&"cgroup2"))
            .context("no cgroup2 is mounted")?[1]
            .to_owned();
        let name = format!("lockne-bench-{}", std::process::id());
        let path = Path::new(&root).join(&name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { name, path })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = until("an empty cgroup", || Ok(fs::remove_dir(&self.path).is_ok()));
    }
}

fn keys() -> Result<[String; 2]> {
    let secret = run(Command::new("wg").arg("genkey"))?.trim().to_owned();
    let mut child = Command::new("wg")
        .arg("pubkey")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("no input")?;
    std::io::Write::write_all(&mut input, secret.as_bytes())?;
    drop(input);
    let public = String::from_utf8(child.wait_with_output()?.stdout)?;
    Ok([secret, public.trim().to_owned()])
}
