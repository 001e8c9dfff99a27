//! What can still be done with a request that is encoded: the sender takes apart what a Collector finds too
//! large. Rare, so with the generated types.

use super::encode::Batch;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{Metric, NumberDataPoint, metric::Data};
use prost::Message;
use std::ops::Range;

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

pub(super) fn points(metric: &Metric) -> Option<&[NumberDataPoint]> {
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
