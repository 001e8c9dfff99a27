//! What is logged, and what becomes a span or an exported record.
//!
//! The filters of the two ways out are fixed: with the exporter's own libraries let through, every export
//! makes records that are exported. With a filter of `trace`, one span became 113,060 in six seconds.

use super::events;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// The crate, and its part that plays the peers and never belongs to the agent's own telemetry.
const CRATE: &str = "esxi_otel_agent";
const SIMULATOR: &str = "esxi_otel_agent::simulator";

/// What an export itself runs through.
const WIRES: [&str; 9] = [
    "h2",
    "hyper",
    "hyper_util",
    "tonic",
    "tower",
    "opentelemetry",
    "opentelemetry_sdk",
    "opentelemetry-otlp",
    "opentelemetry_otlp",
];

/// How much stands on the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Warnings and errors.
    Quiet,
    /// What happens, too: `-v`.
    Info,
    /// The details of it, too: `-vv`.
    Debug,
}

/// The agent's own spans.
pub(super) fn spans() -> Targets {
    Targets::new().with_target(CRATE, LevelFilter::INFO).with_target(SIMULATOR, LevelFilter::OFF)
}

/// The records that are exported: the agent's at info and above, others' warnings.
fn records() -> Targets {
    without_wires(spans().with_default(LevelFilter::WARN), LevelFilter::OFF)
}

/// What is exported of the log: all records, or not, and those that are events, or not. Events that are told
/// by themselves are not exported once more.
pub(super) fn exported(with_records: bool, with_events: bool) -> Targets {
    let records = if with_records { records() } else { Targets::new() };
    let level = if with_events { LevelFilter::INFO } else { LevelFilter::OFF };
    records.with_target(events::TOLD, LevelFilter::OFF).with_target(events::TARGET, level)
}

/// What stands on the console.
pub(super) fn console(verbosity: Verbosity) -> Targets {
    let (own, others) = match verbosity {
        Verbosity::Quiet => (LevelFilter::WARN, LevelFilter::WARN),
        Verbosity::Info => (LevelFilter::INFO, LevelFilter::WARN),
        Verbosity::Debug => (LevelFilter::DEBUG, LevelFilter::INFO),
    };
    // What the wires have to say of an export stands in the agent's own lines.
    without_wires(Targets::new().with_target(CRATE, own).with_default(others), LevelFilter::ERROR)
}

fn without_wires(targets: Targets, level: LevelFilter) -> Targets {
    WIRES.iter().fold(targets, |targets, wire| targets.with_target(*wire, level))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn nothing_that_an_export_does_is_exported() {
        for wire in WIRES {
            assert!(!records().would_enable(wire, &Level::ERROR), "{wire}");
            assert!(!records().would_enable(&format!("{wire}::deep::inside"), &Level::ERROR), "{wire}");
            assert!(!spans().would_enable(wire, &Level::ERROR), "{wire}");
        }
    }

    #[test]
    fn the_simulated_peers_are_not_the_agent() {
        assert!(spans().would_enable("esxi_otel_agent::ssh::session", &Level::INFO));
        assert!(!spans().would_enable("esxi_otel_agent::simulator::host", &Level::INFO));
        assert!(!records().would_enable("esxi_otel_agent::simulator::host", &Level::ERROR));
    }
}
