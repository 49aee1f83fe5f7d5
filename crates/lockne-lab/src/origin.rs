//! The server on the internet: says which address it sees, sends downloads, and remembers who came.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, Path},
    routing::get,
};
use tokio::{io::AsyncWriteExt, net::TcpListener, task::JoinSet};

use crate::{
    datagram::Datagrams,
    internet::{LAN_V4, LAN_V6, ORIGIN_V4, ORIGIN_V6},
    namespace::{self, Namespace},
};

/// The port where TCP and UDP tell the caller's address and port, as `ADDRESS PORT\n`.
pub const ADDRESS_PORT: u16 = 7777;
/// The port of HTTP: `/` tells the caller's address, `/bytes/N` sends so many bytes or `endless`
/// ones, `/bytes/N/RATE` so many of them a second.
pub const HTTP_PORT: u16 = 80;

/// The server.
#[derive(Debug)]
pub struct Origin {
    visits: Visits,
    datagrams: Datagrams,
    _streams: namespace::Service,
}

/// Somebody who came, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Visit {
    /// What for.
    pub service: Service,
    /// From which address, as the server saw it.
    pub source: IpAddr,
    /// How many connections, datagrams or pings.
    pub times: u64,
}

/// What the server offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// The caller's address by TCP.
    Tcp,
    /// The caller's address by UDP.
    Udp,
    /// HTTP.
    Http,
    /// ICMP echo, which the kernel answers.
    Ping,
}

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace or a TCP service failed.
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
    /// The UDP service failed.
    #[error("cannot answer datagrams")]
    Datagrams(#[source] io::Error),
}

impl Origin {
    pub(crate) fn start(internet: &Namespace) -> Result<Self, Error> {
        let visits = Visits::default();
        let addresses: [IpAddr; 4] = [
            ORIGIN_V4.into(),
            ORIGIN_V6.into(),
            LAN_V4.into(),
            LAN_V6.into(),
        ];
        let addresses = addresses.map(|address| SocketAddr::new(address, ADDRESS_PORT));
        let datagrams = internet
            .run(|| Datagrams::start(&addresses, visits.clone()))?
            .map_err(Error::Datagrams)?;
        let serving = visits.clone();
        let streams = internet.serve("origin", async move || serve_streams(serving).await)?;
        Ok(Self {
            visits,
            datagrams,
            _streams: streams,
        })
    }

    /// Who has come so far, each service and address once.
    ///
    /// Datagrams and pings that have arrived are counted at once, connections when they are accepted,
    /// which is before their answer.
    #[must_use]
    pub fn seen(&self) -> Vec<Visit> {
        self.datagrams.drain();
        self.visits.list()
    }

    /// How often `source` came for `service`.
    #[must_use]
    pub fn times(&self, service: Service, source: impl Into<IpAddr>) -> u64 {
        let source = source.into();
        let seen = self.seen();
        let visit = seen
            .iter()
            .find(|visit| visit.service == service && visit.source == source);
        visit.map_or(0, |visit| visit.times)
    }

    /// Waits until what it saw is as `is_so` says, and gives that; or what it saw at the deadline.
    ///
    /// # Errors
    ///
    /// When it has not come to that within `patience`.
    pub fn wait_until(
        &self,
        patience: Duration,
        is_so: impl Fn(&[Visit]) -> bool,
    ) -> Result<Vec<Visit>, Vec<Visit>> {
        let deadline = Instant::now() + patience;
        loop {
            let seen = self.seen();
            if is_so(&seen) {
                return Ok(seen);
            }
            if Instant::now() > deadline {
                return Err(seen);
            }
            self.visits.wait(Duration::from_millis(20));
        }
    }

    /// Forgets who came.
    pub fn clear(&self) {
        self.datagrams.drain();
        self.visits.clear();
    }
}

/// Who came, shared by all services.
#[derive(Clone, Debug, Default)]
pub(crate) struct Visits(Arc<(Mutex<Counts>, Condvar)>);

type Counts = BTreeMap<(Service, IpAddr), u64>;

impl Visits {
    pub(crate) fn record(&self, service: Service, source: IpAddr) {
        *self
            .lock()
            .entry((service, source.to_canonical()))
            .or_default() += 1;
        self.0.1.notify_all();
    }

    fn list(&self) -> Vec<Visit> {
        let counts = self.lock();
        let visits = counts.iter().map(|(&(service, source), &times)| Visit {
            service,
            source,
            times,
        });
        visits.collect()
    }

    fn wait(&self, patience: Duration) {
        let waited = self.0.1.wait_timeout(self.lock(), patience);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the address services say.
pub(crate) fn answer(caller: SocketAddr) -> String {
    format!("{} {}\n", caller.ip().to_canonical(), caller.port())
}

async fn serve_streams(visits: Visits) -> io::Result<JoinSet<()>> {
    // Of both families: Linux takes IPv4 on the IPv6 wildcard.
    let bind = async |port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await;
    let (addresses, http) = (bind(ADDRESS_PORT).await?, bind(HTTP_PORT).await?);
    let mut tasks = JoinSet::new();
    tasks.spawn(tell_addresses(addresses, visits.clone()));
    tasks.spawn(async move {
        let service = router(visits).into_make_service_with_connect_info::<SocketAddr>();
        if let Err(error) = axum::serve(http, service).await {
            tracing::error!(%error, "the web server of the lab stopped");
        }
    });
    Ok(tasks)
}

async fn tell_addresses(listener: TcpListener, visits: Visits) {
    let mut callers = JoinSet::new();
    loop {
        // A caller that is gone before it was accepted is no reason to stop.
        let Ok((mut stream, caller)) = listener.accept().await else {
            continue;
        };
        visits.record(Service::Tcp, caller.ip());
        callers.spawn(async move {
            let _ = stream.write_all(answer(caller).as_bytes()).await;
        });
        while callers.try_join_next().is_some() {}
    }
}

fn router(visits: Visits) -> Router {
    let seen = visits.clone();
    let address = async move |ConnectInfo(caller): ConnectInfo<SocketAddr>| {
        seen.record(Service::Http, caller.ip());
        format!("{}\n", caller.ip().to_canonical())
    };
    let seen = visits.clone();
    let bytes = async move |ConnectInfo(caller): ConnectInfo<SocketAddr>,
                            Path(count): Path<String>| {
        seen.record(Service::Http, caller.ip());
        download(&count, None)
    };
    let bytes_at_rate =
        async move |ConnectInfo(caller): ConnectInfo<SocketAddr>,
                    Path((count, rate)): Path<(String, u32)>| {
            visits.record(Service::Http, caller.ip());
            download(&count, Some(rate))
        };
    Router::new()
        .route("/", get(address))
        .route("/bytes/{count}", get(bytes))
        .route("/bytes/{count}/{rate}", get(bytes_at_rate))
}

fn download(count: &str, rate: Option<u32>) -> Result<Body, axum::http::StatusCode> {
    const CHUNK: u32 = 64 << 10;
    const TICKS: u32 = 50;
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

    let left = match count {
        "endless" => u64::MAX,
        number => number
            .parse()
            .map_err(|_| axum::http::StatusCode::BAD_REQUEST)?,
    };
    let size = rate.map_or(CHUNK, |rate| (rate / TICKS).clamp(1, CHUNK));
    let period = rate.map(|rate| Duration::from_secs(size.into()) / rate.max(1));
    let clock = period.map(tokio::time::interval);
    let chunks = futures_util::stream::unfold((left, clock), move |(left, mut clock)| async move {
        if left == 0 {
            return None;
        }
        if let Some(clock) = &mut clock {
            clock.tick().await;
        }
        let whole = size as usize;
        let size = usize::try_from(left).map_or(whole, |left| whole.min(left));
        let chunk = Ok::<_, Infallible>(Bytes::from_static(&ZEROS[..size]));
        Some((chunk, (left - size as u64, clock)))
    });
    Ok(Body::from_stream(chunks))
}
