//! Metrics for Prometheus: counted by the kernel all the time, read when somebody asks.

mod family;
mod measure;
mod page;
mod sample;
mod serve;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lockne_core::api::MetricsStatus;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::mpsc,
    task::JoinHandle,
    time,
};
use tracing::{info, warn};

pub(crate) use self::{page::Pages, sample::Samples};
use crate::server::Command;

/// When to try again to listen.
const RETRY: Duration = Duration::from_secs(5);
const BACKLOG: u32 = 64;

/// Who serves metrics, where the configuration wants that.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    wanted: Option<SocketAddr>,
    /// Nobody is served before the daemon serves.
    pages: Option<Pages>,
    task: Option<JoinHandle<()>>,
    problem: Problem,
}

/// Why nobody listens who should.
type Problem = Arc<Mutex<Option<String>>>;

impl Metrics {
    /// Lets it serve from now on.
    pub(crate) async fn start(&mut self, commands: mpsc::Sender<Command>) {
        self.pages = Some(Pages::new(commands));
        self.restart().await;
    }

    /// Serves at this address from now on, or nowhere.
    ///
    /// Rules hold whether anybody listens or not: a port that is taken, or an address that is not there yet, is
    /// tried again, and told by [`status`](Self::status).
    pub(crate) async fn listen(&mut self, wanted: Option<SocketAddr>) {
        if self.wanted != wanted {
            self.wanted = wanted;
            self.restart().await;
        }
    }

    /// Where it serves, and what is in the way.
    pub(crate) fn status(&self) -> Option<MetricsStatus> {
        Some(MetricsStatus {
            listen: self.wanted?,
            problem: get(&self.problem),
        })
    }

    async fn restart(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            // Until then it has the port.
            let _aborted = task.await;
        }
        self.problem = Problem::default();
        let (Some(address), Some(pages)) = (self.wanted, self.pages.clone()) else {
            return;
        };
        let problem = self.problem.clone();
        let first = attempt(address, &problem);
        self.task = Some(tokio::spawn(async move {
            let mut listener = first;
            loop {
                if let Some(listener) = listener {
                    info!("metrics are at http://{address}/metrics");
                    serve::serve(listener, pages.clone()).await;
                }
                time::sleep(RETRY).await;
                listener = attempt(address, &problem);
            }
        }));
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn get(problem: &Problem) -> Option<String> {
    let problem = problem.lock().unwrap_or_else(PoisonError::into_inner);
    problem.clone()
}

/// Tries to listen; what fails is told once.
fn attempt(address: SocketAddr, problem: &Problem) -> Option<TcpListener> {
    let (listener, now) = match bind(address) {
        Ok(listener) => (Some(listener), None),
        Err(error) => (None, Some(explain(address, &error))),
    };
    let mut problem = problem.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(now) = &now
        && problem.as_ref() != Some(now)
    {
        warn!("{now}");
    }
    *problem = now;
    listener
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // Connections of before do not keep the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn explain(address: SocketAddr, error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "; another program has that port, so give `listen` another one",
        io::ErrorKind::AddrNotAvailable => "; this machine does not have that address now",
        _ => "",
    };
    format!("cannot serve metrics at {address}: {error}{hint}")
}
