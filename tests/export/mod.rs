//! An agent without its targets: tests put readings in, and see what arrives at a sink.

#![allow(dead_code, reason = "each story uses its part")]

use esxi_otel_agent::config::{Compression, OtlpConfig};
use esxi_otel_agent::metric::{Attributes, Cadence, Kind, MetricDef, Sample, Unit};
use esxi_otel_agent::readings::{Reading, Readings, Report};
use esxi_otel_agent::stats::Stats;
use esxi_otel_agent::target::TargetId;
use esxi_otel_agent::telemetry::export::encode::Limits;
use esxi_otel_agent::telemetry::export::peer::{Peer, Presence};
use esxi_otel_agent::telemetry::export::queue::{Caps, Queue};
use esxi_otel_agent::telemetry::export::sender::Sender;
use esxi_otel_agent::telemetry::export::spool::{Keeper, SpoolOptions};
use esxi_otel_agent::telemetry::export::transport::{Destination, GrpcTransport};
use esxi_otel_agent::telemetry::export::{Exporter, Options, Parts};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Long enough for a machine that is busy with other things.
pub const LIMIT: Duration = Duration::from_secs(30);

pub static STATUS: MetricDef = MetricDef {
    name: "test.service.status",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "1 while the service runs.",
    attributes: &["hostsystem", "service", "site"],
};
pub static TOOK: MetricDef = MetricDef {
    name: "test.visit.duration",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    cadence: Cadence::Periodic,
    help: "Duration of the last visit.",
    attributes: &["hostsystem", "site"],
};

pub struct Agent {
    pub readings: Arc<Readings>,
    pub stats: Arc<Stats>,
    pub exporter: Exporter,
    pub queue: Arc<Queue>,
    pub destination: watch::Sender<Destination>,
    _ends: tokio_util::sync::DropGuard,
}

impl Agent {
    /// Exports everything each hour, and changes as ever.
    pub fn start(otlp: &OtlpConfig) -> Self {
        let readings = Readings::new();
        let stats = Stats::new();
        let peer = Peer::new(otlp).expect("a valid peer");
        let presence = Arc::new(Presence::new(peer.name()));
        let age = otlp.spool.as_ref().map_or(otlp.queue_max_age, |spool| spool.max_age);
        let queue = Arc::new(Queue::new(Caps { bytes: otlp.queue_max_bytes, age }));
        let keeper = otlp.spool.clone().map(|config| {
            let options = SpoolOptions { config, patience: Duration::ZERO };
            Keeper::start(&queue, options, Arc::clone(&stats)).expect("a thread")
        });
        let (destination, destinations) = watch::channel(Destination { peer, compression: otlp.compression });
        let sender = Sender::new(
            GrpcTransport::new(destinations),
            Arc::clone(&queue),
            presence,
            Arc::clone(&stats),
            otlp.compression,
        );
        let parts = Parts {
            resource: opentelemetry_sdk::Resource::builder_empty().with_service_name("agent").build(),
            readings: Arc::clone(&readings),
            stats: Arc::clone(&stats),
            queue: Arc::clone(&queue),
            keeper,
        };
        let limits = Limits { points: otlp.max_points, bytes: Limits::BYTES };
        let options = watch::channel(Options { interval: otlp.interval, limits }).1;
        let cancel = CancellationToken::new();
        let exporter = Exporter::spawn(options, parts, sender, cancel.clone());
        Self { readings, stats, exporter, queue, destination, _ends: cancel.drop_guard() }
    }

    /// A host's visit brings these services' states.
    pub fn visited(&self, host: &str, services: &[(&str, f64)]) {
        let at = |key: &[(&'static str, &str)]| Attributes::new(key.iter().copied());
        let mut samples: Vec<_> = services
            .iter()
            .map(|(service, value)| {
                let attributes = at(&[("hostsystem", host), ("service", service), ("site", "eu-1")]);
                Sample::new(&STATUS, attributes, *value)
            })
            .collect();
        samples.push(Sample::new(&TOOK, at(&[("hostsystem", host), ("site", "eu-1")]), 0.5));
        self.readings.record(Report {
            target: TargetId::host(host),
            collector: "test",
            readings: vec![Reading { part: "visit".into(), samples }],
            stale_after: None,
        });
    }

    /// How many points had this outcome.
    pub fn counted(&self, outcome: &str) -> f64 {
        let samples = self.stats.samples();
        let points = samples.iter().filter(|s| s.def.name == "esxi.agent.export.points");
        points.filter(|s| s.attributes.get("outcome") == Some(outcome)).map(|s| s.value).sum()
    }
}

/// Pushes there, with zstd.
pub fn otlp(endpoint: String) -> OtlpConfig {
    OtlpConfig {
        endpoint,
        failover: Vec::new(),
        compression: Compression::Zstd,
        headers: vec![],
        ca_file: None,
        cert_file: None,
        key_file: None,
        interval: Duration::from_secs(3_600),
        timeout: Duration::from_secs(5),
        max_points: 8_000,
        queue_max_bytes: 64 << 20,
        queue_max_age: Duration::from_secs(3_600),
        spool: None,
        resource: vec![("service.name".into(), "esxi-otel-agent".into())],
        metrics: true,
        traces: None,
        logs: false,
        events: false,
    }
}
