use super::*;
use crate::config::Compression;
use crate::metric::{Cadence, Kind, MetricDef, Sample, Unit};
use crate::readings::{Reading, Report};
use crate::target::TargetId;
use crate::telemetry::export::peer::Presence;
use crate::telemetry::export::queue::Caps;
use crate::telemetry::export::transport::CallError;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest,
};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use prost::Message;

static STATE: MetricDef = MetricDef {
    name: "t.state",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "A state.",
    attributes: &["host"],
};
static TOOK: MetricDef = MetricDef {
    name: "t.took",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    cadence: Cadence::Periodic,
    help: "A measurement.",
    attributes: &["host"],
};

/// One point as it arrived: metric and host, and its value or that it ended.
type Point = (String, Option<f64>);

/// Hands on what arrives.
struct Tap(mpsc::UnboundedSender<(Instant, Vec<Point>)>);

impl Transport for Tap {
    fn peer(&self) -> &'static str {
        "test"
    }

    async fn send(
        &mut self,
        bytes: Bytes,
        _: Compression,
    ) -> Result<Option<ExportMetricsPartialSuccess>, CallError> {
        let request = ExportMetricsServiceRequest::decode(bytes).expect("protobuf");
        let metrics = request.resource_metrics.iter().flat_map(|r| &r.scope_metrics).flat_map(|s| &s.metrics);
        let mut points = vec![];
        for metric in metrics.filter(|metric| metric.name.starts_with("t.")) {
            let Some(Data::Gauge(gauge)) = &metric.data else { panic!("no gauge: {metric:?}") };
            for point in &gauge.data_points {
                let host = format!("{:?}", point.attributes);
                let host = host.split("StringValue(\"").nth(1).and_then(|rest| rest.split('"').next());
                let value = match (point.flags, &point.value) {
                    (0, Some(Value::AsDouble(value))) => Some(*value),
                    (1, None) => None,
                    other => panic!("{other:?}"),
                };
                points.push((format!("{} {}", metric.name, host.unwrap_or_default()), value));
            }
        }
        points.sort_by(|a, b| a.0.cmp(&b.0));
        let _ = self.0.send((Instant::now(), points));
        Ok(None)
    }
}

struct Agent {
    readings: Arc<Readings>,
    exporter: Exporter,
    arrived: mpsc::UnboundedReceiver<(Instant, Vec<Point>)>,
    born: Instant,
    options: watch::Sender<Options>,
}

impl Agent {
    /// An agent that exports everything each minute, whose first, empty export is over.
    async fn start() -> Self {
        let (tap, arrived) = mpsc::unbounded_channel();
        let readings = Readings::new();
        let stats = Stats::new();
        let queue = Arc::new(Queue::new(Caps { bytes: 1 << 20, age: Duration::from_secs(3_600) }));
        let sender = Sender::new(
            Tap(tap),
            Arc::clone(&queue),
            Arc::new(Presence::new("test")),
            Arc::clone(&stats),
            Compression::None,
        );
        let parts = Parts {
            resource: Resource::builder_empty().build(),
            readings: Arc::clone(&readings),
            stats,
            queue,
            keeper: None,
        };
        let limits = Limits { points: 8_000, bytes: Limits::BYTES };
        let (options, chosen) = watch::channel(Options { interval: Duration::from_secs(60), limits });
        let exporter = Exporter::spawn(chosen, parts, sender, CancellationToken::new());
        let mut agent = Self { readings, exporter, arrived, born: Instant::now(), options };
        assert_eq!(agent.next().await, (0, vec![]), "the agent's own metrics go out at once");
        agent
    }

    fn report(&self, host: &str, samples: Vec<Sample>) {
        let readings = vec![Reading { part: "p".into(), samples }];
        let target = TargetId::host(host);
        self.readings.record(Report { target, collector: "c", readings, stale_after: None });
    }

    /// The next export: milliseconds since the start, and its points.
    async fn next(&mut self) -> (u128, Vec<Point>) {
        let limit = Duration::from_secs(3_600);
        let next = tokio::time::timeout(limit, self.arrived.recv()).await.expect("within an hour");
        let (at, points) = next.expect("the sender lives");
        (at.duration_since(self.born).as_millis(), points)
    }
}

fn state(host: &str, value: f64) -> Sample {
    Sample::new(&STATE, Attributes::new([("host", host)]), value)
}

fn took(host: &str, value: f64) -> Sample {
    Sample::new(&TOOK, Attributes::new([("host", host)]), value)
}

fn point(series: &str, value: impl Into<Option<f64>>) -> Point {
    (series.to_owned(), value.into())
}

#[tokio::test(start_paused = true)]
async fn a_change_is_out_at_once_and_those_that_follow_together_within_a_second() {
    let mut agent = Agent::start().await;
    agent.report("a", vec![state("a", 1.0), took("a", 0.1)]);
    let (at, points) = agent.next().await;
    assert!(at <= 100, "{at} ms");
    assert_eq!(points, [point("t.state a", 1.0)]);

    for host in ["b", "c", "d"] {
        tokio::time::sleep(Duration::from_millis(100)).await;
        agent.report(host, vec![state(host, 1.0)]);
    }
    agent.report("a", vec![state("a", 1.0), took("a", 0.2)]);
    let (at, points) = agent.next().await;
    assert!(at <= 1_000, "{at} ms");
    let together = ["b", "c", "d"].map(|host| point(&format!("t.state {host}"), 1.0));
    assert_eq!(points, together, "a did not change");
}

#[tokio::test(start_paused = true)]
async fn everything_goes_out_each_interval() {
    let mut agent = Agent::start().await;
    agent.report("a", vec![state("a", 1.0), took("a", 0.1)]);
    agent.next().await;
    let everything = vec![point("t.state a", 1.0), point("t.took a", 0.1)];
    assert_eq!(agent.next().await, (60_000, everything.clone()));
    assert_eq!(agent.next().await, (120_000, everything));
}

#[tokio::test(start_paused = true)]
async fn a_series_that_ends_is_flagged_once_within_a_second() {
    let mut agent = Agent::start().await;
    agent.report("a", vec![state("a", 1.0), took("a", 0.1)]);
    agent.report("b", vec![state("b", 1.0)]);
    agent.exporter.export_now().await.expect("lives");
    assert_eq!(agent.next().await.1.len(), 3);
    agent.readings.forget(&TargetId::host("a"));
    assert_eq!(agent.next().await.1, [point("t.state a", None), point("t.took a", None)]);
    assert_eq!(agent.next().await.1, [point("t.state b", 1.0)], "the next whole export says it no more");
}

#[tokio::test(start_paused = true)]
async fn a_series_that_was_never_exported_ends_without_a_word() {
    let mut agent = Agent::start().await;
    agent.report("a", vec![state("a", 1.0)]);
    agent.readings.forget(&TargetId::host("a"));
    agent.report("b", vec![state("b", 1.0)]);
    assert_eq!(agent.next().await.1, [point("t.state b", 1.0)]);
}

#[tokio::test(start_paused = true)]
async fn a_reading_that_has_become_stale_is_an_end() {
    let mut agent = Agent::start().await;
    let readings = vec![Reading { part: "p".into(), samples: vec![state("a", 1.0)] }];
    let stale_after = Some(Duration::from_secs(90));
    agent.readings.record(Report { target: TargetId::host("a"), collector: "c", readings, stale_after });
    assert_eq!(agent.next().await.1, [point("t.state a", 1.0)]);
    assert_eq!(agent.next().await, (60_000, vec![point("t.state a", 1.0)]));
    assert_eq!(agent.next().await, (120_000, vec![point("t.state a", None)]));
    assert_eq!(agent.next().await, (180_000, vec![]));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_agent_exports_a_last_time_and_ends_no_series() {
    let mut agent = Agent::start().await;
    agent.report("a", vec![state("a", 1.0)]);
    let deadline = Instant::now() + Duration::from_secs(3);
    agent.exporter.finish(deadline).await.expect("lives");
    assert_eq!(agent.next().await.1, [point("t.state a", 1.0)]);
    assert_eq!(agent.exporter.export_now().await, Err(ExporterGone));
}

#[tokio::test(start_paused = true)]
async fn another_interval_and_another_size_hold_from_the_next_export_on() {
    let mut agent = Agent::start().await;
    agent.report("a", vec![took("a", 0.1), took("b", 0.1)]);
    agent.options.send_modify(|options| options.interval = Duration::from_secs(10));
    assert_eq!(agent.next().await, (10_000, vec![point("t.took a", 0.1), point("t.took b", 0.1)]));
    agent.options.send_modify(|options| options.limits.points = 1);
    let mut points = vec![];
    while points.len() < 2 {
        let (at, more) = agent.next().await;
        assert!(at == 20_000 && more.len() <= 1, "one at a time: {at} {more:?}");
        points.extend(more);
    }
}
