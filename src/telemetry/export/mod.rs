//! Points to a Collector: collect, encode, queue (in memory, and on disk when it takes longer), send.
//!
//! Everything goes out each interval. Between, what changed goes out within a second: only the changed
//! series, and the ends of those that have gone. A series that ends gets exactly one flagged point.

pub mod encode;
pub mod peer;
pub mod queue;
pub mod sender;
pub mod spool;
pub mod transport;

pub(super) mod addresses;
mod drops;
mod exporter;
pub(super) mod follow;
mod gather;
mod live;
pub(super) mod pauses;
mod split;
mod wire;

pub use drops::{Dropped, Drops};
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
    help: "Points by what became of them: exported, rejected by the Collector, or dropped before they could be sent.",
    attributes: &["outcome"],
};

/// Dropped points by the reason.
pub static DROPS: MetricDef = MetricDef {
    name: "esxi.agent.export.drops",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Dropped points by the reason: too_old, no_room in the queue, damaged on disk, or at_end of the agent, not sent and in memory alone.",
    attributes: &["reason"],
};

/// Encoded bytes that wait.
pub static QUEUE_BYTES: MetricDef = MetricDef {
    name: "esxi.agent.export.queue.bytes",
    kind: Kind::Gauge,
    unit: Unit::Bytes,
    cadence: Cadence::Periodic,
    help: "Encoded points that wait for the Collector in memory.",
    attributes: &[],
};

/// Age of the oldest that waits.
pub static QUEUE_AGE: MetricDef = MetricDef {
    name: "esxi.agent.export.queue.age",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    cadence: Cadence::Periodic,
    help: "Age of the oldest points that wait for the Collector, in memory or on disk, 0 when none wait.",
    attributes: &[],
};

/// Which of several Collectors is used.
pub static COLLECTOR: MetricDef = MetricDef {
    name: "esxi.agent.export.collector",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "Where everything goes: 0 to the Collector of otlp.endpoint, 1 to the first one of otlp.failover, and so on. Only where there are several.",
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
pub static METRICS: &[&MetricDef] =
    &[&POINTS, &DROPS, &QUEUE_BYTES, &QUEUE_AGE, &spool::BYTES, &spool::DAMAGED, &COLLECTOR, &SPANS];

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
