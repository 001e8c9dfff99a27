//! What answers is no Collector, or not just now: proxies, redirects, garbage. Nothing is lost to them.

#![allow(clippy::expect_used, reason = "a test that can't go on fails")]

mod export;

use axum::http::{HeaderMap, HeaderValue, StatusCode};
use esxi_otel_agent::simulator::sink::{Sink, SinkOptions};
use esxi_otel_agent::telemetry::export::peer::Peer;
use esxi_otel_agent::telemetry::export::transport::Destination;
use export::{Agent, LIMIT, otlp};
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

#[derive(Clone, Copy)]
struct Odd {
    status: u16,
    header: Option<(&'static str, &'static str)>,
    body: &'static [u8],
}

/// Answers everything like this, and counts.
async fn answers(odd: Odd, asked: watch::Sender<u32>) -> SocketAddr {
    let answer = move || async move {
        asked.send_modify(|asked| *asked += 1);
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = odd.header {
            headers.insert(name, HeaderValue::from_static(value));
        }
        (StatusCode::from_u16(odd.status).expect("a status"), headers, odd.body)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let routes = Routes::from(axum::Router::new().fallback(answer));
    let server = Server::builder().add_routes(routes).serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(server);
    address
}

async fn nothing_is_lost_to(what: &'static str, odd: Odd) {
    let (asking, mut asked) = watch::channel(0);
    let address = answers(odd, asking).await;
    let agent = Agent::start(&otlp(format!("http://{address}")));
    agent.visited("esx1", &[("hostd", 1.0)]);
    agent.exporter.export_now().await.expect("running");
    let twice = tokio::time::timeout(LIMIT, asked.wait_for(|asked| *asked >= 2)).await;
    twice.expect("in time").expect("the server lives");
    let sink = Sink::start(SinkOptions::default()).expect("a free port");
    let config = otlp(sink.endpoint());
    let peer = Peer::new(&config).expect("valid");
    agent.destination.send_replace(Destination { peer, compression: config.compression });
    let arrived = sink.wait_until(|seen| seen.value("test.service.status", &[]) == Some(1.0), LIMIT).await;
    assert!(arrived.is_ok(), "{what}: {arrived:?}");
    let counted = (agent.counted("rejected"), agent.counted("dropped"));
    assert_eq!(counted, (0.0, 0.0), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_no_collector_is_asked_again() {
    const GRPC: Option<(&str, &str)> = Some(("content-type", "application/grpc"));
    let odd = |status, header, body| Odd { status, header, body };
    tokio::join!(
        nothing_is_lost_to("a redirect", odd(302, Some(("location", "http://127.0.0.1:9/")), b"")),
        nothing_is_lost_to("a proxy without a backend", odd(404, None, b"default backend - 404")),
        nothing_is_lost_to("a proxy whose backend is away", odd(502, None, b"<html>Bad Gateway</html>")),
        nothing_is_lost_to("a proxy that is busy", odd(503, None, b"")),
        nothing_is_lost_to("a page", odd(200, Some(("content-type", "text/html")), b"<html>hello</html>")),
        nothing_is_lost_to("garbage as an answer", odd(200, GRPC, b"\0\0\0\0\x04\xff\xff\xff\xff")),
        nothing_is_lost_to("an answer that is cut off", odd(200, GRPC, b"\0\0\0\x10\0half")),
    );
}
