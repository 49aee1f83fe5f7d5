//! Speaks to the daemon, and starts one where there is none.

use std::{
    fs::OpenOptions,
    io::{BufRead as _, BufReader},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use lockne_core::api::Refusal;
use lockne_daemon::{ready::Ready, state_dir::StateDir};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, runtime, time};

use crate::{
    cli::Place,
    failure::{Failure, Result},
    output,
};

/// Whoever waits longer is told for what.
const SLOW: Duration = Duration::from_secs(1);

/// A way to the daemon.
pub(crate) struct Client {
    socket: PathBuf,
    state: StateDir,
    runtime: runtime::Runtime,
}

/// Why there is no answer from a daemon.
enum Gone {
    /// Nobody listens; a daemon may be started.
    NoDaemon(std::io::Error),
    /// The service manager does, but its daemon cannot start.
    CannotStart(Failure),
    /// Somebody does, but it failed.
    Failed(Failure),
}

/// What there is to hear.
pub(crate) enum Heard<A> {
    /// An answer.
    Answer(A),
    /// Nothing, as no daemon runs.
    NoDaemon,
    /// Why no daemon runs, though the service manager has tried to start one.
    CannotStart(Failure),
}

impl Client {
    pub(crate) fn new(place: &Place) -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| {
                Failure::new("cannot prepare to speak to the daemon").because(&error)
            })?;
        Ok(Self {
            socket: place.socket()?,
            state: place.state(),
            runtime,
        })
    }

    /// The directory of the daemon's state.
    pub(crate) const fn state(&self) -> &StateDir {
        &self.state
    }

    /// The daemon's socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks a running daemon; `None` if none runs.
    pub(crate) fn ask<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Option<A>> {
        match self.hear("waiting for the daemon", method, path, body)? {
            Heard::Answer(answer) => Ok(Some(answer)),
            Heard::NoDaemon | Heard::CannotStart(_) => Ok(None),
        }
    }

    /// Asks a running daemon; who waits for long is told what is being done.
    pub(crate) fn hear<A: DeserializeOwned>(
        &self,
        doing: &str,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Heard<A>> {
        match self.exchange(doing, method, path, body) {
            Ok(answer) => Ok(Heard::Answer(answer)),
            Err(Gone::NoDaemon(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Err(self.not_allowed())
            }
            Err(Gone::NoDaemon(_)) => Ok(Heard::NoDaemon),
            Err(Gone::CannotStart(failure)) => Ok(Heard::CannotStart(failure)),
            Err(Gone::Failed(failure)) => Err(failure),
        }
    }

    /// Asks the daemon, and starts one that ends with its last job if none runs.
    ///
    /// If the answer is slow, the user is told what is being done.
    pub(crate) fn ask_or_start<A: DeserializeOwned>(
        &self,
        doing: &str,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A> {
        // A daemon that is just ending refuses the connection or drops it: then the next one answers.
        for _ in 0..3 {
            match self.hear(doing, method.clone(), path, body)? {
                Heard::Answer(answer) => return Ok(answer),
                Heard::NoDaemon => self.start()?,
                Heard::CannotStart(failure) => return Err(failure),
            }
        }
        Err(
            Failure::new(format!("no daemon answers on `{}`", self.socket.display()))
                .hint(format!("see `{}`", self.state.log().display())),
        )
    }

    fn exchange<A: DeserializeOwned>(
        &self,
        doing: &str,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> std::result::Result<A, Gone> {
        let failed = |failure: Failure| Gone::Failed(failure);
        let body = serde_json::to_vec(body)
            .map_err(|error| failed(Failure::new("cannot write the request").because(&error)))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "lockne")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| failed(Failure::new("cannot form the request").because(&error)))?;
        let (status, answer) = self.runtime.block_on(async {
            let stream = UnixStream::connect(&self.socket)
                .await
                .map_err(Gone::NoDaemon)?;
            let dropped = |error: hyper::Error| {
                Gone::NoDaemon(std::io::Error::new(
                    std::io::ErrorKind::ConnectionReset,
                    error,
                ))
            };
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(dropped)?;
            let exchange = async {
                let response = sender.send_request(request).await.map_err(dropped)?;
                let status = response.status();
                let bytes = response.into_body().collect().await.map_err(dropped)?;
                Ok::<_, Gone>((status, bytes.to_bytes()))
            };
            let slow = time::sleep(SLOW);
            tokio::pin!(exchange, connection, slow);
            loop {
                tokio::select! {
                    answer = &mut exchange => break answer,
                    closed = &mut connection => break match closed {
                        Ok(()) => exchange.await,
                        Err(error) => Err(dropped(error)),
                    },
                    () = &mut slow, if !slow.is_elapsed() => output::notice(doing),
                }
            }
        })?;
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return Err(Gone::NoDaemon(std::io::ErrorKind::ConnectionReset.into()));
        }
        if !status.is_success() {
            let refusal = serde_json::from_slice::<Refusal>(&answer).unwrap_or_else(|_| Refusal {
                error: format!("the daemon answered {status}"),
                causes: vec![String::from_utf8_lossy(&answer).into_owned()],
                hint: None,
            });
            let failure = Failure::from(refusal);
            if status == StatusCode::INTERNAL_SERVER_ERROR {
                return Err(Gone::CannotStart(failure));
            }
            return Err(failed(if status == StatusCode::NOT_FOUND {
                failure.unknown_name()
            } else {
                failure
            }));
        }
        serde_json::from_slice(&answer).map_err(|error| {
            failed(
                Failure::new("the daemon's answer is not understood")
                    .because(&error)
                    .hint("client and daemon may be of different versions; restart the daemon"),
            )
        })
    }

    fn not_allowed(&self) -> Failure {
        Failure::new(format!(
            "no permission to use the daemon's socket `{}`",
            self.socket.display()
        ))
        .hint("run it with sudo")
    }

    /// Starts a daemon and waits until it serves.
    fn start(&self) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Err(
                Failure::new("no lockne daemon runs, and only root can start one").hint(
                    "start it with `sudo systemctl start lockne` or `sudo lockne daemon`, or run this command with sudo",
                ),
            );
        }
        let failed = |what: &str, error: &std::io::Error| Failure::new(what).because(error);
        self.state
            .create()
            .map_err(|error| Failure::new("cannot start a daemon").because(&error))?;
        let log = self.state.log();
        let log_file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log)
            .map_err(|error| failed(&format!("cannot open `{}`", log.display()), &error))?;
        let program = std::env::current_exe()
            .map_err(|error| failed("cannot find lockne's own executable", &error))?;
        let mut daemon = Command::new(program)
            .arg("--state-dir")
            .arg(self.state.path())
            .arg("--socket")
            .arg(&self.socket)
            .args(["daemon", "--ephemeral"])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .spawn()
            .map_err(|error| failed("cannot start a daemon", &error))?;
        let mut answer = String::new();
        if let Some(stdout) = daemon.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut answer)
                .map_err(|error| failed("cannot hear from the daemon", &error))?;
        }
        match serde_json::from_str(&answer) {
            Ok(Ready::Serving) => Ok(()),
            Ok(Ready::Failed(refusal)) => Err(refusal.into()),
            Err(_) => Err(Failure::new("the daemon ended before it could serve")
                .hint(format!("see `{}`", log.display()))),
        }
    }
}
