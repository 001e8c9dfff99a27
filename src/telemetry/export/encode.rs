//! Points into OTLP requests, in portions that every Collector takes.
//!
//! A Collector refuses a message of more than 4 MiB, counted after decompression, and what it refuses is
//! lost: so a request is never built larger than its [`Limits`].

use super::wire::{self, Point, field_len, head};
use crate::metric::{Attributes, Kind, MetricDef};
use bytes::Bytes;
use opentelemetry::{KeyValue, Value};
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use prost::Message;
use std::time::{SystemTime, UNIX_EPOCH};

/// How large a request may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// The requests so far, and the one that is being filled.
#[derive(Debug)]
pub struct Encoder {
    /// The message `Resource`, encoded.
    resource: Vec<u8>,
    start: u64,
    time: u64,
    limits: Limits,
    done: Vec<Batch>,
    /// The entries of the request, each with its head as a field of `ScopeMetrics`.
    metrics: Vec<u8>,
    entry: Entry,
    /// Points of the request, those of the open entry included.
    points: usize,
    /// The attributes of the point at hand.
    attributes: Vec<u8>,
}

/// The `Metric` to which points are added.
#[derive(Debug)]
struct Entry {
    kind: Kind,
    /// Name, description and unit, encoded. They stay when a request is full: the entry goes on in the next.
    heading: Vec<u8>,
    points: Vec<u8>,
}

/// Bytes beside resource and entries: the heads of the messages around them.
const ENVELOPE: usize = 64;

impl Encoder {
    /// For one collection.
    pub fn new(resource: &opentelemetry_sdk::Resource, times: Times, limits: Limits) -> Self {
        Self {
            resource: Resource::from(resource).encode_to_vec(),
            start: nanos(times.started),
            time: nanos(times.collected),
            limits,
            done: vec![],
            metrics: vec![],
            entry: Entry { kind: Kind::Gauge, heading: vec![], points: vec![] },
            points: 0,
            attributes: vec![],
        }
    }

    /// Adds what was collected.
    pub fn live(&mut self, collected: &ResourceMetrics) {
        for metric in collected.scope_metrics().flat_map(|scope| scope.metrics()) {
            let heading = [metric.name(), metric.description(), metric.unit()];
            // Only the two kinds that `metrics` registers can be there.
            match metric.data() {
                AggregatedMetrics::F64(MetricData::Gauge(gauge)) => {
                    self.open(heading, Kind::Gauge);
                    gauge.data_points().for_each(|point| self.live_point(point.attributes(), point.value()));
                }
                AggregatedMetrics::F64(MetricData::Sum(sum)) => {
                    self.open(heading, Kind::Counter);
                    sum.data_points().for_each(|point| self.live_point(point.attributes(), point.value()));
                }
                _ => {}
            }
        }
    }

    /// Adds the end of a series: a flagged point without a value.
    pub fn end(&mut self, def: &MetricDef, attributes: &Attributes) {
        // An entry for each end: the Collector's prometheusexporter stops reading an entry at its first
        // flagged point (`accumulateGauge` returns there), so a second one would never be seen.
        self.open([def.name, def.help, def.unit.ucum()], def.kind);
        self.attributes.clear();
        for (key, value) in attributes.iter() {
            wire::text_attribute(&mut self.attributes, key, value);
        }
        self.push(None);
    }

    /// The requests, in the order in which they have to be sent.
    pub fn finish(mut self) -> Vec<Batch> {
        self.flush();
        self.done
    }

    fn live_point<'a>(&mut self, attributes: impl Iterator<Item = &'a KeyValue>, value: f64) {
        self.attributes.clear();
        for KeyValue { key, value, .. } in attributes {
            match value {
                Value::String(text) => {
                    wire::text_attribute(&mut self.attributes, key.as_str(), text.as_str())
                }
                other => wire::attribute(&mut self.attributes, key.as_str(), &AnyValue::from(other.clone())),
            }
        }
        self.push(Some(value));
    }

    /// The following points are of this metric, and get an entry of their own.
    fn open(&mut self, heading: [&str; 3], kind: Kind) {
        self.close();
        self.entry.kind = kind;
        self.entry.heading.clear();
        for (field, text) in (1..).zip(heading) {
            wire::text(&mut self.entry.heading, field, text);
        }
    }

    /// Adds a point with the attributes at hand.
    fn push(&mut self, value: Option<f64>) {
        let size = self.attributes.len() + Point::LARGEST;
        let before = self.metrics.len() + self.entry.points.len() + self.entry.heading.len();
        let bytes = self.resource.len() + ENVELOPE + before + size;
        if self.points >= self.limits.points || bytes > self.limits.bytes {
            self.flush();
        }
        let start = match self.entry.kind {
            Kind::Gauge => 0,
            Kind::Counter => self.start,
        };
        Point { start, time: self.time, value }.write(&mut self.entry.points, &self.attributes);
        self.points += 1;
    }

    /// Moves the open entry to the others.
    fn close(&mut self) {
        let Entry { kind, heading, points } = &mut self.entry;
        if points.is_empty() {
            return;
        }
        let (field, tail) = match kind {
            Kind::Gauge => (5, vec![]),
            Kind::Counter => (7, wire::sum_tail()),
        };
        let data = points.len() + tail.len();
        head(&mut self.metrics, 2, heading.len() + field_len(data));
        self.metrics.extend_from_slice(heading);
        head(&mut self.metrics, field, data);
        self.metrics.append(points);
        self.metrics.extend_from_slice(&tail);
    }

    /// Ends the request; the next point begins another one.
    fn flush(&mut self) {
        self.close();
        if self.points == 0 {
            return;
        }
        // The scope is an empty message: two bytes.
        let scope_metrics = 2 + self.metrics.len();
        let resource_metrics = field_len(self.resource.len()) + field_len(scope_metrics);
        let mut request = Vec::with_capacity(field_len(resource_metrics));
        head(&mut request, 1, resource_metrics);
        head(&mut request, 1, self.resource.len());
        request.extend_from_slice(&self.resource);
        head(&mut request, 2, scope_metrics);
        head(&mut request, 1, 0);
        request.append(&mut self.metrics);
        self.done.push(Batch { bytes: request.into(), points: self.points });
        self.points = 0;
    }
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
