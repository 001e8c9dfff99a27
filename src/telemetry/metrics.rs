//! The SDK's instruments: one observable gauge or counter a metric. Their callbacks read one immutable
//! snapshot from a cell, and nothing else.
//!
//! Collected by hand rather than by a periodic reader: the exporter decides when, with what snapshot, and
//! that collections never overlap. An observable instrument forgets the series that its callback does not
//! report, so that a snapshot of the changes alone exports the changes alone.

use crate::metric::{Attributes, Kind, MetricDef, Sample};
use opentelemetry::metrics::{AsyncInstrument, Meter, MeterProvider};
use opentelemetry::{Key, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{
    Instrument, InstrumentKind, ManualReader, Pipeline, SdkMeterProvider, Stream, Temporality,
};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// Series that each metric may have at least. Beyond its limit the SDK silently folds the rest into one.
const SMALLEST_LIMIT: usize = 4_096;

/// The snapshot could not be collected.
#[derive(Debug, thiserror::Error)]
#[error("collecting the metrics: {0}")]
pub struct CollectError(String);

/// The samples of one collection, by metric.
#[derive(Debug, Default)]
pub struct Grouped {
    by_def: HashMap<&'static MetricDef, Vec<Sample>>,
    points: usize,
}

impl Grouped {
    /// Groups samples by their metric. Values that are not finite are left out: no way out can carry them.
    pub fn new(samples: impl IntoIterator<Item = Sample>) -> Self {
        let mut grouped = Self::default();
        for sample in samples.into_iter().filter(|sample| sample.value.is_finite()) {
            grouped.points += 1;
            grouped.by_def.entry(sample.def).or_default().push(sample);
        }
        grouped
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.points
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.points == 0
    }

    /// The samples of one metric.
    pub fn of(&self, def: &'static MetricDef) -> &[Sample] {
        self.by_def.get(def).map_or(&[], Vec::as_slice)
    }

    /// Every sample.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.by_def.values().flatten()
    }

    fn widest(&self) -> usize {
        self.by_def.values().map(Vec::len).max().unwrap_or(0)
    }
}

type Cell = Arc<Mutex<Option<Arc<Grouped>>>>;

/// The instruments and their reader. Owned by one exporter.
#[derive(Debug)]
pub struct Instruments {
    resource: Resource,
    cell: Cell,
    limit: usize,
    pipeline: Built,
}

#[derive(Debug)]
struct Built {
    reader: SharedReader,
    /// Keeps the pipeline alive, to which the reader has only a weak reference.
    provider: SdkMeterProvider,
    registered: HashSet<&'static MetricDef>,
}

impl Instruments {
    /// Without instruments: a metric gets its own when a sample of it comes for the first time.
    pub fn new(resource: Resource) -> Self {
        let limit = SMALLEST_LIMIT;
        let pipeline = build(&resource, limit);
        Self { resource, cell: Cell::default(), limit, pipeline }
    }

    /// Collects exactly the samples of `snapshot`. Blocks for a few hundred milliseconds when the fleet is
    /// large: not for an async thread.
    pub fn collect(&mut self, snapshot: Arc<Grouped>) -> Result<ResourceMetrics, CollectError> {
        // The SDK keeps the series of the last collection until the end of the next one, so it has to
        // have room for two disjoint sets; the limit is allocated at once, so it grows with the fleet.
        if snapshot.widest() * 2 > self.limit {
            self.limit = snapshot.widest() * 4;
            self.pipeline = build(&self.resource, self.limit);
        }
        self.register(&snapshot);
        let mut collected = ResourceMetrics::default();
        *self.cell.lock().unwrap_or_else(PoisonError::into_inner) = Some(snapshot);
        let result = self.pipeline.reader.collect(&mut collected);
        *self.cell.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match result {
            Ok(()) => Ok(collected),
            Err(error) => {
                // A pipeline that failed once fails for ever (its lock is poisoned): start a new one.
                self.pipeline = build(&self.resource, self.limit);
                Err(CollectError(error.to_string()))
            }
        }
    }

    /// Never from within a callback, where it would deadlock.
    fn register(&mut self, snapshot: &Grouped) {
        // No name and no version: behind a Collector every series would get otel_scope_* labels otherwise.
        let meter = self.pipeline.provider.meter("");
        for def in snapshot.by_def.keys() {
            if self.pipeline.registered.insert(def) {
                register(&meter, def, Arc::clone(&self.cell));
            }
        }
    }
}

fn build(resource: &Resource, limit: usize) -> Built {
    let reader = SharedReader(Arc::new(ManualReader::builder().build()));
    let provider = SdkMeterProvider::builder()
        .with_resource(resource.clone())
        .with_reader(reader.clone())
        .with_view(move |_: &Instrument| Stream::builder().with_cardinality_limit(limit).build().ok())
        .build();
    Built { reader, provider, registered: HashSet::new() }
}

fn register(meter: &Meter, def: &'static MetricDef, cell: Cell) {
    let callback = move |observer: &dyn AsyncInstrument<f64>| {
        let snapshot = cell.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(snapshot) = snapshot else { return };
        let mut attributes = Vec::with_capacity(def.attributes.len());
        for sample in snapshot.of(def) {
            attributes.clear();
            attributes.extend(key_values(&sample.attributes));
            observer.observe(sample.value, &attributes);
        }
    };
    match def.kind {
        Kind::Gauge => {
            let gauge = meter.f64_observable_gauge(def.name).with_description(def.help);
            gauge.with_unit(def.unit.ucum()).with_callback(callback).build();
        }
        Kind::Counter => {
            let counter = meter.f64_observable_counter(def.name).with_description(def.help);
            counter.with_unit(def.unit.ucum()).with_callback(callback).build();
        }
    }
}

/// As the SDK wants them, without copying a text.
fn key_values(attributes: &Attributes) -> impl Iterator<Item = KeyValue> {
    attributes.pairs().iter().map(|(key, value)| {
        let key = match key {
            Cow::Borrowed(key) => Key::from_static_str(key),
            Cow::Owned(key) => Key::from(key.clone()),
        };
        KeyValue::new(key, Arc::clone(value))
    })
}

/// A provider takes its reader for itself; this one can still be asked to collect.
#[derive(Debug, Clone)]
struct SharedReader(Arc<ManualReader>);

impl MetricReader for SharedReader {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, rm: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(rm)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::{Cadence, Unit};
    use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};

    static STATE: MetricDef = MetricDef {
        name: "t.state",
        kind: Kind::Gauge,
        unit: Unit::None,
        cadence: Cadence::OnChange,
        help: "A state.",
        attributes: &["host"],
    };

    fn state(host: &str, value: f64) -> Sample {
        Sample::new(&STATE, Attributes::new([("host", host)]), value)
    }

    fn points(collected: &ResourceMetrics) -> Vec<(String, f64)> {
        let metrics = collected.scope_metrics().flat_map(|scope| scope.metrics());
        let mut points: Vec<_> = metrics
            .flat_map(|metric| match metric.data() {
                AggregatedMetrics::F64(MetricData::Gauge(gauge)) => gauge.data_points().collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            })
            .map(|point| {
                let host = point.attributes().next().map(|kv| kv.value.to_string()).unwrap_or_default();
                (host, point.value())
            })
            .collect();
        points.sort_by(|a, b| a.0.cmp(&b.0));
        points
    }

    fn collect(instruments: &mut Instruments, samples: Vec<Sample>) -> Vec<(String, f64)> {
        points(&instruments.collect(Arc::new(Grouped::new(samples))).expect("collected"))
    }

    #[test]
    fn a_collection_holds_its_snapshot_and_nothing_of_the_one_before() {
        let mut instruments = Instruments::new(Resource::builder_empty().build());
        let first = collect(&mut instruments, vec![state("a", 1.0), state("b", 0.0)]);
        assert_eq!(first, [("a".into(), 1.0), ("b".into(), 0.0)]);
        assert_eq!(collect(&mut instruments, vec![state("b", 1.0)]), [("b".into(), 1.0)]);
        assert_eq!(collect(&mut instruments, vec![]), []);
    }

    #[test]
    fn no_series_is_folded_into_an_overflow_when_a_large_fleet_changes_all_at_once() {
        let mut instruments = Instruments::new(Resource::builder_empty().build());
        for generation in ["old", "new", "newer"] {
            let fleet = (0..9_000).map(|i| state(&format!("{generation}-{i}"), 1.0)).collect();
            let collected = collect(&mut instruments, fleet);
            assert_eq!(collected.len(), 9_000);
            assert!(collected.iter().all(|(host, _)| host.starts_with(generation)));
        }
    }

    #[test]
    fn a_value_that_is_not_finite_is_left_out() {
        let grouped = Grouped::new([state("a", f64::NAN), state("b", f64::INFINITY), state("c", 1.0)]);
        assert_eq!(grouped.len(), 1);
    }
}
