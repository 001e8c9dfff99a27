//! What has arrived at a sink, and how to look for something in it.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{DataPointFlags, Metric, NumberDataPoint, metric::Data};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

/// Points that are kept of one series, newest last.
const POINTS: usize = 1_000;
/// Messages, spans and records that are kept, newest last.
const KEPT: usize = 50_000;

/// A kind of telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Metrics.
    Metrics,
    /// Traces.
    Traces,
    /// Logs.
    Logs,
}

/// A request that was taken.
#[derive(Debug, Clone)]
pub struct Message {
    /// What it carried.
    pub signal: Signal,
    /// Its size after decompression.
    pub bytes: usize,
    /// Number of points, spans or records.
    pub items: usize,
    /// `grpc-encoding`, if it was compressed.
    pub compression: Option<String>,
    /// The headers it came with.
    pub headers: BTreeMap<String, String>,
}

/// Attributes, as text.
pub type Series = BTreeMap<String, String>;

/// A point of a series.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Its value; `None`: flagged, the series has ended.
    pub value: Option<f64>,
    /// Its own time, since 1970.
    pub time: Duration,
    /// Number of points in its `Metric` entry.
    pub entry: usize,
}

/// A span.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Its name.
    pub name: String,
    /// Its attributes.
    pub attributes: Series,
    /// Whether its status is Error.
    pub failed: bool,
    /// Trace, span and parent, as bytes; a root's parent is empty.
    pub ids: [Vec<u8>; 3],
    /// How long it took.
    pub took: Duration,
}

/// A log record.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// Name of the event that it is.
    pub event: String,
    /// INFO, WARN, …
    pub severity: String,
    /// The trace it belongs to, as bytes; empty when there is none.
    pub trace: Vec<u8>,
    /// Its text.
    pub body: String,
    /// Its attributes.
    pub attributes: Series,
}

#[derive(Debug, Default)]
struct Family {
    prometheus_name: String,
    series: BTreeMap<Series, VecDeque<Point>>,
}

/// Everything that has arrived, within limits.
#[derive(Debug, Default)]
pub struct Seen {
    /// The requests that were taken, oldest first.
    pub messages: VecDeque<Message>,
    /// The spans.
    pub spans: VecDeque<Span>,
    /// The log records.
    pub logs: VecDeque<Log>,
    /// The attributes of the last resource.
    pub resource: Series,
    /// Number of requests that were refused or left hanging.
    pub refused: usize,
    families: BTreeMap<String, Family>,
}

impl Seen {
    /// The points of every series of a metric (by either of its names) that has at least these attributes.
    pub fn series<'a>(
        &'a self,
        metric: &'a str,
        attributes: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (&'a Series, &'a VecDeque<Point>)> {
        let is_called =
            move |(name, family): &(&String, &Family)| *name == metric || family.prometheus_name == metric;
        let has =
            |series: &Series| attributes.iter().all(|(k, v)| series.get(*k).is_some_and(|found| found == v));
        let families = self.families.iter().filter(is_called);
        families.flat_map(|(_, family)| &family.series).filter(move |(series, _)| has(series))
    }

    /// The values that the first such series had, in the order of arrival; `None` where it ended.
    pub fn values(&self, metric: &str, attributes: &[(&str, &str)]) -> Vec<Option<f64>> {
        let points = self.series(metric, attributes).next().map(|(_, points)| points);
        points.into_iter().flatten().map(|point| point.value).collect()
    }

    /// The value that the first such series has now; `None` when there is none, or when it has ended.
    pub fn value(&self, metric: &str, attributes: &[(&str, &str)]) -> Option<f64> {
        self.series(metric, attributes).next()?.1.back()?.value
    }

    /// Whether such series exist, and all have ended.
    pub fn ended(&self, metric: &str, attributes: &[(&str, &str)]) -> bool {
        let mut series = self.series(metric, attributes).peekable();
        series.peek().is_some()
            && series.all(|(_, points)| points.back().is_some_and(|point| point.value.is_none()))
    }

    /// The spans of this name.
    pub fn spans_named(&self, name: &str) -> impl Iterator<Item = &Span> {
        self.spans.iter().filter(move |span| span.name == name)
    }

    /// The OpenTelemetry names of the metrics.
    pub fn metrics(&self) -> impl Iterator<Item = &str> {
        self.families.keys().map(String::as_str)
    }

    /// Number of points in all requests that were taken.
    pub fn points(&self) -> usize {
        self.messages.iter().filter(|m| m.signal == Signal::Metrics).map(|m| m.items).sum()
    }

    pub(super) fn add_metrics(&mut self, message: Message, request: Option<ExportMetricsServiceRequest>) {
        push(&mut self.messages, message, KEPT);
        for resource in request.into_iter().flat_map(|request| request.resource_metrics) {
            self.resource = resource.resource.map(|r| text(&r.attributes)).unwrap_or_default();
            for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                self.add_metric(&metric);
            }
        }
    }

    fn add_metric(&mut self, metric: &Metric) {
        let points = numbers(metric);
        let family = self.families.entry(metric.name.clone()).or_default();
        family.prometheus_name = prometheus_name(metric);
        for point in points {
            let is_end = point.flags & DataPointFlags::NoRecordedValueMask as u32 != 0;
            let value = match (is_end, &point.value) {
                (true, _) => None,
                (false, Some(Value::AsDouble(value))) => Some(*value),
                (false, Some(Value::AsInt(value))) => Some(*value as f64),
                (false, None) => Some(f64::NAN),
            };
            let time = Duration::from_nanos(point.time_unix_nano);
            let point_seen = Point { value, time, entry: points.len() };
            push(family.series.entry(text(&point.attributes)).or_default(), point_seen, POINTS);
        }
    }

    pub(super) fn add_spans(&mut self, message: Message, request: Option<ExportTraceServiceRequest>) {
        push(&mut self.messages, message, KEPT);
        let resources = request.into_iter().flat_map(|request| request.resource_spans);
        for span in resources.flat_map(|r| r.scope_spans).flat_map(|scope| scope.spans) {
            let took = span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano);
            let seen = Span {
                attributes: text(&span.attributes),
                failed: span.status.is_some_and(|status| status.code == StatusCode::Error as i32),
                ids: [span.trace_id, span.span_id, span.parent_span_id],
                took: Duration::from_nanos(took),
                name: span.name,
            };
            push(&mut self.spans, seen, KEPT);
        }
    }

    pub(super) fn add_logs(&mut self, message: Message, request: Option<ExportLogsServiceRequest>) {
        push(&mut self.messages, message, KEPT);
        let resources = request.into_iter().flat_map(|request| request.resource_logs);
        for record in resources.flat_map(|r| r.scope_logs).flat_map(|scope| scope.log_records) {
            let seen = Log {
                event: record.event_name,
                body: record.body.as_ref().map(any).unwrap_or_default(),
                attributes: text(&record.attributes),
                severity: record.severity_text,
                trace: record.trace_id,
            };
            push(&mut self.logs, seen, KEPT);
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages, {} refused", self.messages.len(), self.refused)?;
        for (name, family) in &self.families {
            let points: usize = family.series.values().map(VecDeque::len).sum();
            write!(f, ", {name} ({} series, {points} points)", family.series.len())?;
        }
        write!(f, ", {} spans, {} log records", self.spans.len(), self.logs.len())
    }
}

pub(super) fn count_points(request: &ExportMetricsServiceRequest) -> usize {
    let scopes = request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
    scopes.flat_map(|scope| &scope.metrics).map(|metric| numbers(metric).len()).sum()
}

fn numbers(metric: &Metric) -> &[NumberDataPoint] {
    match &metric.data {
        Some(Data::Gauge(gauge)) => &gauge.data_points,
        Some(Data::Sum(sum)) => &sum.data_points,
        _ => &[],
    }
}

/// The Collector's translation, for the units that occur here.
fn prometheus_name(metric: &Metric) -> String {
    let mut name = metric.name.replace('.', "_");
    let suffix = match metric.unit.as_str() {
        "s" => "seconds",
        "By" => "bytes",
        _ => "",
    };
    if !suffix.is_empty() && !name.ends_with(suffix) {
        name = format!("{name}_{suffix}");
    }
    match &metric.data {
        Some(Data::Sum(sum)) if sum.is_monotonic => format!("{name}_total"),
        _ => name,
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, most: usize) {
    if queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(item);
}

fn text(attributes: &[KeyValue]) -> Series {
    let pair = |kv: &KeyValue| (kv.key.clone(), kv.value.as_ref().map(any).unwrap_or_default());
    attributes.iter().map(pair).collect()
}

fn any(value: &AnyValue) -> String {
    match &value.value {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::BoolValue(value)) => value.to_string(),
        Some(any_value::Value::IntValue(value)) => value.to_string(),
        Some(any_value::Value::DoubleValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    }
}
