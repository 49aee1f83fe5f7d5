//! How it is made true: the only crate that changes the system.

mod attach;
mod authority;
mod clock;
pub mod config;
mod configured;
mod connection;
mod daemon;
mod dns;
pub mod doctor;
mod error;
mod explain;
mod failover;
pub mod inherited;
pub mod kernel;
pub mod leftover;
mod mend;
mod metrics;
pub mod observe;
mod peer;
mod ping;
mod privilege;
mod process;
pub mod ready;
mod reconcile;
mod record;
mod room;
pub mod route;
pub mod rules;
mod server;
mod service;
pub mod socket;
pub mod state_dir;
mod status;
mod tunnels;
mod watch;
pub mod wireguard;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use lockne_core::{api::Lifetime, permission::Permissions};
use tokio::runtime;

pub use attach::TargetError;
pub use error::Error;
pub use lockne_abi::MarkField;

use crate::{
    daemon::Daemon,
    kernel::Feature,
    ready::{Announce, Ready},
    state_dir::{Lock, StateDir},
};

/// How a daemon is to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it keeps its state.
    pub state: StateDir,
    /// Where it serves its clients.
    pub socket: PathBuf,
    /// Whose that socket is.
    pub socket_of: SocketOf,
    /// The bits of the mark that carry the policy.
    pub field: MarkField,
    /// Whether it ends with its last job.
    pub lifetime: Lifetime,
    /// Its configuration; `None` for the one that an earlier daemon had, if any.
    pub config: Option<config::Files>,
    /// What users other than root may ask for.
    pub permissions: Permissions,
    /// What the kernel has, and it does without all the same.
    pub without: Vec<Feature>,
}

/// Whose a control socket is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketOf {
    /// The daemon's: it makes it and takes it away.
    #[default]
    Daemon,
    /// The service manager's, which goes on listening when the daemon has ended.
    Service,
}

/// How long a new daemon waits for one that is just ending.
const HANDOVER: Duration = Duration::from_secs(10);

/// Serves until told to stop, in the network namespace of the calling thread.
///
/// On SIGTERM and SIGINT the rules stay in the kernel if a policed process lives, so that it stays
/// bound to its tunnel; else everything is taken back.
///
/// # Errors
///
/// Fails if another daemon owns the state directory, if the kernel lacks something, or if the mark
/// is used by others. Nothing is left behind then that was not there before.
pub fn serve(options: Options, announce: Announce) -> Result<(), Error> {
    if announce == Announce::ToParent {
        // The terminal's Ctrl-C is meant for the program that runs in it.
        let _already_leader = rustix::process::setsid();
        close_inherited();
    }
    let result = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)
        .and_then(|runtime| runtime.block_on(run(options, announce)));
    if let Err(error) = &result {
        announce.say(&Ready::Failed(error.refusal()));
    }
    result
}

/// Closes what the program, for which this daemon was started, keeps open across `exec`: else pipes
/// and connections would stay open until the daemon ends.
fn close_inherited() {
    // SAFETY: the daemon has opened nothing yet, so nobody here owns a descriptor above the standard
    // ones. Before Linux 5.9 there is no such call, and they stay open.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

async fn run(options: Options, announce: Announce) -> Result<(), Error> {
    privilege::raise_open_files();
    privilege::keep_needed();
    options.state.create()?;
    let Some(lock) = own(&options).await? else {
        announce.say(&Ready::Serving);
        return Ok(());
    };
    // Before the kernel is touched: a path that cannot be a socket changes nothing.
    let socket = options.socket.clone();
    let handed = service::listener(&socket).transpose();
    let lends = handed.is_some();
    let listener = handed
        .unwrap_or_else(|| server::bind(&socket))
        .map_err(|source| Error::Socket {
            path: socket.clone(),
            source,
        })?;
    let options = Options {
        socket_of: if lends {
            SocketOf::Service
        } else {
            options.socket_of
        },
        ..options
    };
    match Daemon::start(options, lock).await {
        Ok(daemon) => {
            give_memory_back();
            Box::pin(daemon.serve(listener, announce)).await
        }
        Err(error) => {
            if lends {
                connection::refuse_all(&listener, &error.refusal()).await;
            } else {
                let _not_there = state_dir::remove_socket(&socket);
            }
            Err(error)
        }
    }
}

/// Takes the state directory; `None` if a daemon that serves has it and that is good enough.
async fn own(options: &Options) -> Result<Option<Lock>, Error> {
    let started = Instant::now();
    loop {
        match options.state.lock() {
            Err(error @ state_dir::Error::Owned { .. }) => {
                if options.lifetime == Lifetime::UntilDown || started.elapsed() > HANDOVER {
                    return Err(error.into());
                }
            }
            other => return Ok(Some(other?)),
        }
        if tokio::net::UnixStream::connect(&options.socket)
            .await
            .is_ok()
        {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Gives the kernel back what was needed to start only: its own types take 20 MB to read.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointers, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
