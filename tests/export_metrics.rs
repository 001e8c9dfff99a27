//! Metrics on their way to a Collector that is large, small, away, silent, or none at all.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test that can't go on fails")]

mod export;

use esxi_otel_agent::accounts::Secret;
use esxi_otel_agent::config::{Compression, OtlpConfig};
use esxi_otel_agent::simulator::sink::{Fault, LARGEST_MESSAGE, Seen, Signal, Sink, SinkOptions};
use esxi_otel_agent::target::TargetId;
use export::{Agent, LIMIT, otlp};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const STATUS: &str = "test.service.status";

fn sink() -> Sink {
    Sink::start(SinkOptions::default()).expect("a free port")
}

fn service(name: &str) -> [(&str, &str); 2] {
    [("hostsystem", "esx1"), ("service", name)]
}

#[tokio::test]
async fn a_large_fleet_comes_in_messages_that_every_collector_takes() {
    let sink = sink();
    let agent = Agent::start(&otlp(sink.endpoint()));
    let names: Vec<_> = (0..20).map(|i| format!("service-{i}")).collect();
    let services: Vec<_> = names.iter().map(|name| (name.as_str(), 1.0)).collect();
    for i in 0..1_000 {
        agent.visited(&format!("esx{i}.example.org"), &services);
    }
    agent.exporter.export_now().await.expect("running");
    let all = |seen: &Seen| {
        seen.series(STATUS, &[]).count() == 20_000
            && seen.series("test_visit_duration_seconds", &[]).count() == 1_000
    };
    sink.wait_until(all, LIMIT).await.expect("every series arrives");
    sink.seen(|seen| {
        assert!(seen.messages.len() >= 3);
        for message in &seen.messages {
            assert!(message.items <= 8_000 && message.bytes < LARGEST_MESSAGE, "{message:?}");
            assert_eq!(message.compression.as_deref(), Some("zstd"));
        }
        assert_eq!(seen.refused, 0);
        assert_eq!(seen.resource.get("service.name").map(String::as_str), Some("agent"));
    });
}

#[tokio::test]
async fn a_service_that_stops_is_told_between_two_exports_and_its_end_is_flagged_once() {
    let sink = sink();
    let agent = Agent::start(&otlp(sink.endpoint()));
    agent.visited("esx1", &[("hostd", 1.0), ("vpxa", 1.0)]);
    sink.wait_until(|seen| seen.value(STATUS, &service("hostd")) == Some(1.0), LIMIT)
        .await
        .expect("first state");

    // The next export is an hour away.
    agent.visited("esx1", &[("hostd", 0.0), ("vpxa", 1.0)]);
    sink.wait_until(|seen| seen.value(STATUS, &service("hostd")) == Some(0.0), LIMIT)
        .await
        .expect("the change");

    agent.readings.forget(&TargetId::host("esx1"));
    sink.wait_until(|seen| seen.ended(STATUS, &[]), LIMIT).await.expect("both end");
    agent.exporter.export_now().await.expect("running");
    agent.visited("esx2", &[("hostd", 1.0)]);
    sink.wait_until(|seen| seen.series(STATUS, &[("hostsystem", "esx2")]).count() == 1, LIMIT)
        .await
        .expect("later");
    sink.seen(|seen| {
        assert_eq!(seen.values(STATUS, &service("hostd")), [Some(1.0), Some(0.0), None]);
        assert_eq!(seen.values(STATUS, &service("vpxa")), [Some(1.0), None]);
        for (series, points) in seen.series(STATUS, &[("hostsystem", "esx1")]) {
            assert_eq!(points.back().map(|end| end.entry), Some(1), "{series:?}: an entry of its own");
        }
    });
}

#[tokio::test]
async fn a_collector_that_was_away_gets_every_state_in_order_with_its_own_time() {
    let away = sink();
    let (address, config) = (away.address(), otlp(away.endpoint()));
    away.stop().await;
    let agent = Agent::start(&config);
    for value in [1.0, 0.0, 1.0] {
        agent.visited("esx1", &[("hostd", value)]);
        agent.exporter.export_now().await.expect("running");
    }
    let back = Sink::start(SinkOptions { listen: address, ..SinkOptions::default() }).expect("the same port");
    // The first one may be in two exports: that of the start, and that which was asked for.
    let states = |seen: &Seen| {
        let mut states = seen.values(STATUS, &service("hostd"));
        states.dedup();
        states
    };
    back.wait_until(|seen| states(seen).len() >= 3, LIMIT).await.expect("everything arrives");
    back.seen(|seen| {
        assert_eq!(states(seen), [Some(1.0), Some(0.0), Some(1.0)]);
        let service = service("hostd");
        let (_, points) = seen.series(STATUS, &service).next().expect("one series");
        let times: Vec<_> = points.iter().map(|point| point.time).collect();
        assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    });
    assert_eq!(agent.counted("dropped"), 0.0);
}

#[tokio::test]
async fn a_collector_with_a_small_limit_gets_smaller_messages() {
    let sink = Sink::start(SinkOptions { fault: Some(Fault::Small(3_000)), ..SinkOptions::default() });
    let sink = sink.expect("a free port");
    let agent = Agent::start(&otlp(sink.endpoint()));
    for i in 0..100 {
        agent.visited(&format!("esx{i}"), &[("hostd", 1.0)]);
    }
    agent.exporter.export_now().await.expect("running");
    sink.wait_until(|seen| seen.series(STATUS, &[]).count() == 100, LIMIT).await.expect("all of them");
    sink.seen(|seen| {
        assert!(seen.refused > 0);
        assert!(seen.messages.iter().all(|message| message.bytes <= 3_000));
    });
    assert_eq!(agent.counted("rejected"), 0.0);
}

#[tokio::test]
async fn one_point_that_nobody_takes_costs_no_other() {
    let sink = Sink::start(SinkOptions { fault: Some(Fault::Small(3_000)), ..SinkOptions::default() });
    let sink = sink.expect("a free port");
    let agent = Agent::start(&otlp(sink.endpoint()));
    agent.visited("esx1", &[("hostd", 1.0), (&"x".repeat(4_000), 1.0), ("vpxa", 1.0)]);
    agent.exporter.export_now().await.expect("running");
    let both =
        |seen: &Seen| ["hostd", "vpxa"].iter().all(|name| seen.value(STATUS, &service(name)).is_some());
    sink.wait_until(both, LIMIT).await.expect("the neighbours");
    agent.exporter.finish(tokio::time::Instant::now() + LIMIT).await.expect("running");
    assert_eq!(sink.seen(|seen| seen.series(STATUS, &[]).count()), 2);
    assert!(agent.counted("rejected") >= 1.0);
}

#[tokio::test]
async fn points_that_a_collector_rejects_are_counted() {
    let fault = Fault::Partial { rejected: 1, message: "out of order".into() };
    let sink =
        Sink::start(SinkOptions { fault: Some(fault), ..SinkOptions::default() }).expect("a free port");
    let agent = Agent::start(&otlp(sink.endpoint()));
    agent.visited("esx1", &[("hostd", 1.0)]);
    sink.wait_until(|seen| !seen.messages.is_empty(), LIMIT).await.expect("the first export");
    agent.exporter.finish(tokio::time::Instant::now() + LIMIT).await.expect("running");
    let messages = sink.seen(|seen| seen.messages.len());
    assert_eq!(agent.counted("rejected"), messages as f64);
}

#[tokio::test]
async fn a_collector_that_does_not_know_zstd_gets_gzip_and_the_headers_go_along() {
    let sink = Sink::start(SinkOptions { zstd: false, ..SinkOptions::default() }).expect("a free port");
    let mut config = otlp(sink.endpoint());
    config.headers = vec![("Authorization".into(), Secret::new("Bearer abc"))];
    let agent = Agent::start(&config);
    agent.visited("esx1", &[("hostd", 1.0)]);
    sink.wait_until(|seen| seen.value(STATUS, &service("hostd")).is_some(), LIMIT).await.expect("arrives");
    sink.seen(|seen| {
        for message in &seen.messages {
            assert_eq!(message.compression.as_deref(), Some("gzip"));
            assert_eq!(message.headers.get("authorization").map(String::as_str), Some("Bearer abc"));
        }
    });
}

#[tokio::test]
async fn nothing_is_compressed_when_that_is_asked_for() {
    let sink = sink();
    let agent = Agent::start(&OtlpConfig { compression: Compression::None, ..otlp(sink.endpoint()) });
    agent.exporter.export_now().await.expect("running");
    sink.wait_until(|seen| seen.messages.iter().any(|m| m.signal == Signal::Metrics), LIMIT)
        .await
        .expect("arrives");
    sink.seen(|seen| assert!(seen.messages.iter().all(|message| message.compression.is_none())));
}

#[tokio::test]
async fn a_collector_that_hangs_is_given_up_and_asked_again() {
    let sink = Sink::start(SinkOptions { fault: Some(Fault::Hang), ..SinkOptions::default() });
    let sink = sink.expect("a free port");
    let mut config = otlp(sink.endpoint());
    config.timeout = Duration::from_millis(200);
    let agent = Agent::start(&config);
    agent.visited("esx1", &[("hostd", 1.0)]);
    sink.wait_until(|seen| seen.refused >= 1, LIMIT).await.expect("asked");
    sink.set_fault(None);
    sink.wait_until(|seen| seen.value(STATUS, &service("hostd")).is_some(), LIMIT).await.expect("arrives");
    assert_eq!(agent.counted("dropped"), 0.0);
}

#[tokio::test]
async fn the_end_waits_for_a_collector_that_hangs_no_longer_than_it_may() {
    let sink = Sink::start(SinkOptions { fault: Some(Fault::Hang), ..SinkOptions::default() });
    let sink = sink.expect("a free port");
    let agent = Agent::start(&otlp(sink.endpoint()));
    agent.visited("esx1", &[("hostd", 1.0)]);
    agent.exporter.export_now().await.expect("running");
    let began = Instant::now();
    agent.exporter.finish(tokio::time::Instant::now() + Duration::from_millis(300)).await.expect("running");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(agent.counted("dropped") >= 2.0, "{}", agent.counted("dropped"));
}

#[tokio::test]
async fn what_is_no_collector_is_asked_again_until_it_is_one() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let agent = Agent::start(&otlp(format!("http://{address}")));
    agent.visited("esx1", &[("hostd", 1.0)]);
    for _ in 0..2 {
        let (mut stream, _) =
            tokio::time::timeout(LIMIT, listener.accept()).await.expect("asked").expect("accepted");
        let mut preface = [0; 24];
        let _ = stream.read_exact(&mut preface).await;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n<html>garbage</html>").await;
    }
    drop(listener);
    let sink = Sink::start(SinkOptions { listen: address, ..SinkOptions::default() }).expect("the same port");
    sink.wait_until(|seen| seen.value(STATUS, &service("hostd")).is_some(), LIMIT).await.expect("arrives");
}
