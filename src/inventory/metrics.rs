//! What the agent counts about its inventory.

use super::origin::Origin;
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};

/// Which source a series is about; `vcenter` is there for vCenters that list their hosts alone.
const SOURCE: &[&str] = &["source", "vcenter"];

/// Number of targets.
pub static TARGETS: MetricDef = MetricDef {
    name: "esxi.agent.targets",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "Number of targets that this agent asks, its shard of the inventory, by kind (host, vcenter).",
    attributes: &["kind"],
};
/// When a source was last found to be good.
pub static LAST_SUCCESS: MetricDef = MetricDef {
    name: "esxi.agent.inventory.last_success.timestamp",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    cadence: Cadence::Periodic,
    help: "Unix time at which a source of the inventory (atlas, http_sd, vcenter) was last found to be good.",
    attributes: SOURCE,
};
/// Whether a source is bad at present.
pub static ERROR: MetricDef = MetricDef {
    name: "esxi.agent.inventory.error",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "1 while a source of the inventory can't be used, so that what it listed last stands.",
    attributes: SOURCE,
};
/// How many a source lists.
pub static LISTED: MetricDef = MetricDef {
    name: "esxi.agent.inventory.listed",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "Number of targets that a source of the inventory lists, by kind, before filters and shards; hosts that are \
           left out by choice (maintenance, disconnected) count.",
    attributes: &["kind", "source", "vcenter"],
};
/// What this room counts.
pub static METRICS: &[&MetricDef] = &[&TARGETS, &LAST_SUCCESS, &ERROR, &LISTED];

impl Origin {
    /// The attributes of its series.
    pub(super) fn attributes(&self) -> Attributes {
        let source = |word| Attributes::new([("source", word)]);
        match self {
            Self::Configuration => source("configuration"),
            Self::Atlas => source("atlas"),
            Self::HttpSd => source("http_sd"),
            Self::Vcenter(address) => source("vcenter").with("vcenter", address.clone()),
        }
    }
}
