use super::*;
use crate::metric::{Cadence, Sample, Unit};
use crate::telemetry::metrics::{Grouped, Instruments};
use std::sync::Arc;
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

fn requests(live: &[SeriesKey], ends: &[SeriesKey], limits: Limits) -> Vec<ExportMetricsServiceRequest> {
    let resource = opentelemetry_sdk::Resource::builder_empty().with_service_name("agent").build();
    let mut instruments = Instruments::new(resource);
    let samples = live.iter().map(|(def, attributes)| Sample::new(def, attributes.clone(), 1.0));
    let collected = instruments.collect(Arc::new(Grouped::new(samples))).expect("collected");
    encode(&collected, ends, times(), limits)
        .into_iter()
        .map(|batch| {
            assert!(batch.bytes.len() <= limits.bytes, "{} bytes", batch.bytes.len());
            let request = ExportMetricsServiceRequest::decode(batch.bytes).expect("protobuf");
            assert_eq!(points_of(&request), batch.points);
            request
        })
        .collect()
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
