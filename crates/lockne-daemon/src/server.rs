//! The control socket: HTTP and JSON for everybody; [`authority`](crate::authority) says who may ask for what.
//!
//! Each request becomes a [`Command`] for the one loop that owns all state, and waits for its answer.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path as FilePath,
    pin::pin,
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    extract::{
        DefaultBodyLimit, FromRequest, FromRequestParts, Path, Request, State,
        rejection::{JsonRejection, PathRejection},
    },
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::Listener,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use lockne_core::{
    api::{
        Attach, Detach, Explanation, Moved, Refusal, Removed, Run, Running, Status, TunnelDown,
        TunnelKind, TunnelStatus, TunnelUp,
    },
    tunnel::TunnelName,
    wgquick::Config,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
    time,
};
use tracing::debug;

use crate::{
    authority::{Authority, Caller},
    connection::{self, Connections},
    error::Error,
    peer::Peer,
    state_dir::remove_socket,
    wireguard::Wireguard,
};

/// No request needs more; a wg-quick file with a thousand peers has 200 KiB.
const MAX_BODY: usize = 1 << 20;

/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a command's answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What a client wants of the daemon.
pub(crate) enum Command {
    Status(Caller, Reply<Status>),
    Run(Caller, Run, Reply<Running>),
    Explain(u32, Reply<Explanation>),
    Attach(Caller, Attach, Reply<Moved>),
    Detach(Caller, Detach, Reply<Moved>),
    TunnelUp(Caller, TunnelUp, Reply<TunnelStatus>),
    TunnelDown(Caller, TunnelName, Reply<TunnelDown>),
    Tunnels(Caller, Reply<Vec<TunnelStatus>>),
    Tunnel(Caller, TunnelName, Reply<TunnelStatus>),
    Down(Reply<Removed>),
}

/// Makes the socket, in place of one that a dead daemon left.
///
/// Anything else at that path stays, and is an error.
pub(crate) fn bind(path: &FilePath) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let reason = "something that is not a socket is there";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            let reason = "somebody else serves there";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, reason));
        }
        _ => remove_socket(path)?,
    }
    let listener = UnixListener::bind(path)?;
    // Everybody may connect; what one may do is decided for each request.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Serves `listener` until `stop` is ready; then writes what answers there are.
pub(crate) async fn serve(
    mut listener: UnixListener,
    commands: mpsc::Sender<Command>,
    authority: Authority,
    stop: impl Future,
) {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/run", post(run))
        .route("/v1/processes/{pid}", get(explain))
        .route("/v1/attach", post(attach))
        .route("/v1/detach", post(detach))
        .route("/v1/tunnels", get(tunnels).post(tunnel_up))
        .route("/v1/tunnels/{name}", get(tunnel).delete(tunnel_down))
        .route("/v1/down", post(down))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_path)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(Extension(authority))
        .with_state(commands);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let connections = GracefulShutdown::new();
    let seats = Connections::default();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            // Waits and tries again where the system has no room for a connection.
            (stream, _) = Listener::accept(&mut listener) => {
                let peer = Peer::of(&stream);
                let Some(seat) = seats.seat(peer.uid) else {
                    connection::turn_away(&stream);
                    continue;
                };
                let service = router.clone().layer(Extension(peer));
                let connection = connections.watch(
                    http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)),
                );
                tokio::spawn(async move {
                    let _seat = seat;
                    if let Err(error) = connection.await {
                        debug!(%error, "a client's connection broke");
                    }
                });
            }
            _ = &mut stop => break,
        }
    }
    drop(listener);
    connections.shutdown().await;
}

type Commands = State<mpsc::Sender<Command>>;
type Answer<T> = Result<Json<T>, Error>;

async fn status(State(commands): Commands, Asker(caller): Asker) -> Answer<Status> {
    ask(&commands, |reply| Command::Status(caller, reply)).await
}

async fn run(
    State(commands): Commands,
    Asker(caller): Asker,
    Body(request): Body<Run>,
) -> Answer<Running> {
    let permit = with_tunnel(&commands, &caller, request.tunnel.as_ref()).await?;
    answer(permit, |reply| Command::Run(caller, request, reply)).await
}

async fn explain(
    State(commands): Commands,
    Asker(caller): Asker,
    pid: Result<Path<u32>, PathRejection>,
) -> Answer<Explanation> {
    caller.root()?;
    let Path(pid) = pid.map_err(|rejection| Error::BadRequest(rejection.body_text()))?;
    ask(&commands, |reply| Command::Explain(pid, reply)).await
}

async fn attach(
    State(commands): Commands,
    Asker(caller): Asker,
    Body(request): Body<Attach>,
) -> Answer<Moved> {
    caller.root()?;
    let permit = with_tunnel(&commands, &caller, request.tunnel.as_ref()).await?;
    answer(permit, |reply| Command::Attach(caller, request, reply)).await
}

async fn detach(
    State(commands): Commands,
    Asker(caller): Asker,
    Body(request): Body<Detach>,
) -> Answer<Moved> {
    caller.root()?;
    ask(&commands, |reply| Command::Detach(caller, request, reply)).await
}

async fn tunnels(State(commands): Commands, Asker(caller): Asker) -> Answer<Vec<TunnelStatus>> {
    ask(&commands, |reply| Command::Tunnels(caller, reply)).await
}

async fn tunnel(
    State(commands): Commands,
    Asker(caller): Asker,
    Named(name): Named,
) -> Answer<TunnelStatus> {
    ask(&commands, |reply| Command::Tunnel(caller, name, reply)).await
}

async fn tunnel_up(
    State(commands): Commands,
    Asker(caller): Asker,
    Body(request): Body<TunnelUp>,
) -> Answer<TunnelStatus> {
    let permit = checked(&commands, &caller, &request).await?;
    answer(permit, |reply| Command::TunnelUp(caller, request, reply)).await
}

type Permit = mpsc::OwnedPermit<Command>;

/// A place in the queue, for a request that may bring a tunnel along.
async fn with_tunnel(
    commands: &mpsc::Sender<Command>,
    caller: &Caller,
    tunnel: Option<&TunnelUp>,
) -> Result<Permit, Error> {
    match tunnel {
        Some(tunnel) => checked(commands, caller, tunnel).await,
        None => reserve(commands).await,
    }
}

/// Tries what a new tunnel may have to wait long for.
///
/// A resolver that is silent keeps this request waiting, not the loop; and while the permit is held,
/// the loop knows that somebody waits.
async fn checked(
    commands: &mpsc::Sender<Command>,
    caller: &Caller,
    request: &TunnelUp,
) -> Result<Permit, Error> {
    caller.tunnel_up(request)?;
    let known = ask(commands, |reply| {
        Command::Tunnel(caller.clone(), request.name.clone(), reply)
    })
    .await;
    let permit = reserve(commands).await?;
    let is_new = !known.is_ok_and(|Json(tunnel)| tunnel.kind != TunnelKind::Interface);
    if is_new && let Ok(config) = Config::parse(request.config.as_bytes()) {
        let checked = Wireguard::check(&request.name, &config, request.hooks()).await;
        checked.map_err(|source| Error::TunnelUp {
            name: request.name.clone(),
            source,
        })?;
    }
    Ok(permit)
}

async fn tunnel_down(
    State(commands): Commands,
    Asker(caller): Asker,
    Named(name): Named,
) -> Answer<TunnelDown> {
    ask(&commands, |reply| Command::TunnelDown(caller, name, reply)).await
}

async fn down(State(commands): Commands, asker: Asker) -> Answer<Removed> {
    asker.allowed()?;
    ask(&commands, Command::Down).await
}

async fn no_such_path(request: Request) -> Error {
    Error::BadRequest(format!(
        "there is no {} {}",
        request.method(),
        request.uri().path()
    ))
}

async fn ask<T: Serialize>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Answer<T> {
    answer(reserve(commands).await?, command).await
}

async fn reserve(commands: &mpsc::Sender<Command>) -> Result<Permit, Error> {
    let reserved = commands.clone().reserve_owned().await;
    reserved.map_err(|_| Error::Ending)
}

async fn answer<T: Serialize>(
    permit: Permit,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Answer<T> {
    let (reply, answer) = oneshot::channel();
    permit.send(command(reply));
    answer.await.map_err(|_| Error::Ending)?.map(Json)
}

/// The asker, before anything else is looked at.
struct Asker(Caller);

impl<S: Send + Sync> FromRequestParts<S> for Asker {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let extensions = &parts.extensions;
        match (extensions.get::<Peer>(), extensions.get::<Authority>()) {
            (Some(peer), Some(authority)) => Ok(Self(authority.judge(peer.clone()).await)),
            _ => Err(Error::NoProcess),
        }
    }
}

impl Asker {
    /// What is for root only.
    fn allowed(self) -> Result<Peer, Error> {
        self.0.root()?;
        Ok(self.0.peer)
    }
}

/// The tunnel that the path names; what names none is a [`Refusal`] too.
struct Named(TunnelName);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path(name) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Error::BadRequest(rejection.body_text()))?;
        name.parse().map(Self).map_err(Error::Name)
    }
}

/// A JSON body whose rejection is a [`Refusal`] too.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let body = time::timeout(PATIENCE, Json::<T>::from_request(request, state));
        let body = body
            .await
            .map_err(|_| Error::BadRequest("the body did not come in time".to_owned()))?;
        match body {
            Ok(Json(body)) => Ok(Self(body)),
            // A data error may quote the body, and a body may hold a private key.
            Err(JsonRejection::JsonDataError(_) | JsonRejection::JsonSyntaxError(_)) => Err(
                Error::BadRequest("the body is not what this request takes".to_owned()),
            ),
            Err(rejection) => Err(Error::BadRequest(rejection.body_text())),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Ending => StatusCode::SERVICE_UNAVAILABLE,
            Self::Denied { .. } | Self::NotOwn { .. } => StatusCode::FORBIDDEN,
            Self::UnknownTunnel { .. } => StatusCode::NOT_FOUND,
            Self::TunnelExists { .. } => StatusCode::CONFLICT,
            Self::BadRequest(_) | Self::Name(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        let refusal: Refusal = self.refusal();
        (status, Json(refusal)).into_response()
    }
}
