//! The whole of an agent's telemetry: spans, log records and metrics, what is kept of them, and what stands
//! on the console.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test that can't go on fails")]

mod export;

use esxi_otel_agent::accounts::AccountsConfig;
use esxi_otel_agent::config::{
    Config, HostKeyPolicy, InventoryConfig, LockoutConfig, OtlpConfig, SshConfig, TracesConfig, VcenterConfig,
};
use esxi_otel_agent::outcome::{Failure, FailureReason};
use esxi_otel_agent::readings::Readings;
use esxi_otel_agent::simulator::sink::{Fault, Log, Seen, Signal, Sink, SinkOptions};
use esxi_otel_agent::span::PastSpan;
use esxi_otel_agent::stats::Stats;
use esxi_otel_agent::telemetry::{Console, Telemetry, Verbosity};
use export::{LIMIT, otlp};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

fn config(otlp: Option<OtlpConfig>) -> Config {
    let second = Duration::from_secs(1);
    Config {
        inventory: InventoryConfig::default(),
        accounts: AccountsConfig::default(),
        overall_state: None,
        critical_service: None,
        state_dir: PathBuf::new(),
        ssh: SshConfig {
            port: 22,
            known_hosts: PathBuf::new(),
            host_key_policy: HostKeyPolicy::Strict,
            reuse_sessions: true,
            refresh_sessions: None,
            connect_timeout: second,
            login_timeout: second,
            command_timeout: second,
        },
        lockout: LockoutConfig { wait: second, max_wait: second, unproven_tries: 3, volatile: true },
        vcenter: VcenterConfig { connect_timeout: second, call_timeout: second, ..VcenterConfig::default() },
        otlp,
        prometheus: None,
    }
}

/// Pushes all three signals, and keeps only traces that failed.
fn all_signals(sink: &Sink) -> Config {
    let traces = TracesConfig { slower_than: Duration::from_secs(60), errors: true, ratio: 0.0 };
    config(Some(OtlpConfig { traces: Some(traces), logs: true, events: true, ..otlp(sink.endpoint()) }))
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn console(&self, verbosity: Verbosity) -> Option<Console> {
        let lines = self.clone();
        Some(Console::to(verbosity, BoxMakeWriter::new(move || lines.clone())))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic").clone()).expect("UTF-8")
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn start(config: &Config, console: Option<Console>) -> Telemetry {
    Telemetry::start(config, Readings::new(), Stats::new(), console, CancellationToken::new()).expect("valid")
}

/// A visit as the agent's own modules trace it.
fn visit(telemetry: &Telemetry, host: &str, failed: bool) {
    tracing::dispatcher::with_default(&telemetry.dispatch, || {
        let root = tracing::info_span!(
            target: "esxi_otel_agent::poller::visit", "host.visit", otel.kind = "client", "server.address" = host
        );
        let _in_root = root.enter();
        let step =
            tracing::info_span!(target: "esxi_otel_agent::ssh::session", "ssh.connect", otel.kind = "client");
        step.in_scope(|| tracing::info!(target: "esxi_otel_agent::ssh::session", "connected to {host}"));
        drop(step);
        tracing::info_span!(target: "h2::proto", "wire").in_scope(|| {});
        tracing::info_span!(target: "esxi_otel_agent::simulator::host", "simulated").in_scope(|| {});
        let times = (SystemTime::now(), SystemTime::now());
        let failure = failed.then(|| Failure::new(FailureReason::CommandTimeout, "no answer"));
        let span = || PastSpan { name: "script hostd".into(), times, attributes: vec![], failure };
        telemetry.past_spans().below(&root).add(span);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visit_that_failed_is_traced_with_its_steps_and_one_that_did_not_is_not() {
    let sink = Sink::start(SinkOptions::default()).expect("a free port");
    let telemetry = start(&all_signals(&sink), None);
    visit(&telemetry, "esx1", false);
    visit(&telemetry, "esx2", true);
    telemetry.shutdown(LIMIT).await;
    let both = |seen: &Seen| seen.spans.len() >= 3 && seen.logs.len() >= 2;
    sink.wait_until(both, LIMIT).await.expect("the trace, and the records");
    sink.seen(|seen| {
        let names: Vec<_> = seen.spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["ssh.connect", "script hostd", "host.visit"]);
        let root = seen.spans_named("host.visit").next().expect("the root");
        let said = seen.logs.iter().find(|log| log.body == "connected to esx2").expect("the record");
        assert_eq!(said.trace, root.ids[0], "a record leads to its trace");
        assert_eq!(root.attributes.get("server.address").map(String::as_str), Some("esx2"));
        let keys: Vec<_> = root.attributes.keys().map(String::as_str).collect();
        assert_eq!(keys, ["server.address"], "no threads, no lines of code");
        let script = seen.spans_named("script hostd").next().expect("the script");
        assert!(script.failed && script.ids[2] == root.ids[1] && script.ids[0] == root.ids[0]);
        assert_eq!(script.attributes.get("error.type").map(String::as_str), Some("command_timeout"));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_the_agent_are_exported_and_what_the_export_does_is_not() {
    let sink = Sink::start(SinkOptions::default()).expect("a free port");
    let telemetry = start(&all_signals(&sink), None);
    tracing::dispatcher::with_default(&telemetry.dispatch, || {
        tracing::info!(target: "esxi_otel_agent::agent", hosts = 3, "inventory loaded");
        tracing::debug!(target: "esxi_otel_agent::agent", "a detail");
        tracing::warn!(target: "russh::client", "a library's warning");
        tracing::error!(target: "h2::client", "a wire's error");
    });
    telemetry.exporter().expect("there is one").export_now().await.expect("running");
    telemetry.shutdown(LIMIT).await;
    sink.wait_until(|seen| seen.logs.len() >= 2, LIMIT).await.expect("the records");
    sink.seen(|seen| {
        let body = |log: &Log| (log.severity.clone(), log.body.clone());
        let mut bodies: Vec<_> = seen.logs.iter().map(body).collect();
        // Within a request the SDK groups the records by target, and the groups have no order.
        bodies.sort();
        let expected = [("INFO", "inventory loaded"), ("WARN", "a library's warning")];
        assert_eq!(bodies, expected.map(|(severity, body)| (severity.to_owned(), body.to_owned())));
        let loaded = seen.logs.iter().find(|log| log.body == "inventory loaded").expect("the record");
        assert_eq!(loaded.attributes.get("hosts").map(String::as_str), Some("3"));
        assert_eq!(seen.resource.get("service.name").map(String::as_str), Some("esxi-otel-agent"));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_goes_and_comes_back_is_two_lines_in_the_log() {
    let sink = Sink::start(SinkOptions { fault: Some(Fault::Unavailable), ..SinkOptions::default() });
    let sink = sink.expect("a free port");
    let lines = Lines::default();
    let telemetry = start(&all_signals(&sink), lines.console(Verbosity::Info));
    visit(&telemetry, "esx1", true);
    let exporter = telemetry.exporter().expect("there is one");
    sink.wait_until(|seen| seen.refused >= 4, LIMIT).await.expect("several tries, of several signals");
    exporter.export_now().await.expect("running");
    sink.set_fault(None);
    let metrics = |seen: &Seen| seen.messages.iter().filter(|m| m.signal == Signal::Metrics).count() >= 2;
    sink.wait_until(metrics, LIMIT).await.expect("what waited");
    let record = |seen: &Seen| seen.logs.iter().any(|log| log.body == "connected to esx1");
    sink.wait_until(record, LIMIT).await.expect("a record that waited");
    let text = lines.text();
    let said: Vec<_> = text.lines().filter(|line| line.contains("OTLP")).collect();
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said[0].contains("takes nothing for now") && said[0].contains("WARN"), "{}", said[0]);
    assert!(said[1].contains("is back after") && said[1].contains("INFO"), "{}", said[1]);
    assert!(!text.contains('\u{1b}'), "no colours where there is no terminal");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_first_collector_is_away_all_signals_go_to_the_next_one() {
    let start_one = || Sink::start(SinkOptions::default()).expect("a free port");
    let (first, second) = (start_one(), start_one());
    let mut config = all_signals(&first);
    config.otlp.as_mut().expect("there is one").failover = vec![second.endpoint()];
    let lines = Lines::default();
    let telemetry = start(&config, lines.console(Verbosity::Info));
    let exporter = telemetry.exporter().expect("there is one");
    let has_all = |seen: &Seen| {
        let signals = [Signal::Metrics, Signal::Traces, Signal::Logs];
        signals.iter().all(|signal| seen.messages.iter().any(|message| message.signal == *signal))
    };
    visit(&telemetry, "esx1", true);
    exporter.export_now().await.expect("running");
    first.wait_until(has_all, LIMIT).await.expect("the first one has everything");
    let endpoint = first.endpoint();
    first.stop().await;
    assert_eq!(second.seen(|seen| seen.messages.len()), 0, "one at a time");

    visit(&telemetry, "esx2", true);
    exporter.export_now().await.expect("running");
    second.wait_until(has_all, LIMIT).await.expect("the second one has everything");
    let what_waited = |seen: &Seen| {
        let is_it = |name: Option<&String>| name.is_some_and(|name| name == "esx2");
        seen.spans_named("host.visit").any(|span| is_it(span.attributes.get("server.address")))
            && seen.logs.iter().any(|log| log.body == "connected to esx2")
    };
    second.wait_until(what_waited, LIMIT).await.expect("what was seen meanwhile");
    telemetry.shutdown(LIMIT).await;
    let text = lines.text();
    let said: Vec<_> = text.lines().filter(|line| line.contains("OTLP")).collect();
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said[0].contains(&format!("{endpoint} takes nothing for now")), "{}", said[0]);
    let moved = format!("WARN OTLP: everything goes to {}, until {endpoint} is back", second.endpoint());
    assert!(said[1].ends_with(&moved), "{}", said[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_points_go_to_the_collector_that_is_there() {
    let start_one = || Sink::start(SinkOptions::default()).expect("a free port");
    let (first, second) = (start_one(), start_one());
    let only_metrics = OtlpConfig { failover: vec![second.endpoint()], ..otlp(first.endpoint()) };
    let telemetry = start(&config(Some(only_metrics)), None);
    telemetry.exporter().expect("there is one").export_now().await.expect("running");
    first.wait_until(|seen| !seen.messages.is_empty(), LIMIT).await.expect("the first export");
    first.stop().await;
    // Spans and records are done at once, as there are none; metrics have to find the other one first.
    telemetry.shutdown(Duration::from_secs(10)).await;
    assert!(second.seen(|seen| !seen.messages.is_empty()), "the last export");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_keeps_nobody_from_ending() {
    let sink = Sink::start(SinkOptions { fault: Some(Fault::Hang), ..SinkOptions::default() });
    let sink = sink.expect("a free port");
    let telemetry = start(&all_signals(&sink), None);
    visit(&telemetry, "esx1", true);
    let began = Instant::now();
    telemetry.shutdown(Duration::from_millis(100)).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn without_a_collector_there_is_still_the_console() {
    let lines = Lines::default();
    let telemetry = start(&config(None), lines.console(Verbosity::Quiet));
    tracing::dispatcher::with_default(&telemetry.dispatch, || {
        tracing::info!(target: "esxi_otel_agent::agent", "not shown");
        tracing::warn!(target: "esxi_otel_agent::agent", "shown");
    });
    assert!(telemetry.exporter().is_none());
    telemetry.shutdown(Duration::from_secs(1)).await;
    let text = lines.text();
    assert!(text.lines().count() == 1 && text.contains("WARN shown"), "{text}");
}

#[tokio::test]
async fn a_secret_in_the_address_is_not_shown() {
    let mut wrong = otlp("ftp://me:secret@localhost:4317".into());
    wrong.logs = true;
    let error =
        Telemetry::start(&config(Some(wrong)), Readings::new(), Stats::new(), None, CancellationToken::new());
    assert_eq!(
        error.expect_err("no such scheme").to_string(),
        "otlp.endpoint: ftp://localhost:4317: not of the form http://host:port or https://host:port"
    );
}
