//! Points to a Collector: collect, encode, queue, send.
//!
//! Everything goes out each interval. Between, what changed goes out within a second: only the changed
//! series, and the ends of those that have gone. A series that ends gets exactly one flagged point.

pub mod encode;
pub mod peer;
pub mod queue;
pub mod sender;
pub mod transport;

mod exporter;
mod gather;
mod live;
mod split;
mod wire;

pub use exporter::{Exporter, ExporterGone, Options, Parts};
pub use gather::Gatherer;

use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::stats::Stats;

/// Points by what became of them.
pub static POINTS: MetricDef = MetricDef {
    name: "esxi.agent.export.points",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Points by what became of them: exported, rejected by the Collector, or dropped because the queue was full or they were too old.",
    attributes: &["outcome"],
};

/// Encoded bytes that wait.
pub static QUEUE_BYTES: MetricDef = MetricDef {
    name: "esxi.agent.export.queue.bytes",
    kind: Kind::Gauge,
    unit: Unit::Bytes,
    cadence: Cadence::Periodic,
    help: "Encoded points that wait for the Collector.",
    attributes: &[],
};

/// Age of the oldest that waits.
pub static QUEUE_AGE: MetricDef = MetricDef {
    name: "esxi.agent.export.queue.age",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    cadence: Cadence::Periodic,
    help: "Age of the oldest points that wait for the Collector, 0 when none wait.",
    attributes: &[],
};

/// Spans by what became of them.
pub static SPANS: MetricDef = MetricDef {
    name: "esxi.agent.export.spans",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Spans by what became of them: exported, sampled_out, or dropped because too many were open or waiting.",
    attributes: &["outcome"],
};

/// The metrics of this room.
pub static METRICS: &[&MetricDef] = &[&POINTS, &QUEUE_BYTES, &QUEUE_AGE, &SPANS];

/// What became of points.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outcome {
    Exported,
    Rejected,
    Dropped,
}

pub(crate) fn count(stats: &Stats, outcome: Outcome, points: usize) {
    if points > 0 {
        let word = match outcome {
            Outcome::Exported => "exported",
            Outcome::Rejected => "rejected",
            Outcome::Dropped => "dropped",
        };
        stats.add(&POINTS, Attributes::new([("outcome", word)]), points as f64);
    }
}
