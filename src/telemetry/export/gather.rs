//! From readings to encoded batches, and which series the Collector thinks are alive.

use super::encode::{Batch, Limits, Times, encode};
use crate::metric::Sample;
use crate::readings::{Changes, SeriesKey, Snapshot};
use crate::telemetry::metrics::{CollectError, Grouped, Instruments};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

/// Collects and encodes. Synchronous, and busy for up to a second when the fleet is large: for a blocking
/// thread.
#[derive(Debug)]
pub struct Gatherer {
    instruments: Instruments,
    limits: Limits,
    started: SystemTime,
    live: HashSet<SeriesKey>,
}

/// Batches and the time of their points.
#[derive(Debug)]
pub struct Gathered {
    /// In the order in which they have to be sent.
    pub batches: Vec<Batch>,
    /// The time of every point.
    pub at: SystemTime,
}

impl Gatherer {
    /// `started` is where counters count from.
    pub fn new(instruments: Instruments, limits: Limits, started: SystemTime) -> Self {
        Self { instruments, limits, started, live: HashSet::new() }
    }

    /// Everything, and the ends of what went out before and is not there any more.
    pub fn everything(&mut self, readings: &Snapshot, own: Vec<Sample>) -> Result<Gathered, CollectError> {
        let grouped = Arc::new(Grouped::new(readings.samples().cloned().chain(own)));
        let live: HashSet<SeriesKey> = grouped.samples().map(series).collect();
        let ends: Vec<SeriesKey> = self.live.difference(&live).cloned().collect();
        let gathered = self.gather(grouped, &ends)?;
        self.live = live;
        Ok(gathered)
    }

    /// The changes alone.
    pub fn changes(&mut self, changes: Changes) -> Result<Gathered, CollectError> {
        let grouped = Arc::new(Grouped::new(changes.updated));
        let is_live = |series: &SeriesKey| self.live.contains(series);
        let ends: Vec<SeriesKey> = changes.ended.into_iter().filter(is_live).collect();
        let gathered = self.gather(Arc::clone(&grouped), &ends)?;
        for series in &ends {
            self.live.remove(series);
        }
        self.live.extend(grouped.samples().map(series));
        Ok(gathered)
    }

    fn gather(&mut self, grouped: Arc<Grouped>, ends: &[SeriesKey]) -> Result<Gathered, CollectError> {
        let collected = self.instruments.collect(grouped)?;
        let at = SystemTime::now();
        let times = Times { started: self.started, collected: at };
        Ok(Gathered { batches: encode(&collected, ends, times, self.limits), at })
    }
}

fn series(sample: &Sample) -> SeriesKey {
    (sample.def, sample.attributes.clone())
}
