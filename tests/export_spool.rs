//! Points that wait on disk: over an outage, over the end of the agent, and on disks that fail.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that can't go on fails"
)]

mod export;

use esxi_otel_agent::config::{OtlpConfig, SpoolConfig};
use esxi_otel_agent::metric::{Attributes, Sample};
use esxi_otel_agent::simulator::sink::{Fault, Seen, Sink, SinkOptions};
use esxi_otel_agent::telemetry::export::encode::{Batch, Encoder, Limits, Times};
use esxi_otel_agent::telemetry::export::peer::Peer;
use esxi_otel_agent::telemetry::export::spool::Spool;
use esxi_otel_agent::telemetry::export::transport::Destination;
use esxi_otel_agent::telemetry::metrics::Instruments;
use export::{Agent, LIMIT, STATUS, otlp};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

const NAME: &str = "test.service.status";
const MINUTE: Duration = Duration::from_secs(60);

fn spooled(endpoint: String, folder: &TempDir) -> OtlpConfig {
    let path = folder.path().join("spool");
    let spool = Some(SpoolConfig { path, max_bytes: 1 << 30, max_age: MINUTE * 1440 });
    OtlpConfig { spool, ..otlp(endpoint) }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn sink() -> Sink {
    Sink::start(SinkOptions::default()).expect("a free port")
}

async fn finish(agent: Agent, limit: Duration) {
    agent.exporter.finish(tokio::time::Instant::now() + limit).await.expect("running");
}

/// What the exporter would have made of some hosts then.
fn requests(hosts: usize, value: f64, collected: SystemTime) -> Vec<Batch> {
    let instruments = Instruments::new(opentelemetry_sdk::Resource::builder_empty().build());
    let sample = |host: usize| {
        let labels =
            [("hostsystem", format!("esx{host}")), ("service", "hostd".into()), ("site", "eu-1".into())];
        Sample::new(&STATUS, Attributes::new(labels), value)
    };
    let samples = (0..hosts).map(sample).collect();
    let times = Times { started: collected, collected };
    let limits = Limits { points: 8_000, bytes: Limits::BYTES };
    let mut encoder = Encoder::new(instruments.resource(), times, limits);
    for portion in instruments.collect(&STATUS, samples) {
        encoder.live(&portion.expect("collected"));
    }
    encoder.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_three_hours_every_minute_of_every_series_arrives_in_order_with_its_own_time() {
    const HOSTS: usize = 50;
    const MINUTES: u32 = 180;
    let folder = folder();
    let sink = sink();
    let config = spooled(sink.endpoint(), &folder);
    let now = SystemTime::now();
    let path = &config.spool.as_ref().expect("one").path;
    let mut spool = Spool::open(path, 1 << 30).expect("usable");
    for minute in 0..MINUTES {
        let at = now - MINUTE * (MINUTES - minute);
        let batches = requests(HOSTS, f64::from(minute), at);
        spool.append(batches.iter().map(|batch| (batch, at)), false).expect("room");
    }
    drop(spool);

    let agent = Agent::start(&config);
    agent.visited("esx0", &[("hostd", 1_000.0)]);
    let fresh = |seen: &Seen| seen.values(NAME, &[("hostsystem", "esx0")]).last() == Some(&Some(1_000.0));
    sink.wait_until(fresh, LIMIT).await.expect("the fresh one, behind all others");
    sink.seen(|seen| {
        assert_eq!(seen.series(NAME, &[]).count(), HOSTS);
        for (series, points) in seen.series(NAME, &[]) {
            let old: Vec<_> = points.iter().take(MINUTES as usize).collect();
            assert!(old.len() == MINUTES as usize, "{series:?}: {}", old.len());
            for (minute, point) in (0..).zip(old) {
                let at = (now - MINUTE * (MINUTES - minute)).duration_since(UNIX_EPOCH).expect("after 1970");
                assert_eq!((point.value, point.time), (Some(f64::from(minute)), at), "{series:?}");
            }
        }
    });
    assert_eq!(agent.counted("dropped"), 0.0);
    finish(agent, LIMIT).await;
    let left = Spool::open(path, 1 << 30).expect("free again");
    assert_eq!((left.unread_points(), left.bytes()), (0, 0), "nothing is sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ends_while_the_collector_is_away_leaves_its_last_points_to_the_next_one() {
    let folder = folder();
    let away = sink();
    let (address, config) = (away.address(), spooled(away.endpoint(), &folder));
    away.stop().await;
    for value in [1.0, 0.0] {
        let agent = Agent::start(&config);
        agent.visited("esx1", &[("hostd", value)]);
        let began = std::time::Instant::now();
        let stats = std::sync::Arc::clone(&agent.stats);
        finish(agent, LIMIT).await;
        assert!(began.elapsed() < LIMIT / 2, "nobody is waited for: {:?}", began.elapsed());
        assert!(stats.samples().iter().all(|s| s.attributes.get("outcome") != Some("dropped")));
    }
    let back = Sink::start(SinkOptions { listen: address, ..SinkOptions::default() }).expect("the same port");
    let agent = Agent::start(&config);
    agent.visited("esx1", &[("hostd", 2.0)]);
    back.wait_until(|seen| seen.value(NAME, &[]) == Some(2.0), LIMIT).await.expect("arrives");
    let mut states = back.seen(|seen| seen.values(NAME, &[]));
    states.dedup();
    assert_eq!(states, [Some(1.0), Some(0.0), Some(2.0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ends_while_the_collector_hangs_keeps_to_its_limit_and_loses_nothing() {
    let folder = folder();
    let sink = sink();
    sink.set_fault(Some(Fault::Hang));
    let config = spooled(sink.endpoint(), &folder);
    let agent = Agent::start(&config);
    agent.visited("esx1", &[("hostd", 1.0)]);
    agent.exporter.export_now().await.expect("running");
    assert!(agent.queue.flush().await);
    let began = std::time::Instant::now();
    finish(agent, Duration::from_millis(500)).await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    sink.set_fault(None);
    let _agent = Agent::start(&config);
    sink.wait_until(|seen| seen.value(NAME, &[]) == Some(1.0), LIMIT).await.expect("arrives");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_series_waits_on_disk_like_its_points() {
    let folder = folder();
    let away = sink();
    let (address, config) = (away.address(), spooled(away.endpoint(), &folder));
    away.stop().await;
    let agent = Agent::start(&config);
    agent.visited("esx1", &[("hostd", 1.0)]);
    agent.exporter.export_now().await.expect("running");
    agent.visited("esx1", &[("vpxa", 1.0)]);
    agent.exporter.export_now().await.expect("running");
    finish(agent, LIMIT).await;
    let back = Sink::start(SinkOptions { listen: address, ..SinkOptions::default() }).expect("the same port");
    let _agent = Agent::start(&config);
    back.wait_until(|seen| seen.ended(NAME, &[("service", "hostd")]), LIMIT).await.expect("its end");
    assert_eq!(back.seen(|seen| seen.value(NAME, &[("service", "vpxa")])), Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_collector_gets_what_waits_for_the_first_one() {
    let folder = folder();
    let (first, second) = (sink(), sink());
    first.set_fault(Some(Fault::Unavailable));
    let agent = Agent::start(&spooled(first.endpoint(), &folder));
    agent.visited("esx1", &[("hostd", 1.0)]);
    agent.exporter.export_now().await.expect("running");
    first.wait_until(|seen| seen.refused > 0, LIMIT).await.expect("asked");
    let other = otlp(second.endpoint());
    let peer = Peer::new(&other).expect("valid");
    agent.destination.send_replace(Destination { peer, compression: other.compression });
    second.wait_until(|seen| seen.value(NAME, &[]) == Some(1.0), LIMIT).await.expect("arrives");
    assert_eq!((agent.counted("dropped"), agent.counted("rejected")), (0.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_split_also_from_disk() {
    let folder = folder();
    let sink = Sink::start(SinkOptions { fault: Some(Fault::Small(3_000)), ..SinkOptions::default() });
    let sink = sink.expect("a free port");
    let config = spooled(sink.endpoint(), &folder);
    let path = &config.spool.as_ref().expect("one").path;
    let at = SystemTime::now();
    let batches = requests(200, 1.0, at);
    let mut spool = Spool::open(path, 1 << 30).expect("usable");
    spool.append(batches.iter().map(|batch| (batch, at)), false).expect("room");
    drop(spool);
    let agent = Agent::start(&config);
    sink.wait_until(|seen| seen.series(NAME, &[]).count() == 200, LIMIT).await.expect("all of them");
    finish(agent, LIMIT).await;
    assert_eq!(Spool::open(path, 1 << 30).expect("free again").unread_points(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_one_spool_goes_on_in_memory() {
    let folder = folder();
    let sink = sink();
    let config = spooled(sink.endpoint(), &folder);
    let path = config.spool.as_ref().expect("one").path.clone();
    let _others = Spool::open(Path::new(&path), 1 << 30).expect("usable");
    let agent = Agent::start(&config);
    agent.visited("esx1", &[("hostd", 1.0)]);
    sink.wait_until(|seen| seen.value(NAME, &[]) == Some(1.0), LIMIT).await.expect("arrives");
}
