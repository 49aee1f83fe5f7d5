//! The page, made at most once a second however many ask for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Bytes,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::sample::plain;
use crate::{error::Error, server::Command};

/// How long a page is good: who asks more often gets the same one, and the daemon's loop hears nothing of it.
const GOOD_FOR: Duration = Duration::from_secs(1);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where pages come from.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    commands: mpsc::Sender<Command>,
    last: Arc<Mutex<Option<Page>>>,
}

/// A page in both forms.
#[derive(Clone, Debug)]
struct Page {
    made: Instant,
    open_metrics: Bytes,
    plain: Bytes,
}

impl Pages {
    pub(crate) fn new(commands: mpsc::Sender<Command>) -> Self {
        Self {
            commands,
            last: Arc::default(),
        }
    }

    /// The page in the form that the headers ask for.
    pub(crate) async fn answer(&self, headers: &HeaderMap) -> Result<Response, Error> {
        let page = self.page().await?;
        let accept = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok());
        let asked = accept.is_some_and(|it| it.contains("application/openmetrics-text"));
        let (kind, body) = if asked {
            (OPEN_METRICS, page.open_metrics)
        } else {
            (PLAIN, page.plain)
        };
        Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
    }

    async fn page(&self) -> Result<Page, Error> {
        let mut last = self.last.lock().await;
        if let Some(page) = &*last
            && page.made.elapsed() < GOOD_FOR
        {
            return Ok(page.clone());
        }
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Metrics(reply)).await;
        sent.map_err(|_| Error::Ending)?;
        let samples = answer.await.map_err(|_| Error::Ending)??;
        let open_metrics = Arc::new(samples).open_metrics();
        let page = Page {
            made: Instant::now(),
            plain: plain(&open_metrics).into(),
            open_metrics: open_metrics.into(),
        };
        *last = Some(page.clone());
        Ok(page)
    }
}
