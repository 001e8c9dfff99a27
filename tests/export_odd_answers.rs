//! What answers is no Collector, or not just now: proxies, redirects, garbage. Nothing is lost to them.

#![allow(clippy::expect_used, reason = "a test that can't go on fails")]

mod export;

use axum::http::{HeaderMap, HeaderValue, StatusCode};
use esxi_otel_agent::simulator::sink::{Sink, SinkOptions};
use esxi_otel_agent::telemetry::export::peer::Peer;
use esxi_otel_agent::telemetry::export::transport::Destination;
use export::{Agent, LIMIT, otlp};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

#[derive(Clone, Copy)]
struct Odd {
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: &'static [u8],
}

/// Answers everything like this, and counts.
async fn answers(odd: Odd, asked: watch::Sender<u32>) -> SocketAddr {
    let answer = move || async move {
        asked.send_modify(|asked| *asked += 1);
        let mut headers = HeaderMap::new();
        for (name, value) in odd.headers {
            headers.insert(*name, HeaderValue::from_static(value));
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

/// Resets every stream with this code of HTTP/2's, and counts.
async fn resets(code: u32, asked: watch::Sender<u32>) -> SocketAddr {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const ACKNOWLEDGED: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
    const HEADERS: u8 = 1;
    let talk = move |mut stream: TcpStream, asked: watch::Sender<u32>| async move {
        stream.read_exact(&mut [0; b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()]).await?;
        stream.write_all(&[SETTINGS, ACKNOWLEDGED].concat()).await?;
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            let [a, b, c, kind, _, stream_id @ ..] = head;
            let mut body = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            stream.read_exact(&mut body).await?;
            if kind == HEADERS {
                asked.send_modify(|asked| *asked += 1);
                let reset = [&[0, 0, 4, 3, 0][..], &stream_id, &code.to_be_bytes()].concat();
                stream.write_all(&reset).await?;
            }
        }
        #[expect(unreachable_code, reason = "tells the type of an error")]
        std::io::Result::Ok(())
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(talk(stream, asked.clone()));
        }
    });
    address
}

async fn nothing_is_lost_to(what: &'static str, odd: Odd) {
    let (asking, asked) = watch::channel(0);
    let address = answers(odd, asking).await;
    nothing_is_lost_at(what, address, asked).await;
}

async fn nothing_is_lost_at(what: &'static str, address: SocketAddr, mut asked: watch::Receiver<u32>) {
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
    const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc")];
    const PACKED: &[(&str, &str)] = &[("content-type", "application/grpc"), ("grpc-encoding", "gzip")];
    let odd = |status, headers, body| Odd { status, headers, body };
    tokio::join!(
        nothing_is_lost_to("a redirect", odd(302, &[("location", "http://127.0.0.1:9/")], b"")),
        nothing_is_lost_to("a proxy without a backend", odd(404, &[], b"default backend - 404")),
        nothing_is_lost_to("a proxy whose backend is away", odd(502, &[], b"<html>Bad Gateway</html>")),
        nothing_is_lost_to("a proxy that is busy", odd(503, &[], b"")),
        nothing_is_lost_to("a page", odd(200, &[("content-type", "text/html")], b"<html>hello</html>")),
        nothing_is_lost_to("garbage as an answer", odd(200, GRPC, b"\0\0\0\0\x04\xff\xff\xff\xff")),
        nothing_is_lost_to("an answer that is cut off", odd(200, GRPC, b"\0\0\0\x10\0half")),
        nothing_is_lost_to("an answer that claims 4 GiB", odd(200, GRPC, b"\0\xff\xff\xff\xff and more")),
        nothing_is_lost_to("one that can't be unpacked", odd(200, PACKED, b"\x01\0\0\0\x04gzip")),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_resets_a_stream_has_not_refused_it() {
    const ENHANCE_YOUR_CALM: u32 = 0xb;
    for code in 0..=ENHANCE_YOUR_CALM + 2 {
        let (asking, asked) = watch::channel(0);
        let address = resets(code, asking).await;
        nothing_is_lost_at("a reset", address, asked).await;
    }
}
