//! A home with lockne in it.

use std::{
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use lockne_core::api::{DaemonStatus, Status};
use lockne_lab::{
    Internet, Namespace,
    internet::ReversePathFilter,
    link::Link,
    packet::{Content, Direction, Flow, Packet, Transport},
    probe::{Probe, Report, Running},
    provider::Provider,
    sniffer::Sniffer,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A small internet whose home has a lockne with a state directory of its own.
///
/// Dropping it takes everything back, and fails the test if that leaves anything behind.
pub(crate) struct Home {
    /// What leaves and reaches the home, seen from outside.
    pub(crate) wire: Sniffer,
    pub(crate) lab: Internet,
    state: PathBuf,
    place: TempDir,
}

impl Home {
    /// Both providers serve; nothing of lockne runs.
    pub(crate) fn new() -> Self {
        Self::of(Internet::build().unwrap(), None)
    }

    /// The same with this machine as the home, which it is only for who has it for himself, and with the state
    /// directory that an installed lockne has: it stays.
    pub(crate) fn of_this_machine() -> Self {
        let here = Namespace::current().unwrap();
        let lab = Internet::build_around(here).unwrap();
        Self::of(lab, Some("/run/lockne".into()))
    }

    fn of(lab: Internet, state: Option<PathBuf>) -> Self {
        lab.provider_a.start().unwrap();
        lab.provider_b.start().unwrap();
        let place = tempfile::Builder::new().prefix("lockne-test-").tempdir();
        let place = place.unwrap();
        Self {
            wire: lab.home_link.sniffer().unwrap(),
            state: state.unwrap_or_else(|| place.path().join("state")),
            place,
            lab,
        }
    }

    /// The same with tunnels `a` and `b` up.
    pub(crate) fn with_tunnels() -> Self {
        let home = Self::new();
        home.tunnels_up();
        home
    }

    /// Adds `corp0`, a tunnel that is not lockne's and looks at no way back.
    pub(crate) fn add_corp0(&self) -> Link {
        self.lab
            .add_plain_tunnel("corp0", ReversePathFilter::Off)
            .unwrap()
    }

    /// Brings tunnels `a` and `b` up.
    pub(crate) fn tunnels_up(&self) {
        self.tunnel_up("a", &self.lab.provider_a);
        self.tunnel_up("b", &self.lab.provider_b);
    }

    /// The state directory of its lockne.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.state.clone()
    }

    /// A lockne command at home.
    pub(crate) fn lockne<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = self.lab.home.command(env!("CARGO_BIN_EXE_lockne"));
        command
            .arg("--state-dir")
            .arg(self.state_dir())
            .args(arguments)
            .env_remove("LOCKNE_SOCKET")
            .env_remove("LOCKNE_CONFIG")
            .stdin(Stdio::null());
        command
    }

    /// Runs a lockne command that must succeed.
    pub(crate) fn must<const N: usize>(&self, arguments: [&str; N]) -> String {
        let output = self.lockne(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a daemon that stays.
    pub(crate) fn daemon(&self) -> Daemon {
        self.daemon_with(&[])
    }

    /// Starts a daemon that stays, with these arguments.
    pub(crate) fn daemon_with(&self, arguments: &[&str]) -> Daemon {
        let mut command = self.lockne(["daemon"]);
        command.args(arguments);
        Daemon::start(self, command)
    }

    /// Where daemons in the foreground write, which is shown when a test fails.
    fn log(&self) -> std::fs::File {
        let mut options = std::fs::OpenOptions::new();
        let path = self.place.path().join("log");
        options.create(true).append(true).open(path).unwrap()
    }

    /// What daemons in the foreground have written so far.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.place.path().join("log")).unwrap()
    }

    /// What `lockne status` says; `None` if lockne is not active.
    pub(crate) fn status(&self) -> Option<Status> {
        serde_json::from_str(&self.must(["status", "--json"])).unwrap()
    }

    /// Writes the provider's file as `NAME.conf` and returns its path.
    pub(crate) fn conf(&self, name: &str, provider: &Provider) -> PathBuf {
        self.write(&format!("{name}.conf"), &provider.client_conf())
    }

    /// Writes a file beside the state directory and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.place.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Lets users other than root reach the state directory.
    pub(crate) fn open(&self) {
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(self.place.path(), everybody).unwrap();
    }

    /// A path beside the state directory, which any user can reach.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.open();
        self.place.path().join(name)
    }

    /// Brings a tunnel up.
    pub(crate) fn tunnel_up(&self, name: &str, provider: &Provider) {
        let conf = self.conf(name, provider);
        self.must(["tunnel", "up", conf.to_str().unwrap()]);
    }

    /// Runs a probe by `lockne run` with these arguments.
    pub(crate) fn run<const N: usize>(&self, arguments: [&str; N], probe: &Probe) -> Report {
        self.start(arguments, probe).finish().unwrap()
    }

    /// Starts a probe by `lockne run` with these arguments.
    pub(crate) fn start<const N: usize>(&self, arguments: [&str; N], probe: &Probe) -> Running {
        let mut command = self.lockne(["run"]);
        command.args(arguments).arg("--");
        probe.start_behind(command).unwrap()
    }

    /// Runs ip(8) at home, as other programs change the network.
    pub(crate) fn ip(&self, arguments: &str) {
        let mut command = self.lab.home.command("ip");
        let output = command.args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", text(&output));
    }

    /// The same for IPv4 and for IPv6.
    pub(crate) fn ip_both(&self, arguments: &str) {
        self.ip(&format!("-4 {arguments}"));
        self.ip(&format!("-6 {arguments}"));
    }

    /// Everything that passed the home link so far and is not the tunnels' own.
    pub(crate) fn leaks(&self) -> Vec<Flow> {
        self.wire.settle().unwrap();
        self.lab.leaks(&self.wire)
    }

    /// Fails if anything but the tunnels' own packets has left by the home link so far, while others took our rules
    /// away.
    ///
    /// Then nothing holds the kernel's own answers about connections that are over: no hook is asked for them.
    pub(crate) fn assert_nothing_left(&self) {
        let is_reset = |packet: &Packet| {
            matches!(&packet.content, Content::Ip(ip)
                if matches!(ip.transport, Transport::Tcp { flags, .. } if flags.is_reset()))
        };
        let mut leaks = self.leaks();
        leaks
            .retain(|flow| flow.packet.direction == Direction::Received && !is_reset(&flow.packet));
        assert!(leaks.is_empty(), "leaked: {leaks:#?}");
    }

    /// The same, and nothing may have arrived by it.
    pub(crate) fn assert_no_leak(&self) {
        let leaks = self.leaks();
        assert!(leaks.is_empty(), "leaked: {leaks:#?}");
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let down = self.lockne(["down"]).output().unwrap();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.place.path().join("log"));
            eprintln!("{}\n{}", text(&down), log.unwrap_or_default());
            return;
        }
        assert!(down.status.success(), "{}", text(&down));
        assert!(
            !self.state.starts_with(self.place.path()) || !self.state.exists(),
            "the state directory is still there"
        );
    }
}

/// A daemon in the foreground; killed when dropped.
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Starts it by `command`, and waits until it serves.
    pub(crate) fn start(home: &Home, mut command: Command) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(home.log())
            .spawn();
        let daemon = Self(child.unwrap());
        wait_until("the daemon serves", || {
            let output = home.lockne(["status", "--json"]).output().unwrap();
            let status = serde_json::from_slice::<Option<Status>>(&output.stdout);
            let daemon = status.ok().flatten().map(|status| status.daemon);
            matches!(daemon, Some(DaemonStatus::Running { .. }))
        });
        daemon
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to read its configuration again.
    pub(crate) fn hang_up(&self) {
        kill_process(Pid::from_child(&self.0), Signal::HUP).unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }

    /// Stops it where it is, until [`Self::resume`].
    pub(crate) fn pause(&self) {
        kill_process(Pid::from_child(&self.0), Signal::STOP).unwrap();
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        kill_process(Pid::from_child(&self.0), Signal::CONT).unwrap();
    }

    /// Kills it without a word.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, Signal::TERM).unwrap();
        self.0.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Waits for a condition, and fails after ten seconds.
pub(crate) fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !is_true() {
        assert!(
            std::time::Instant::now() < deadline,
            "waited in vain: {what}"
        );
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// What a command said.
pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
