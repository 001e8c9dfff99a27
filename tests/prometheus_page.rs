//! The listener, as Prometheus and a process supervisor see it.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test that can't go on fails")]

mod export;

use esxi_otel_agent::config::PrometheusConfig;
use esxi_otel_agent::metric::{Attributes, Sample};
use esxi_otel_agent::readings::{Reading, Readings, Report};
use esxi_otel_agent::stats::Stats;
use esxi_otel_agent::target::TargetId;
use esxi_otel_agent::web::{Shown, Web};
use export::{LIMIT, STATUS, TOOK};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Listener {
    address: SocketAddr,
    ready: watch::Sender<bool>,
    cancel: CancellationToken,
    served: JoinHandle<()>,
}

async fn listen(hosts: usize) -> Listener {
    let readings = Readings::new();
    for i in 0..hosts {
        let host = format!("esx{i}.example.org");
        let attributes =
            Attributes::new([("hostsystem", host.as_str()), ("service", "hostd"), ("site", "eu-1")]);
        let samples = vec![Sample::new(&STATUS, attributes, 1.0)];
        readings.record(Report {
            target: TargetId::host(host),
            collector: "test",
            readings: vec![Reading { part: "hostd".into(), samples }],
            stale_after: None,
        });
    }
    let (ready, is_ready) = watch::channel(false);
    let config = PrometheusConfig { listen: "127.0.0.1:0".parse().expect("an address") };
    let web = Web::bind(&config).await.expect("a free port");
    let address = web.address();
    let shown = Shown { defs: vec![&STATUS, &TOOK].into(), readings, stats: Stats::new(), ready: is_ready };
    let cancel = CancellationToken::new();
    let served = tokio::spawn(web.serve(shown, cancel.clone()));
    Listener { address, ready, cancel, served }
}

impl Listener {
    /// Status, content type and body of an answer.
    async fn get(&self, path: &str, accept: &str) -> (u16, String, String) {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let request = client.get(format!("http://{}{path}", self.address)).header("accept", accept);
        let response = request.send().await.expect("an answer");
        let kind = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = kind.to_owned();
        (response.status().as_u16(), kind, response.text().await.expect("UTF-8"))
    }
}

#[tokio::test]
async fn prometheus_gets_the_format_that_it_asks_for() {
    install_crypto();
    let listener = listen(2).await;
    let head = "# HELP test_service_status 1 while the service runs.\n# TYPE test_service_status gauge\n";
    let series = |i| {
        format!(
            "test_service_status{{hostsystem=\"esx{i}.example.org\",service=\"hostd\",site=\"eu-1\"}} 1\n"
        )
    };
    let page = format!("{head}{}{}", series(0), series(1));

    let (status, kind, body) = listener.get("/metrics", "*/*").await;
    assert_eq!((status, kind.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
    assert!(body.starts_with(&page), "{body}");
    assert!(
        body.contains("\n# TYPE esxi_agent_process_cpu_time_seconds_total counter\n"),
        "the agent itself, behind"
    );
    assert!(!body.contains("# EOF"));

    let (status, kind, body) = listener.get("/metrics", "application/openmetrics-text;version=1.0.0").await;
    assert_eq!((status, kind.as_str()), (200, "application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(body.starts_with(&page) && body.ends_with("\n# EOF\n"), "{body}");
    assert!(
        body.contains("\n# TYPE esxi_agent_process_cpu_time_seconds counter\n"),
        "a family without _total"
    );
}

#[tokio::test]
async fn a_large_page_arrives_whole() {
    install_crypto();
    let listener = listen(20_000).await;
    let (_, _, body) = listener.get("/metrics", "").await;
    assert_eq!(body.lines().filter(|line| line.starts_with("test_service_status{")).count(), 20_000);
    assert!(body.ends_with('\n'));
}

#[tokio::test]
async fn scrapers_that_do_not_read_hold_up_nobody_for_long() {
    install_crypto();
    let listener = listen(100_000).await;
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut scraper = TcpStream::connect(listener.address).await.expect("connected");
        scraper.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        stalled.push(scraper);
    }
    // Those that have their turn get a beginning.
    let mut byte = [0];
    tokio::time::timeout(LIMIT, stalled[0].read_exact(&mut byte)).await.expect("in time").expect("an answer");
    let (status, _, why) = listener.get("/metrics", "").await;
    assert_eq!((status, why.as_str()), (503, "too many scrapes at a time\n"));
    assert_eq!(listener.get("/healthz", "").await.0, 200);
    drop(stalled);
    let (status, _, body) = listener.get("/metrics", "").await;
    assert_eq!(status, 200);
    assert_eq!(body.lines().filter(|line| line.starts_with("test_service_status{")).count(), 100_000);
}

#[tokio::test]
async fn a_supervisor_learns_whether_it_lives_and_whether_it_is_ready() {
    install_crypto();
    let listener = listen(0).await;
    assert_eq!(listener.get("/healthz", "").await.0, 200);
    assert_eq!(listener.get("/readyz", "").await.0, 503);
    listener.ready.send_replace(true);
    assert_eq!(listener.get("/readyz", "").await.0, 200);
    assert!(listener.get("/", "").await.2.contains("/metrics"));
    assert_eq!(listener.get("/nothing", "").await.0, 404);
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_key() {
    let listener = listen(0).await;
    let error = Web::bind(&PrometheusConfig { listen: listener.address }).await.expect_err("in use");
    assert_eq!(
        error.to_string(),
        format!("prometheus.listen: {}: Address already in use (os error 98)", listener.address)
    );
}

#[tokio::test]
async fn the_end_does_not_wait_for_clients_that_stay() {
    let listener = listen(0).await;
    let mut idle = TcpStream::connect(listener.address).await.expect("connected");
    let mut kept = TcpStream::connect(listener.address).await.expect("connected");
    kept.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    let mut byte = [0];
    kept.read_exact(&mut byte).await.expect("an answer");
    listener.cancel.cancel();
    tokio::time::timeout(Duration::from_secs(10), listener.served).await.expect("in time").expect("no panic");
    assert!(matches!(idle.read(&mut byte).await, Ok(0) | Err(_)), "closed");
}

/// As the program does at its start: one TLS stack for everybody.
fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
