//! Serves the page to Prometheus, by HTTP on TCP.
//!
//! Whoever can reach the address may ask. So nothing is read but the head of a request, a connection ends with
//! its first answer or after a while, and there are only so many: the oldest goes when another one comes.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
    serve::Listener,
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
    time,
};
use tracing::debug;

use super::page::Pages;
use crate::{error::Error, server};

/// Connections at a time. Prometheus needs one, and each costs a descriptor.
const MAX_CONNECTIONS: usize = 32;
/// How long a connection lasts.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the head of a request may have; browsers send a tenth.
const MAX_HEAD: usize = 16 << 10;

/// Serves until dropped.
pub(super) async fn serve(mut listener: TcpListener, pages: Pages) {
    let is_local = listener
        .local_addr()
        .is_ok_and(|it| it.ip().to_canonical().is_loopback());
    let mut router = Router::new()
        .route("/metrics", get(metrics))
        .fallback(elsewhere)
        .with_state(pages);
    if is_local {
        router = router.layer(middleware::from_fn(meant_for_us));
    }
    let mut http = server::http();
    http.keep_alive(false).max_buf_size(MAX_HEAD);
    let mut connections = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        // Waits and tries again where the system has no room for a connection.
        let (stream, peer) = Listener::accept(&mut listener).await;
        while connections.try_join_next().is_some() {}
        oldest_first.retain(|connection| !connection.is_finished());
        if oldest_first.len() >= MAX_CONNECTIONS
            && let Some(oldest) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        let service = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service);
        oldest_first.push_back(connections.spawn(async move {
            match time::timeout(PATIENCE, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%peer, %error, "a connection for metrics broke"),
                Err(_) => debug!(%peer, "a connection for metrics took too long"),
            }
        }));
    }
}

async fn metrics(State(pages): State<Pages>, headers: HeaderMap) -> Result<Response, Error> {
    pages.answer(&headers).await
}

async fn elsewhere() -> Response {
    (StatusCode::NOT_FOUND, "metrics are at /metrics\n").into_response()
}

/// Refuses pages of a browser that got here by a name of their own (DNS rebinding).
async fn meant_for_us(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    if host.is_none_or(|host| host.to_str().is_ok_and(is_here)) {
        return next.run(request).await;
    }
    let answer = "ask by address or as localhost\n";
    (StatusCode::MISDIRECTED_REQUEST, answer).into_response()
}

/// Whether the value of a `Host` header is an address, or localhost.
fn is_here(host: &str) -> bool {
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = without_port.trim_matches(['[', ']']);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_not_ours() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:9108",
            "[::1]:9108",
            "[::1]",
            "localhost:9108",
            "LOCALHOST",
        ] {
            assert!(is_here(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9108",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
        ] {
            assert!(!is_here(host), "{host}");
        }
    }
}
