//! Somewhere to use lockne: a directory of its own, and a network namespace where that is needed.

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use lockne_lab::Namespace;
use tempfile::TempDir;

/// A private key that nothing may ever print, and its public key.
pub(crate) const PRIVATE_KEY: &str = "QMbYfDCXhPOwWGKbhUPuCVLvSTZ2xOsjbKI2c1pM2Uw=";
const PUBLIC_KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// A directory and perhaps a namespace. Dropping it takes everything back.
pub(crate) struct Place {
    namespace: Option<Namespace>,
    directory: TempDir,
}

impl Place {
    /// Without a namespace: for what ends before the network is touched.
    pub(crate) fn anywhere() -> Self {
        Self {
            namespace: None,
            directory: tempfile::Builder::new()
                .prefix("lockne-cli-")
                .tempdir()
                .unwrap(),
        }
    }

    /// With a namespace that has only a loopback device.
    pub(crate) fn new() -> Self {
        let mut place = Self::anywhere();
        place.namespace = Some(Namespace::create("cli").unwrap());
        let loopback = place
            .command("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(loopback.unwrap().success());
        place
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Without a namespace it is nowhere, so that no daemon can start by mistake.
    pub(crate) fn state_dir(&self) -> PathBuf {
        match self.namespace {
            Some(_) => self.path().join("state"),
            None => PathBuf::from("/dev/null/state"),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.state_dir().join("lockne.sock")
    }

    /// Any command, in the directory and in the namespace.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = match &self.namespace {
            Some(namespace) => namespace.command(program),
            None => Command::new(program),
        };
        command
            .current_dir(self.path())
            .env("LOCKNE_STATE_DIR", self.state_dir())
            .env_remove("LOCKNE_SOCKET")
            .env_remove("LOCKNE_CONFIG")
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR_FORCE")
            .stdin(Stdio::null());
        command
    }

    /// A lockne command.
    pub(crate) fn lockne(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_lockne"));
        command.args(arguments);
        command
    }

    /// Runs a lockne command.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.lockne(arguments).output().unwrap()
    }

    /// Runs a lockne command that must succeed, and returns what it printed.
    pub(crate) fn must(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the user sees of these commands, with the directory written as `DIR`.
    pub(crate) fn transcript(&self, commands: &[&[&str]]) -> String {
        let mut text = String::new();
        for arguments in commands {
            let output = self.run(arguments);
            text += &format!("$ lockne {}\n", arguments.join(" "));
            text += str::from_utf8(&output.stdout).unwrap();
            for line in str::from_utf8(&output.stderr).unwrap().lines() {
                text += &format!("! {line}\n");
            }
            text += &format!("[{}]\n\n", output.status);
        }
        text.replace(self.path().to_str().unwrap(), "DIR")
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Writes a wg-quick file that is right, with a peer that never answers.
    pub(crate) fn conf(&self, name: &str) -> PathBuf {
        self.write(name, &conf())
    }

    /// A UDP socket in the namespace that takes everything and says nothing.
    pub(crate) fn silent_socket(&self, address: &str) -> UdpSocket {
        let namespace = self.namespace.as_ref().unwrap();
        namespace.run(|| UdpSocket::bind(address)).unwrap().unwrap()
    }

    /// Lets users other than root reach the directory.
    pub(crate) fn open(&self) {
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(self.path(), everybody).unwrap();
    }

    /// Starts a daemon that stays, with this configuration.
    pub(crate) fn daemon_configured(&self, config: &Path) -> Daemon {
        self.open();
        self.daemon_with(&["--config", config.to_str().unwrap()])
    }

    /// Starts a daemon that stays, and grants users this.
    pub(crate) fn daemon_granting(&self, grants: &str) -> Daemon {
        self.open();
        let grants = self.write("grants.json", grants);
        self.daemon_with(&["--grants", grants.to_str().unwrap()])
    }

    /// Starts a daemon that stays.
    pub(crate) fn daemon(&self) -> Daemon {
        self.daemon_with(&[])
    }

    fn daemon_with(&self, arguments: &[&str]) -> Daemon {
        // Packets of another namespace with the same bits of the mark would be counted as ours, and other
        // tests run at the same time.
        let child = self
            .lockne(&["daemon", "--mark-bit", "8"])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Daemon(child);
        wait_until("the daemon serves", || {
            self.must(&["status", "--json"]).trim() != "null"
        });
        daemon
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.namespace.is_some() {
            let down = self.run(&["down"]);
            assert!(
                std::thread::panicking() || down.status.success(),
                "{down:?}"
            );
        }
    }
}

/// A wg-quick file that is right, with a peer that never answers.
pub(crate) fn conf() -> String {
    format!(
        "[Interface]\nPrivateKey = {PRIVATE_KEY}\nAddress = 10.7.0.2/32\nDNS = 10.7.0.1\n\n\
         [Peer]\nPublicKey = {PUBLIC_KEY}\nAllowedIPs = 0.0.0.0/0\nEndpoint = 127.0.0.1:9\n"
    )
}

/// A daemon in the foreground; killed when dropped.
pub(crate) struct Daemon(Child);

impl Daemon {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Kills it without a word.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
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
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_true() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
