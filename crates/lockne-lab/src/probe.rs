//! A small action on the network, done by a process of its own, and what came of it.
//!
//! The process is this very program, called again: its `main` must ask [`run_if_asked`] first. A test
//! puts `lockne run ... --` or anything else before [`Probe::arguments`].

mod act;
mod hammer;
mod icmp;
mod option;
mod process;

use std::{
    ffi::OsString,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
};

use serde::{Deserialize, Serialize};

use crate::namespace::{self, Namespace};
pub(crate) use act::{Call, Failed, errno_name};
pub(crate) use icmp::request as echo_request;
pub(crate) use process::{give_fd, receive_fd};

/// The word that makes a program a probe.
pub const WORD: &str = "__lockne-lab-probe";

/// Is a probe if the command line asks for one.
///
/// Call it before the program has a second thread.
#[must_use]
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let is_asked = arguments.next().is_some_and(|word| word == WORD);
    is_asked.then(|| main(arguments))
}

/// Is a probe: does what the JSON in `arguments` says and prints one line of JSON.
#[must_use]
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let json = arguments.next().unwrap_or_default();
    match serde_json::from_slice::<Probe>(json.as_encoded_bytes()) {
        Ok(probe) => process::act(&probe),
        Err(error) => {
            eprintln!("not a probe: {error}");
            ExitCode::from(2)
        }
    }
}

/// What to do on the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The kind of traffic.
    pub action: Action,
    /// Where to; the port means nothing to pings.
    pub to: SocketAddr,
    /// What is asked of the socket before it is used.
    #[serde(default, skip_serializing_if = "Options::are_none")]
    pub options: Options,
    /// Who acts.
    #[serde(default)]
    pub actor: Actor,
    /// Where the socket comes from.
    #[serde(default)]
    pub socket: SocketFrom,
    /// How long to wait for an answer, in milliseconds.
    pub patience_ms: u64,
}

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Connects and reads what address the server saw.
    Tcp,
    /// The same by a connection of Multipath TCP.
    Mptcp,
    /// Downloads by HTTP without end; says it is ready at the first bytes and reports how it ended. [`Running::go`] ends
    /// it with the next bytes.
    Hold,
    /// Connects, sends a datagram and reads what address the server saw.
    UdpConnected,
    /// The same without connecting.
    UdpUnconnected,
    /// Pings by a socket that needs no privileges.
    Ping,
    /// Pings by a raw socket.
    RawPing,
    /// Starts so many children one after another, each of which sends one datagram at once and ends.
    Forks(u32),
    /// Sends by TCP, UDP and pings, by old sockets and new ones, again and again until
    /// [`Running::go`]; says it is ready after the first round.
    Hammer,
}

/// What is asked of a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// `SO_BINDTODEVICE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_device: Option<String>,
    /// `IP_UNICAST_IF` or `IPV6_UNICAST_IF`, of the device with this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unicast_device: Option<String>,
    /// `IP_PKTINFO` or `IPV6_PKTINFO` beside each datagram, with the device of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_device: Option<String>,
    /// The address to bind to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// `SO_MARK` by `setsockopt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
    /// `SO_MARK` by control message beside each datagram.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_mark: Option<u32>,
    /// How an IPv4 destination is written.
    pub form: Form,
}

/// How an IPv4 destination is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// As what it is.
    #[default]
    Plain,
    /// As `::ffff:a.b.c.d` on a socket of IPv6.
    V4Mapped,
}

/// Who acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Actor {
    /// The process that was started.
    #[default]
    Itself,
    /// A child of it.
    Child,
    /// A grandchild in a session of its own, whose parent is gone.
    Orphan,
    /// A second thread of the process.
    Thread,
    /// Another program that it starts, as programs start helpers: by `vfork` and `exec`.
    Program,
}

/// Where the socket comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketFrom {
    /// It is made when it is needed.
    #[default]
    New,
    /// It is made, with its options, before the probe says it is ready; used after [`Running::go`].
    BeforeGo,
    /// It is made after [`Running::go`].
    AfterGo,
    /// It is made and connected before the probe says it is ready; used after [`Running::go`].
    ConnectedBeforeGo,
    /// It comes from another process by [`Running::hand_over`].
    Received,
    /// It was open under this number when the program began.
    Inherited(std::os::fd::RawFd),
    /// The same, and connected.
    InheritedConnected(std::os::fd::RawFd),
}

impl SocketFrom {
    /// Whether somebody has connected it before the probe uses it.
    const fn is_connected(self) -> bool {
        matches!(self, Self::ConnectedBeforeGo | Self::InheritedConnected(_))
    }
}

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What happened.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The socket's own address at the end, if it had one.
    pub local: Option<SocketAddr>,
    /// From the first system call on the socket to the outcome, in microseconds.
    pub elapsed_us: u64,
    /// The process that acted.
    pub pid: u32,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Outcome {
    /// The server answered.
    Answered {
        /// The address it saw; a ping does not say.
        saw: Option<SocketAddr>,
    },
    /// The kernel refused.
    Refused {
        /// The call that failed.
        call: String,
        /// The name of the error, such as `EPERM`.
        errno: String,
    },
    /// Nothing came back.
    Silence,
    /// The download ended.
    Ended {
        /// How many bytes of it came.
        bytes: u64,
        /// `closed`, `silence`, the name of the error, or `alive` where bytes came after [`Running::go`].
        why: String,
    },
    /// All children of [`Action::Forks`] are through, or [`Action::Hammer`] was told to end.
    Sent {
        /// How many could send.
        sent: u32,
        /// How many could not.
        refused: u32,
    },
}

/// Why a probe gave no report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It did not start.
    #[error("cannot start the probe `{command}`")]
    Start {
        /// What was to be started.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// The namespace failed.
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
    /// It could not be spoken to.
    #[error("cannot speak to the probe")]
    Speak(#[source] io::Error),
    /// It said something else, or nothing, and ended.
    #[error("the probe ended with {status} and said `{output}`, `{errors}`")]
    NoReport {
        /// How it ended.
        status: ExitStatus,
        /// What it said on standard output.
        output: String,
        /// What it said on standard error.
        errors: String,
    },
}

/// A probe that runs; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: UnixStream,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Probe {
    /// A probe with a new socket and no options, which waits ten seconds for its answer: longer than it takes on a
    /// busy machine.
    #[must_use]
    pub fn new(action: Action, to: impl Into<SocketAddr>) -> Self {
        Self {
            action,
            to: to.into(),
            options: Options::default(),
            actor: Actor::Itself,
            socket: SocketFrom::New,
            patience_ms: 10_000,
        }
    }

    /// The same with these options.
    #[must_use]
    pub fn with(self, options: Options) -> Self {
        Self { options, ..self }
    }

    /// The same by another actor.
    #[must_use]
    pub fn by(self, actor: Actor) -> Self {
        Self { actor, ..self }
    }

    /// The same with a socket from elsewhere.
    #[must_use]
    pub fn on(self, socket: SocketFrom) -> Self {
        Self { socket, ..self }
    }

    /// The same with another patience.
    #[must_use]
    pub fn waiting(self, patience: std::time::Duration) -> Self {
        Self {
            patience_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
            ..self
        }
    }

    /// The command line that is this probe: this program and its arguments.
    ///
    /// # Errors
    ///
    /// When this program cannot be found.
    pub fn arguments(&self) -> io::Result<Vec<OsString>> {
        let json = serde_json::to_string(self).expect("a probe is plain data");
        let program = std::env::current_exe()?;
        Ok(vec![program.into(), WORD.into(), json.into()])
    }

    /// Does it in `namespace` and waits for the report.
    ///
    /// # Errors
    ///
    /// When it does not start or gives no report.
    pub fn run(&self, namespace: &Namespace) -> Result<Report, Error> {
        self.start(namespace)?.finish()
    }

    /// Starts it in `namespace`.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(&self, namespace: &Namespace) -> Result<Running, Error> {
        let cannot_start = |source| Error::Start {
            command: WORD.to_owned(),
            source,
        };
        let arguments = self.arguments().map_err(cannot_start)?;
        let (program, rest) = arguments
            .split_first()
            .expect("the program is always there");
        let mut command = namespace.command(program);
        command.args(rest);
        Self::spawn(command)
    }

    /// Starts it behind `command`, such as `lockne run --via work --`, which must become it or pass
    /// its standard streams on.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start_behind(&self, mut command: Command) -> Result<Running, Error> {
        let arguments = self.arguments().map_err(|source| Error::Start {
            command: format!("{command:?}"),
            source,
        })?;
        command.args(arguments);
        Self::spawn(command)
    }

    /// Starts it by `command`, whose program is a copy of this one.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start_as(&self, mut command: Command) -> Result<Running, Error> {
        let arguments = self.arguments().map_err(|source| Error::Start {
            command: format!("{command:?}"),
            source,
        })?;
        command.args(arguments.into_iter().skip(1));
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Result<Running, Error> {
        let (stdin, theirs) = UnixStream::pair().map_err(Error::Speak)?;
        let spawned = command
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = spawned.map_err(|source| Error::Start {
            command: format!("{command:?}"),
            source,
        })?;
        let stdout = child.stdout.take().expect("standard output is a pipe");
        Ok(Running {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }
}

impl Options {
    fn are_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Running {
    /// The process that was started.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it says that it is ready: [`SocketFrom`] and [`Action::Hold`] say when.
    ///
    /// # Errors
    ///
    /// When it ends before, or reports at once.
    pub fn wait_until_ready(&mut self) -> Result<(), Error> {
        let line = self.line()?;
        if line == process::READY {
            return Ok(());
        }
        Err(self.no_report(line))
    }

    /// Lets it go on with the socket that it has.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn go(&mut self) -> Result<(), Error> {
        self.stdin.write_all(b"!").map_err(Error::Speak)
    }

    /// Lets it go on with this socket.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn hand_over(&mut self, socket: impl AsFd) -> Result<(), Error> {
        give_fd(&self.stdin, socket.as_fd()).map_err(Error::Speak)
    }

    /// Waits for the report, whether or not anyone waited until it was ready.
    ///
    /// # Errors
    ///
    /// When it ends without one.
    pub fn finish(mut self) -> Result<Report, Error> {
        let mut line = self.line()?;
        if line == process::READY {
            line = self.line()?;
        }
        match serde_json::from_str(&line) {
            Ok(report) => {
                // It has no more to say; an orphan's parent ended long ago.
                let _ = self.child.wait();
                Ok(report)
            }
            Err(_) => Err(self.no_report(line)),
        }
    }

    fn line(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).map_err(Error::Speak)?;
        Ok(line.trim_end().to_owned())
    }

    fn no_report(&mut self, output: String) -> Error {
        // Whatever it still waits for will not come.
        let _ = self.child.kill();
        let status = match self.child.wait() {
            Ok(status) => status,
            Err(error) => return Error::Speak(error),
        };
        let mut errors = Vec::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_end(&mut errors);
        }
        Error::NoReport {
            status,
            output,
            errors: String::from_utf8_lossy(&errors).trim_end().to_owned(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
