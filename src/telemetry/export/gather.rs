//! From readings to encoded batches.

use super::encode::{Batch, Encoder, Limits, Times};
use super::live::Live;
use crate::metric::Sample;
use crate::readings::{Changes, SeriesKey, Snapshot};
use crate::telemetry::metrics::{CollectError, Grouped, Instruments};
use std::time::SystemTime;

/// Collects and encodes. Synchronous, and busy for up to a second when the fleet is large: for a blocking
/// thread.
#[derive(Debug)]
pub struct Gatherer {
    instruments: Instruments,
    limits: Limits,
    started: SystemTime,
    live: Live,
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
        Self { instruments, limits, started, live: Live::default() }
    }

    /// Of the next collections.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Everything, and the ends of what went out before and is not there any more.
    pub fn everything(&mut self, readings: &Snapshot, own: Vec<Sample>) -> Result<Gathered, CollectError> {
        let grouped = Grouped::new(readings.samples().cloned().chain(own));
        let ends = self.live.advance(&grouped);
        self.gather_or_take_back(grouped, ends)
    }

    /// The changes alone.
    pub fn changes(&mut self, changes: Changes) -> Result<Gathered, CollectError> {
        let grouped = Grouped::new(changes.updated);
        let ends = self.live.take(changes.ended);
        self.live.extend(&grouped);
        self.gather_or_take_back(grouped, ends)
    }

    /// What could not be sent has not ended yet. That what is new counts as alive even so does no harm: the
    /// next collection has it, or says that it ended.
    fn gather_or_take_back(
        &mut self,
        grouped: Grouped,
        ends: Vec<SeriesKey>,
    ) -> Result<Gathered, CollectError> {
        let gathered = self.gather(grouped, &ends);
        if gathered.is_err() {
            self.live.put_back(ends);
        }
        gathered
    }

    /// Portion by portion: what is collected of one is gone before the next, and only its bytes stay.
    fn gather(&self, grouped: Grouped, ends: &[SeriesKey]) -> Result<Gathered, CollectError> {
        let at = SystemTime::now();
        let times = Times { started: self.started, collected: at };
        let mut encoder = Encoder::new(self.instruments.resource(), times, self.limits);
        for (def, samples) in grouped.into_metrics() {
            for portion in self.instruments.collect(def, samples) {
                encoder.live(&portion?);
            }
        }
        for (def, attributes) in ends {
            encoder.end(def, attributes);
        }
        Ok(Gathered { batches: encoder.finish(), at })
    }
}
