//! What waits for the Collector, on disk: it survives an end of the agent, and an outage that is longer than
//! what memory holds.
//!
//! A folder of segments, each a file that is only ever appended to: made beside its place, synced, renamed, and
//! the folder synced; every write to it ends with fdatasync(2). A segment is removed once all of it was
//! sent or given up; how far that is stands in the file `cursor`. An entry is one encoded request, compressed, with
//! the times that its points had. What was not written to its end, or has changed since, is told by checksums
//! and skipped; a segment with damage is put aside as `….damaged`.
//!
//! | file | |
//! |---|---|
//! | `format` | whose folder this is: `esxi-otel-agent spool 1` |
//! | `lock` | held (flock(2)) by the process that uses it |
//! | `<sequence>.segment` | entries, named by the first one |
//! | `cursor` | the first entry that is not dealt with |
//! | `<sequence>.damaged` | a segment with damage, the newest two |
//!
//! A kill between an answer of the Collector and the next cursor sends up to a second's requests again, with the same
//! times: stores take a sample that they have for what it is.
//!
//! Why no library: a request queue needs an append, a read in order and a cursor. redb 4 and fjall 3 are well kept,
//! but want a newer Rust than this crate, are ordered maps with a page or LSM format in between, and give up a
//! database as a whole where a segment can be skipped; they are no quicker (1.5 and 1.2 ms against 1.3 ms for
//! 540 kB with a sync). queue-file has no checksums and one file that never shrinks; yaque and okaywal are hardly
//! kept any more.

mod clock;
mod disk;
mod entry;
mod folder;
mod keeper;

pub use disk::{Kept, Loaded, Spool};
pub use entry::Sequence;
pub use folder::SpoolError;
pub use keeper::Keeper;

use crate::config::SpoolConfig;
use crate::metric::{Cadence, Kind, MetricDef, Unit};
use std::time::Duration;

/// How long a request may wait in memory before it is written down: what the Collector takes at once never
/// touches the disk.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes on the disk.
pub static BYTES: MetricDef = MetricDef {
    name: "esxi.agent.export.spool.bytes",
    kind: Kind::Gauge,
    unit: Unit::Bytes,
    cadence: Cadence::Periodic,
    help: "Size of the spool on disk, of points that wait for the Collector.",
    attributes: &[],
};

/// Segments with damage.
pub static DAMAGED: MetricDef = MetricDef {
    name: "esxi.agent.export.spool.damaged",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Segments of the spool in which there was damage; they are put aside.",
    attributes: &[],
};

/// What is kept, and when it is written.
#[derive(Debug, Clone)]
pub struct SpoolOptions {
    /// Where, how much, how long.
    pub config: SpoolConfig,
    /// How long a request may wait in memory alone while nothing waits on disk.
    pub patience: Duration,
}

impl SpoolOptions {
    /// As configured.
    pub fn new(config: SpoolConfig) -> Self {
        Self { config, patience: PATIENCE }
    }
}
