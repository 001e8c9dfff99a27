//! Leaf: what the agent counts about itself. Rooms add to it with the `MetricDef`s that they declare;
//! the exporters read it like any other samples.

use crate::metric::{Attributes, Kind, MetricDef, Sample};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Counters and gauges of the agent itself. The number of series is bounded by the callers: attribute
/// values come from closed lists or the inventory, never from a peer.
#[derive(Debug, Default)]
pub struct Stats(Mutex<HashMap<SeriesKey, f64>>);

type SeriesKey = (&'static MetricDef, Attributes);

impl Stats {
    /// Nothing counted yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Adds to a counter.
    pub fn add(&self, def: &'static MetricDef, attributes: Attributes, by: f64) {
        debug_assert_eq!(def.kind, Kind::Counter, "{} is no counter", def.name);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry((def, attributes)).or_default() += by;
    }

    /// Sets a gauge.
    pub fn set(&self, def: &'static MetricDef, attributes: Attributes, value: f64) {
        debug_assert_eq!(def.kind, Kind::Gauge, "{} is no gauge", def.name);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert((def, attributes), value);
    }

    /// Ends a gauge's series.
    pub fn unset(&self, def: &'static MetricDef, attributes: &Attributes) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&(def, attributes.clone()));
    }

    /// Everything counted so far.
    pub fn samples(&self) -> Vec<Sample> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|((def, attributes), value)| Sample::new(def, attributes.clone(), *value)).collect()
    }
}
