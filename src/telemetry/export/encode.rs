//! Points into OTLP requests, in portions that every Collector takes.
//!
//! A Collector refuses a message of more than 4 MiB, counted after decompression, and what it refuses is
//! lost: so a request is never built larger than its [`Limits`].

use crate::metric::{Attributes, Kind, MetricDef};
use crate::readings::SeriesKey;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, DataPointFlags, Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics,
    Sum, metric::Data,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics as Collected};
use prost::Message;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

/// How large a request may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most points.
    pub points: usize,
    /// Most bytes before compression; an estimate from above, so it needs no further margin.
    pub bytes: usize,
}

impl Limits {
    /// The size that fits the default limit of gRPC servers, 4 MiB, with room to spare.
    pub const BYTES: usize = 3 << 20;
}

/// An `ExportMetricsServiceRequest`, encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Protobuf, not compressed.
    pub bytes: Bytes,
    /// Number of points in it.
    pub points: usize,
}

/// When the points of a collection were true.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// The start of the process: where counters count from.
    pub started: SystemTime,
    /// The collection: the time of every point.
    pub collected: SystemTime,
}

/// Encodes what was collected, then one flagged point for each series that ended.
pub fn encode(collected: &Collected, ends: &[SeriesKey], times: Times, limits: Limits) -> Vec<Batch> {
    let resource = Resource::from(collected.resource());
    let mut portions = Portions::new(resource, limits);
    for metric in collected.scope_metrics().flat_map(|scope| scope.metrics()) {
        let header = Header { name: metric.name(), help: metric.description(), unit: metric.unit() };
        // Only the two kinds that `metrics` registers can be there.
        match metric.data() {
            AggregatedMetrics::F64(MetricData::Gauge(gauge)) => {
                portions.open(header, Kind::Gauge);
                for point in gauge.data_points() {
                    let attributes = point.attributes().map(KeyValue::from).collect();
                    portions.push(live(attributes, point.value(), Kind::Gauge, times));
                }
            }
            AggregatedMetrics::F64(MetricData::Sum(sum)) => {
                portions.open(header, Kind::Counter);
                for point in sum.data_points() {
                    let attributes = point.attributes().map(KeyValue::from).collect();
                    portions.push(live(attributes, point.value(), Kind::Counter, times));
                }
            }
            _ => {}
        }
    }
    for (def, attributes) in ends {
        // An entry for each end: the Collector's prometheusexporter stops reading an entry at its first
        // flagged point (`accumulateGauge` returns there), so a second one would never be seen.
        portions.open(Header::of(def), def.kind);
        portions.push(end(attributes, def.kind, times));
    }
    portions.finish()
}

/// Splits a request in two halves with the same times; the second is empty when there is one point only.
pub fn halve(bytes: &Bytes) -> Result<[Batch; 2], prost::DecodeError> {
    let mut first = ExportMetricsServiceRequest::decode(bytes.clone())?;
    let mut second = first.clone();
    let total = points_of(&first);
    let middle = total.div_ceil(2);
    keep(&mut first, 0..middle);
    keep(&mut second, middle..total);
    let batch = |request: ExportMetricsServiceRequest, points| Batch {
        bytes: request.encode_to_vec().into(),
        points,
    };
    Ok([batch(first, middle), batch(second, total - middle)])
}

/// Names the metric and the attributes of a request's first point, for the log.
pub fn describe(bytes: &Bytes) -> String {
    let Ok(request) = ExportMetricsServiceRequest::decode(bytes.clone()) else { return "unreadable".into() };
    let metrics = request.resource_metrics.iter().flat_map(|r| &r.scope_metrics).flat_map(|s| &s.metrics);
    let Some(metric) = metrics.into_iter().next() else { return "empty".into() };
    let point = match &metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.first(),
        Some(Data::Sum(sum)) => sum.data_points.first(),
        _ => None,
    };
    let text = |value: &KeyValue| match value.value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => format!("{}={:.100}", value.key, text),
        _ => value.key.clone(),
    };
    let attributes: Vec<_> = point.into_iter().flat_map(|point| &point.attributes).map(text).collect();
    format!("{}{{{}}}", metric.name, attributes.join(","))
}

/// Number of points in a request.
pub fn points_of(request: &ExportMetricsServiceRequest) -> usize {
    let scopes = request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
    scopes.flat_map(|scope| &scope.metrics).map(|metric| points(metric).map_or(0, <[_]>::len)).sum()
}

fn points(metric: &Metric) -> Option<&[NumberDataPoint]> {
    match metric.data.as_ref()? {
        Data::Gauge(gauge) => Some(&gauge.data_points),
        Data::Sum(sum) => Some(&sum.data_points),
        _ => None,
    }
}

fn points_mut(metric: &mut Metric) -> Option<&mut Vec<NumberDataPoint>> {
    match metric.data.as_mut()? {
        Data::Gauge(gauge) => Some(&mut gauge.data_points),
        Data::Sum(sum) => Some(&mut sum.data_points),
        _ => None,
    }
}

/// Leaves only the points whose place in the request is in `range`.
fn keep(request: &mut ExportMetricsServiceRequest, range: Range<usize>) {
    let mut place = 0;
    for scope in request.resource_metrics.iter_mut().flat_map(|resource| &mut resource.scope_metrics) {
        scope.metrics.retain_mut(|metric| {
            let Some(points) = points_mut(metric) else { return false };
            points.retain(|_| {
                place += 1;
                range.contains(&(place - 1))
            });
            !points.is_empty()
        });
    }
}

fn live(attributes: Vec<KeyValue>, value: f64, kind: Kind, times: Times) -> NumberDataPoint {
    NumberDataPoint { value: Some(Value::AsDouble(value)), ..point(attributes, kind, times) }
}

fn end(attributes: &Attributes, kind: Kind, times: Times) -> NumberDataPoint {
    let attributes = attributes.iter().map(|(key, value)| string(key, value)).collect();
    NumberDataPoint { flags: DataPointFlags::NoRecordedValueMask as u32, ..point(attributes, kind, times) }
}

fn point(attributes: Vec<KeyValue>, kind: Kind, times: Times) -> NumberDataPoint {
    let start_time_unix_nano = match kind {
        Kind::Gauge => 0,
        Kind::Counter => nanos(times.started),
    };
    NumberDataPoint {
        attributes,
        start_time_unix_nano,
        time_unix_nano: nanos(times.collected),
        ..NumberDataPoint::default()
    }
}

fn string(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[derive(Debug, Clone, Copy)]
struct Header<'a> {
    name: &'a str,
    help: &'a str,
    unit: &'a str,
}

impl Header<'static> {
    fn of(def: &'static MetricDef) -> Self {
        Self { name: def.name, help: def.help, unit: def.unit.ucum() }
    }
}

/// The requests so far, and the one that is being filled.
struct Portions<'a> {
    resource: Resource,
    limits: Limits,
    done: Vec<Batch>,
    metrics: Vec<Metric>,
    points: usize,
    bytes: usize,
    open: Option<(Header<'a>, Kind)>,
    /// Whether the last entry of `metrics` is that of `open`.
    begun: bool,
}

impl<'a> Portions<'a> {
    fn new(resource: Resource, limits: Limits) -> Self {
        Self {
            resource,
            limits,
            done: vec![],
            metrics: vec![],
            points: 0,
            bytes: 0,
            open: None,
            begun: false,
        }
    }

    /// The following points are of this metric, and get an entry of their own.
    fn open(&mut self, header: Header<'a>, kind: Kind) {
        self.open = Some((header, kind));
        self.begun = false;
    }

    fn push(&mut self, point: NumberDataPoint) {
        let Some((header, kind)) = self.open else { return };
        // Tag and length of the point itself take at most 6 bytes below 256 MiB.
        let size = point.encoded_len() + 6;
        let heading = header.name.len() + header.help.len() + header.unit.len() + 32;
        let full = self.points >= self.limits.points || self.bytes + size + heading > self.limits.bytes;
        if full && self.points > 0 {
            self.flush();
        }
        if !self.begun {
            self.metrics.push(empty_metric(header, kind));
            self.bytes += heading;
            self.begun = true;
        }
        if let Some(points) = self.metrics.last_mut().and_then(points_mut) {
            points.push(point);
            self.points += 1;
            self.bytes += size;
        }
    }

    fn flush(&mut self) {
        let scope_metrics = ScopeMetrics {
            scope: Some(InstrumentationScope::default()),
            metrics: std::mem::take(&mut self.metrics),
            ..ScopeMetrics::default()
        };
        let resource_metrics = ResourceMetrics {
            resource: Some(self.resource.clone()),
            scope_metrics: vec![scope_metrics],
            ..ResourceMetrics::default()
        };
        let request = ExportMetricsServiceRequest { resource_metrics: vec![resource_metrics] };
        self.done.push(Batch { bytes: request.encode_to_vec().into(), points: self.points });
        self.points = 0;
        self.bytes = 0;
        self.begun = false;
    }

    fn finish(mut self) -> Vec<Batch> {
        if self.points > 0 {
            self.flush();
        }
        self.done
    }
}

fn empty_metric(header: Header<'_>, kind: Kind) -> Metric {
    let data = match kind {
        Kind::Gauge => Data::Gauge(Gauge::default()),
        Kind::Counter => Data::Sum(Sum {
            aggregation_temporality: AggregationTemporality::Cumulative as i32,
            is_monotonic: true,
            ..Sum::default()
        }),
    };
    Metric {
        name: header.name.to_owned(),
        description: header.help.to_owned(),
        unit: header.unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
