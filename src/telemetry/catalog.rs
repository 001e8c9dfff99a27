//! The one list of all metrics. A room declares its metrics beside the code that reports them and gets
//! one line here; gauges, pages and documentation are made from this list.

use super::{events, export, logs, process};
use crate::accounts::guard;
use crate::collectors::{Metrics, critical_service, overall_state};
use crate::config::watch;
use crate::metric::{Kind, MetricDef, Unit};
use crate::outcome::FailureReason;
use crate::poller::{self, series, visit};
use crate::{inventory, ssh, vim};
use std::fmt::Write;

/// The rooms' lists, in the order of the documentation.
#[rustfmt::skip] // one line a room
static ROOMS: &[(&str, Metrics)] = &[
    ("Critical services", critical_service::METRICS),
    ("Overall state, and what else a vCenter knows", overall_state::METRICS),
    ("Visits and polls", series::METRICS),
    ("The agent's inventory", inventory::METRICS),
    ("The agent's configuration", watch::METRICS),
    ("The agent's visits and polls", poller::METRICS),
    ("The agent's kept sessions", visit::METRICS),
    ("The agent's SSH sessions", ssh::METRICS),
    ("The agent's SOAP calls", vim::METRICS),
    ("The agent's guard", guard::METRICS),
    ("The agent's exports", export::METRICS),
    ("The agent's log records", logs::METRICS),
    ("The agent's events", events::METRICS),
    ("The agent's process", process::METRICS),
];

/// Every metric that the agent can report.
pub fn all() -> Vec<&'static MetricDef> {
    ROOMS.iter().flat_map(|(_, metrics)| metrics.iter().copied()).collect()
}

/// The text of `docs/metrics.md`.
pub fn documentation() -> String {
    let mut text = String::from(INTRODUCTION);
    for (title, metrics) in ROOMS {
        let _ = write!(text, "\n## {title}\n\n{TABLE_HEAD}");
        for def in metrics.iter() {
            let attributes: Vec<_> = def.attributes.iter().map(|key| format!("`{key}`")).collect();
            let _ = writeln!(
                text,
                "| `{}` | `{}` | {} | {} | {} | {} |",
                def.name,
                def.prometheus_name(),
                kind(def.kind),
                unit(def.unit),
                attributes.join(", "),
                def.help,
            );
        }
    }
    text.push_str(REASONS);
    for reason in FailureReason::ALL {
        let _ = writeln!(text, "| `{}` | {} |", reason.word(), reason.meaning().trim());
    }
    text
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
    }
}

fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::None => "",
        Unit::Seconds => "seconds",
        Unit::Bytes => "bytes",
    }
}

const INTRODUCTION: &str = "\
# Metrics

<!-- Made from the code. To refresh: UPDATE_DOCS=1 cargo test --lib telemetry::catalog -->

The OpenTelemetry name goes out over OTLP; the Prometheus name stands on `/metrics`, and behind an
OpenTelemetry Collector as well. Prometheus adds `job` and `instance` when it scrapes.

A series appears with its first result. When it ends, OTLP gets one last point with the flag *no recorded
value*, and it is gone from `/metrics`. A failed visit or poll changes `up` and `failure` at once; the last
reading of each service or status stands until it is stale.
";

const TABLE_HEAD: &str = "\
| OpenTelemetry | Prometheus | kind | unit | attributes | meaning |
|---|---|---|---|---|---|
";

const REASONS: &str = "
## Reasons

The values of `reason`: a closed list. The same word stands in a span's `error.type` and in the log.

| reason | meaning |
|---|---|
";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_metrics_share_a_name() {
        let all = all();
        let names: HashSet<_> = all.iter().map(|def| def.name).collect();
        let prometheus: HashSet<_> = all.iter().map(|def| def.prometheus_name()).collect();
        assert_eq!(names.len(), all.len());
        assert_eq!(prometheus.len(), all.len());
    }

    #[test]
    fn names_help_and_attributes_follow_the_rules() {
        for def in all() {
            let name = def.name;
            assert!(name.starts_with("esxi."), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'.'), "{name}");
            assert!(!name.ends_with("total"), "{name}: Prometheus adds _total by itself");
            assert!(def.help.ends_with('.') && def.help.len() > 10, "{name}: help is a sentence");
            assert!(!def.help.contains(['|', '\n']), "{name}: help stands in a table");
            assert_ne!(def.unit.ucum(), "1", "{name}: would become _ratio in Prometheus");
            assert!(def.attributes.is_sorted(), "{name}: attributes are sorted by key");
            for key in def.attributes {
                assert!(
                    key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'.'),
                    "{name}: {key}"
                );
                assert!(
                    !["job", "instance", "le", "quantile"].contains(key),
                    "{name}: {key} is Prometheus's own"
                );
            }
            let unique: HashSet<_> = def.attributes.iter().collect();
            assert_eq!(unique.len(), def.attributes.len(), "{name}");
        }
    }

    #[test]
    fn the_documentation_is_what_the_code_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let wanted = documentation();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &wanted).expect("docs/metrics.md can be written");
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        let refresh =
            "docs/metrics.md is stale; refresh it: UPDATE_DOCS=1 cargo test --lib telemetry::catalog";
        assert!(found == wanted, "{refresh}");
    }
}
