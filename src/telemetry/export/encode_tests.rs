use super::*;
use crate::metric::{Cadence, Sample, Unit};
use crate::readings::SeriesKey;
use crate::telemetry::export::split::{describe, halve, points, points_of};
use crate::telemetry::metrics::{Grouped, Instruments};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric::Data, number_data_point::Value};
use std::time::Duration;

static STATE: MetricDef = MetricDef {
    name: "t.state",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "A state.",
    attributes: &["host"],
};
static CALLS: MetricDef = MetricDef {
    name: "t.calls",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Calls.",
    attributes: &["host"],
};

fn series(def: &'static MetricDef, host: &str) -> SeriesKey {
    (def, Attributes::new([("host", host)]))
}

fn times() -> Times {
    Times { started: UNIX_EPOCH + Duration::from_secs(1), collected: UNIX_EPOCH + Duration::from_secs(9) }
}

fn encode(live: &[SeriesKey], ends: &[SeriesKey], limits: Limits) -> Vec<Batch> {
    let resource = opentelemetry_sdk::Resource::builder_empty().with_service_name("agent").build();
    let instruments = Instruments::new(resource);
    let mut encoder = Encoder::new(instruments.resource(), times(), limits);
    let samples = live.iter().map(|(def, attributes)| Sample::new(def, attributes.clone(), 1.0));
    for (def, samples) in Grouped::new(samples).into_metrics() {
        for portion in instruments.collect(def, samples) {
            encoder.live(&portion.expect("collected"));
        }
    }
    ends.iter().for_each(|(def, attributes)| encoder.end(def, attributes));
    encoder.finish()
}

fn requests(live: &[SeriesKey], ends: &[SeriesKey], limits: Limits) -> Vec<ExportMetricsServiceRequest> {
    let request = |batch: Batch| {
        assert!(batch.bytes.len() <= limits.bytes, "{} bytes", batch.bytes.len());
        let request = ExportMetricsServiceRequest::decode(batch.bytes.clone()).expect("protobuf");
        assert_eq!(points_of(&request), batch.points);
        assert_eq!(request.encode_to_vec(), batch.bytes, "as the generated types write it");
        request
    };
    encode(live, ends, limits).into_iter().map(request).collect()
}

fn string(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn metrics(request: &ExportMetricsServiceRequest) -> &[Metric] {
    &request.resource_metrics[0].scope_metrics[0].metrics
}

const ROOMY: Limits = Limits { points: 8_000, bytes: Limits::BYTES };

#[test]
fn every_point_carries_the_time_of_collection_and_counters_the_start_of_the_process() {
    let requests = requests(&[series(&STATE, "a"), series(&CALLS, "a")], &[], ROOMY);
    let found = metrics(&requests[0]);
    assert_eq!(found.len(), 2);
    for metric in found {
        let point = &points(metric).expect("numbers")[0];
        assert_eq!(point.time_unix_nano, 9_000_000_000);
        let start = if metric.name == "t.calls" { 1_000_000_000 } else { 0 };
        assert_eq!(point.start_time_unix_nano, start, "{}", metric.name);
        assert_eq!((point.value, point.flags), (Some(Value::AsDouble(1.0)), 0));
    }
    let resource = requests[0].resource_metrics[0].resource.as_ref().expect("resource");
    assert_eq!(resource.attributes, [string("service.name", "agent")]);
}

#[test]
fn no_request_has_more_points_than_its_limit_and_none_is_lost() {
    let fleet: Vec<_> = (0..25).map(|i| series(&STATE, &i.to_string())).collect();
    let sizes: Vec<_> = requests(&fleet, &[], Limits { points: 10, ..ROOMY }).iter().map(points_of).collect();
    assert_eq!(sizes, [10, 10, 5]);
}

#[test]
fn long_attributes_make_more_requests_rather_than_larger_ones() {
    let fleet: Vec<_> = (0..100).map(|i| series(&STATE, &format!("{i}-{}", "x".repeat(1_000)))).collect();
    let requests = requests(&fleet, &[], Limits { points: 8_000, bytes: 20_000 });
    assert!(requests.len() >= 6, "{}", requests.len());
    assert_eq!(requests.iter().map(points_of).sum::<usize>(), 100);
}

#[test]
fn each_end_is_flagged_in_an_entry_of_its_own_behind_the_live_points() {
    let ends = [series(&STATE, "gone"), series(&STATE, "gone too"), series(&CALLS, "gone")];
    let requests = requests(&[series(&STATE, "a"), series(&STATE, "b")], &ends, ROOMY);
    let found = metrics(&requests[0]);
    let flags: Vec<Vec<u32>> =
        found.iter().map(|m| points(m).expect("numbers").iter().map(|p| p.flags).collect()).collect();
    assert_eq!(flags, [vec![0, 0], vec![1], vec![1], vec![1]]);
    let gone = &points(&found[1]).expect("numbers")[0];
    assert_eq!((gone.value, &gone.attributes), (None, &vec![string("host", "gone")]));
    assert!(matches!(&found[3].data, Some(Data::Sum(sum)) if sum.is_monotonic));
}

#[test]
fn halves_hold_every_point_once_down_to_a_single_one() {
    let fleet: Vec<_> = (0..5).map(|i| series(&STATE, &i.to_string())).collect();
    let bytes: Bytes = requests(&fleet, &[series(&CALLS, "gone")], ROOMY)[0].encode_to_vec().into();
    let [first, second] = halve(&bytes).expect("own protobuf");
    assert_eq!((first.points, second.points), (3, 3));
    let [_, last] = halve(&second.bytes).expect("own protobuf");
    assert_eq!((last.points, describe(&last.bytes).as_str()), (1, "t.calls{host=gone}"));
    let [only, nothing] = halve(&last.bytes).expect("own protobuf");
    assert_eq!((only.bytes, nothing.points), (last.bytes, 0));
}

#[test]
fn odd_attributes_arrive_as_they_are() {
    let pairs: [(&str, String); 6] = [
        ("", "no key".into()),
        ("empty", String::new()),
        ("long", "x".repeat(20_000)),
        ("name", "Zürich 東京 🖧".into()),
        ("newline", "a\nb\0c".into()),
        ("schlüssel", "ja".into()),
    ];
    let odd = (&STATE, Attributes::new(pairs.clone()));
    let bare = (&STATE, Attributes::new::<&str, &str>([]));
    let found = requests(&[odd.clone(), bare.clone()], &[odd, bare], ROOMY);
    let expected: Vec<_> = pairs.iter().map(|(key, value)| string(key, value)).collect();
    let mut arrived = metrics(&found[0]).iter().flat_map(|metric| points(metric).expect("numbers"));
    let (odd, bare): (Vec<_>, Vec<_>) = arrived.by_ref().partition(|point| !point.attributes.is_empty());
    assert_eq!((odd.len(), bare.len()), (2, 2), "alive and ended");
    assert!(odd.iter().all(|point| point.attributes == expected));
}

#[test]
fn attributes_of_other_types_and_numbers_at_the_edge_are_written_like_the_generated_types_do() {
    use opentelemetry::{Array, Key};
    let values = [
        opentelemetry::Value::Bool(true),
        opentelemetry::Value::I64(-1),
        opentelemetry::Value::F64(0.5),
        opentelemetry::Value::Array(Array::I64(vec![1, 2])),
    ];
    let attributes = values.map(|value| opentelemetry::KeyValue::new(Key::new("key"), value));
    let numbers = [0.0, -0.0, f64::MIN_POSITIVE, f64::MAX, -1.0];
    let mut encoder = Encoder::new(&opentelemetry_sdk::Resource::builder_empty().build(), times(), ROOMY);
    encoder.open(["", "", ""], Kind::Counter);
    numbers.iter().for_each(|number| encoder.live_point(attributes.iter(), *number));
    let batch = encoder.finish().remove(0);
    let request = ExportMetricsServiceRequest::decode(batch.bytes.clone()).expect("protobuf");
    assert_eq!(request.encode_to_vec(), batch.bytes);
    let arrived = points(&metrics(&request)[0]).expect("numbers");
    let expected: Vec<_> = attributes.iter().map(|kv| AnyValue::from(kv.value.clone())).collect();
    for (point, number) in arrived.iter().zip(numbers) {
        assert_eq!(point.value, Some(Value::AsDouble(number)));
        let values: Vec<_> = point.attributes.iter().filter_map(|pair| pair.value.clone()).collect();
        assert_eq!(values, expected);
    }
    assert_eq!(arrived.len(), numbers.len());
}

#[test]
fn an_entry_goes_on_in_the_next_request_with_its_heading() {
    let fleet: Vec<_> = (0..3).map(|i| series(&CALLS, &i.to_string())).collect();
    for request in requests(&fleet, &[], Limits { points: 2, ..ROOMY }) {
        let [metric] = metrics(&request) else { panic!("one entry: {request:?}") };
        assert_eq!((metric.name.as_str(), metric.description.as_str()), ("t.calls", "Calls."));
        assert!(matches!(&metric.data, Some(Data::Sum(sum)) if sum.is_monotonic));
    }
}

#[test]
fn nothing_is_no_request() {
    assert_eq!(encode(&[], &[], ROOMY), []);
}
