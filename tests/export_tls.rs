//! Metrics over TLS: with an authority of one's own, with a client certificate, and without trust.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test that can't go on fails")]

mod export;

use esxi_otel_agent::config::SpoolConfig;
use esxi_otel_agent::simulator::sink::{Sink, SinkOptions, SinkTls};
use export::{Agent, LIMIT, otlp};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::path::PathBuf;

struct Pki {
    folder: tempfile::TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
        Self { folder: tempfile::tempdir().expect("a folder"), ca }
    }

    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        (params.signed_by(&key, &self.ca).expect("signed").pem(), key.serialize_pem())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    fn sink(&self, client_ca: Option<String>) -> Sink {
        let (certificate, key) = self.issue("localhost");
        let tls = Some(SinkTls { certificate, key, client_ca });
        Sink::start(SinkOptions { tls, ..SinkOptions::default() }).expect("a free port")
    }
}

#[tokio::test]
async fn a_collector_of_an_authority_of_ones_own_is_trusted_when_that_is_configured() {
    let pki = Pki::new();
    let sink = pki.sink(None);
    let mut config = otlp(sink.endpoint());
    config.ca_file = Some(pki.file("ca.pem", &pki.ca.pem()));
    let _agent = Agent::start(&config);
    sink.wait_until(|seen| !seen.messages.is_empty(), LIMIT).await.expect("arrives");
}

#[tokio::test]
async fn a_collector_that_asks_for_a_certificate_gets_the_agents() {
    let pki = Pki::new();
    let sink = pki.sink(Some(pki.ca.pem()));
    let (certificate, key) = pki.issue("agent");
    let mut config = otlp(sink.endpoint());
    config.ca_file = Some(pki.file("ca.pem", &pki.ca.pem()));
    config.cert_file = Some(pki.file("agent.pem", &certificate));
    config.key_file = Some(pki.file("agent.key", &key));
    let _agent = Agent::start(&config);
    sink.wait_until(|seen| !seen.messages.is_empty(), LIMIT).await.expect("arrives");
}

#[tokio::test]
async fn a_collector_that_is_not_trusted_gets_nothing() {
    let pki = Pki::new();
    let sink = pki.sink(None);
    let mut config = otlp(sink.endpoint());
    config.ca_file = Some(pki.file("other.pem", &Pki::new().ca.pem()));
    let agent = Agent::start(&config);
    agent.exporter.export_now().await.expect("running");
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(1);
    agent.exporter.finish(deadline).await.expect("running");
    assert!(agent.counted("dropped") > 0.0);
    assert_eq!(sink.seen(|seen| seen.messages.len()), 0);
}

#[tokio::test]
async fn points_wait_for_a_certificate_that_is_good_again_and_for_ones_own() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().expect("a folder"));
    let expired = || {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let certificate = params.signed_by(&key, &pki.ca).expect("signed").pem();
        let tls = Some(SinkTls { certificate, key: key.serialize_pem(), client_ca: None });
        Sink::start(SinkOptions { tls, ..SinkOptions::default() }).expect("a free port")
    };
    for bad in [expired(), pki.sink(Some(pki.ca.pem()))] {
        let mut config = otlp(bad.endpoint());
        config.ca_file = Some(pki.file("ca.pem", &pki.ca.pem()));
        let path = folder.path().join("spool");
        let max_age = std::time::Duration::from_secs(3_600);
        config.spool = Some(SpoolConfig { path, max_bytes: 1 << 24, max_age });
        let agent = Agent::start(&config);
        let deadline = tokio::time::Instant::now() + LIMIT;
        agent.exporter.finish(deadline).await.expect("running");
        assert_eq!((agent.counted("dropped"), agent.counted("rejected")), (0.0, 0.0));
        assert_eq!(bad.seen(|seen| seen.messages.len()), 0);
        assert!(agent.queue.load().points > 0);
    }
}

#[test]
fn a_file_that_is_not_there_is_named_with_its_key() {
    let mut config = otlp("https://localhost:4317".into());
    config.ca_file = Some("/nowhere/ca.pem".into());
    let error = esxi_otel_agent::telemetry::export::peer::Peer::new(&config).expect_err("no such file");
    assert_eq!(
        error.to_string(),
        "otlp.tls.ca_file: /nowhere/ca.pem: No such file or directory (os error 2)"
    );
}
