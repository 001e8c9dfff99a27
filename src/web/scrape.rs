//! `/metrics`: a page of a large fleet is some 40 MB, so it is made chunk by chunk as the scraper takes it, of a
//! snapshot that holds up nobody. Bounded in the number of pages at a time, and in the time of each: a page keeps
//! its snapshot in memory until it ends.

use super::Shown;
use crate::telemetry::prometheus::{Format, Page};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

/// Pages at a time. Others wait their turn.
const PAGES: usize = 4;
/// Longest time to wait for it.
const TURN: Duration = Duration::from_secs(5);
/// Longest time that a page may take. Prometheus gives up after 10 s unless told otherwise.
const LONGEST: Duration = Duration::from_secs(60);

/// What is shown, and how many may look at it at a time.
#[derive(Clone)]
pub(super) struct Scrapes {
    pub(super) shown: Shown,
    turns: Arc<Semaphore>,
}

impl Scrapes {
    pub(super) fn new(shown: Shown) -> Self {
        Self { shown, turns: Arc::new(Semaphore::new(PAGES)) }
    }
}

pub(super) async fn metrics(State(scrapes): State<Scrapes>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = Format::negotiate(accept);
    let Ok(Ok(turn)) = timeout(TURN, Arc::clone(&scrapes.turns).acquire_owned()).await else {
        let why = "too many scrapes at a time\n";
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "10")], why).into_response();
    };
    let shown = scrapes.shown;
    let page = move || Page::new(format, &shown.defs, &shown.readings, &shown.stats);
    match tokio::task::spawn_blocking(page).await {
        Ok(page) => {
            let chunks = futures::stream::iter(Chunks { page, until: Instant::now() + LONGEST, _turn: turn });
            ([(header::CONTENT_TYPE, format.content_type())], Body::from_stream(chunks)).into_response()
        }
        Err(error) => {
            tracing::error!("making the page of metrics: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The chunks of a page, each made when the one before has been sent. One that takes too long ends with an
/// error, so that no scraper takes a part for the whole.
struct Chunks {
    page: Page,
    until: Instant,
    _turn: OwnedSemaphorePermit,
}

impl Iterator for Chunks {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        if Instant::now() > self.until {
            return Some(Err(io::ErrorKind::TimedOut.into()));
        }
        self.page.next().map(Ok)
    }
}
