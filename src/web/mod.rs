//! The listener: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever watches the process.
//!
//! Open to everybody who reaches the port, so it is bounded: in connections, in the time that a request's
//! header may take, in the time that a peer may leave a response unread, and in the time that a connection may
//! last.

mod patience;
mod scrape;

use crate::config::PrometheusConfig;
use crate::metric::MetricDef;
use crate::readings::Readings;
use crate::stats::Stats;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use patience::Patience;
use scrape::Scrapes;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::instrument::WithSubscriber;

/// Connections at a time. More wait in the listener's backlog.
const CONNECTIONS: usize = 64;
/// Time for a request's header. It also counts while a kept connection is idle, so it is longer than the usual
/// pause between two scrapes.
const HEADER: Duration = Duration::from_secs(75);
/// Time that a peer may leave a response unread.
const STALL: Duration = Duration::from_secs(15);
/// Age at which a connection is closed after the response that is under way.
const CONNECTION: Duration = Duration::from_secs(15 * 60);
/// Time that a response gets when its connection is to be closed.
const CLOSING: Duration = Duration::from_secs(3);
/// Pause when no connection can be accepted, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The port can't be had.
#[derive(Debug, thiserror::Error)]
#[error("prometheus.listen: {address}: {source}")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// What is shown.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The metrics, in the order of the page.
    pub defs: Arc<[&'static MetricDef]>,
    /// What was found out.
    pub readings: Arc<Readings>,
    /// What the agent counts about itself.
    pub stats: Arc<Stats>,
    /// Whether the inventory is loaded and a first round has ended.
    pub ready: watch::Receiver<bool>,
}

/// A listener that is bound and not served yet: so a port that is in use ends the start, not the run.
#[derive(Debug)]
pub struct Web {
    listener: TcpListener,
    address: SocketAddr,
}

impl Web {
    /// Binds the address of the configuration.
    pub async fn bind(config: &PrometheusConfig) -> Result<Self, BindError> {
        let wrong = |source| BindError { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(wrong)?;
        let address = listener.local_addr().map_err(wrong)?;
        Ok(Self { listener, address })
    }

    /// Where it listens, with the port that was picked for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `cancel`; responses that are under way get three more seconds.
    pub async fn serve(self, shown: Shown, cancel: CancellationToken) {
        let router = router(shown);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let connections = TaskTracker::new();
        let accept = async {
            loop {
                // Never closed, so there is always a place some time.
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                match self.listener.accept().await {
                    Ok((stream, _)) => {
                        let connection = connection(stream, router.clone(), cancel.clone());
                        let connection = async move {
                            connection.await;
                            drop(place);
                        };
                        connections.spawn(connection.with_current_subscriber());
                    }
                    Err(error) => {
                        tracing::debug!("prometheus.listen: accepting a connection: {error}");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        cancel.run_until_cancelled(accept).await;
        connections.close();
        let _ = timeout(CLOSING, connections.wait()).await;
    }
}

async fn connection(stream: TcpStream, router: Router, cancel: CancellationToken) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER);
    let service = TowerToHyperService::new(router);
    let mut connection =
        std::pin::pin!(http.serve_connection(TokioIo::new(Patience::new(stream, STALL)), service));
    // How a connection ends is the client's business.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = cancel.cancelled() => {}
        () = sleep(CONNECTION) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(CLOSING, connection).await;
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/", get(async || Html(INDEX)))
        .route("/metrics", get(scrape::metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(Scrapes::new(shown))
}

async fn ready(State(scrapes): State<Scrapes>) -> (StatusCode, &'static str) {
    match *scrapes.shown.ready.borrow() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the first round has not ended yet\n"),
    }
}

const INDEX: &str = "\
<!doctype html>
<html lang=\"en\">
<head><meta charset=\"utf-8\"><title>esxi-otel-agent</title></head>
<body>
<h1>esxi-otel-agent</h1>
<ul>
<li><a href=\"/metrics\">/metrics</a></li>
<li><a href=\"/healthz\">/healthz</a>: the process is alive</li>
<li><a href=\"/readyz\">/readyz</a>: the inventory is loaded and a first round has ended</li>
</ul>
</body>
</html>
";
