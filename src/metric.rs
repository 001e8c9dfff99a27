//! Leaf: what a metric is, and one value of it. Plain data: nothing here knows OpenTelemetry or
//! Prometheus as programs, only their naming rules.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Gauge or monotonic counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A value of now.
    Gauge,
    /// A sum that only grows during the life of the process.
    Counter,
}

/// The unit of a metric. 0/1 and enumerations have none: `"1"` would become `_ratio` in Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// No unit.
    None,
    /// Seconds, also unix time.
    Seconds,
    /// Bytes.
    Bytes,
}

impl Unit {
    /// The UCUM code that OpenTelemetry wants.
    pub const fn ucum(self) -> &'static str {
        match self {
            Unit::None => "",
            Unit::Seconds => "s",
            Unit::Bytes => "By",
        }
    }

    /// The suffix that Prometheus wants, without the underscore.
    pub const fn prometheus_suffix(self) -> Option<&'static str> {
        match self {
            Unit::None => None,
            Unit::Seconds => Some("seconds"),
            Unit::Bytes => Some("bytes"),
        }
    }
}

/// When a new value is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cadence {
    /// A state: a change of its value, a new series and the end of one are exported within a second.
    OnChange,
    /// A measurement, which differs each time: exported at the export interval only.
    Periodic,
}

/// The definition of one metric. Declared as a `static` beside the collector that reports it; an
/// exporter only loops over samples and never needs to know what they mean.
///
/// Its name is its identity: the catalogue's test makes sure that no two share one.
#[derive(Debug)]
pub struct MetricDef {
    /// OpenTelemetry name, with dots.
    pub name: &'static str,
    /// Gauge or counter.
    pub kind: Kind,
    /// Unit of the value.
    pub unit: Unit,
    /// When a new value is exported.
    pub cadence: Cadence,
    /// Help text: what the value means, one sentence.
    pub help: &'static str,
    /// The attribute keys that its series carry, sorted. A series may leave some out.
    pub attributes: &'static [&'static str],
}

impl PartialEq for MetricDef {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for MetricDef {}

impl Hash for MetricDef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl MetricDef {
    /// The name that Prometheus sees: underscores, the unit's suffix, `_total` for counters. The rule is
    /// that of the OpenTelemetry specification's Prometheus compatibility page, which the Collector's
    /// exporters follow, so that both ways out give one name.
    pub fn prometheus_name(&self) -> String {
        let mut name: String = self.name.chars().map(|c| if c == '.' { '_' } else { c }).collect();
        if let Some(suffix) = self.unit.prometheus_suffix()
            && !name.ends_with(suffix)
        {
            name.push('_');
            name.push_str(suffix);
        }
        if self.kind == Kind::Counter {
            name.push_str("_total");
        }
        name
    }
}

/// The attributes of a series, sorted by key (the SDK's hot path is twice as fast on sorted ones) and
/// shared: built once per target and cloned by reference count.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attributes(Arc<[(Cow<'static, str>, Arc<str>)]>);

impl Attributes {
    /// Sorts the pairs by key. Of two pairs with one key the first one stays.
    pub fn new<K, V>(pairs: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<Cow<'static, str>>,
        V: Into<Arc<str>>,
    {
        let mut pairs: Vec<_> = pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
        pairs.dedup_by(|(a, _), (b, _)| a == b);
        Self(pairs.into())
    }

    /// These and one more pair.
    #[must_use]
    pub fn with(&self, key: impl Into<Cow<'static, str>>, value: impl Into<Arc<str>>) -> Self {
        let one = (key.into(), value.into());
        Self::new(self.0.iter().cloned().chain([one]))
    }

    /// The pairs, sorted by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Arc<str>)> {
        self.0.iter().map(|(k, v)| (k.as_ref(), v))
    }

    /// The pairs with their keys as they are kept: static ones need no copy.
    pub fn pairs(&self) -> &[(Cow<'static, str>, Arc<str>)] {
        &self.0
    }

    /// The same for clones, another for those that were built apart, even of equal pairs. Of use only
    /// while one of the clones is kept: afterwards others may get it.
    pub fn identity(&self) -> usize {
        Arc::as_ptr(&self.0).cast::<()>().addr()
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_ref())
    }
}

/// One value of one series.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Which metric.
    pub def: &'static MetricDef,
    /// Which series of it.
    pub attributes: Attributes,
    /// Its value, in the unit of the metric. Always finite: the SDK drops NaN and infinities silently.
    pub value: f64,
}

impl Sample {
    /// A sample.
    pub fn new(def: &'static MetricDef, attributes: Attributes, value: f64) -> Self {
        Self { def, attributes, value }
    }

    /// Of which series it is one.
    pub fn series(&self) -> (&'static MetricDef, &Attributes) {
        (self.def, &self.attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static DURATION: MetricDef = MetricDef {
        name: "esxi.host.ssh.visit.duration",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        cadence: Cadence::Periodic,
        help: "",
        attributes: &[],
    };
    static BYTES: MetricDef = MetricDef {
        name: "esxi.agent.soap.bytes",
        kind: Kind::Counter,
        unit: Unit::Bytes,
        cadence: Cadence::Periodic,
        help: "",
        attributes: &[],
    };

    #[test]
    fn prometheus_sees_underscores_and_the_units_suffix_once() {
        assert_eq!(DURATION.prometheus_name(), "esxi_host_ssh_visit_duration_seconds");
        assert_eq!(BYTES.prometheus_name(), "esxi_agent_soap_bytes_total");
    }

    #[test]
    fn attributes_are_sorted_whatever_the_order_they_came_in() {
        let a = Attributes::new([("site", "eu"), ("hostsystem", "h")]).with("service", "hostd");
        let keys: Vec<_> = a.iter().map(|(k, _)| k.to_owned()).collect();
        assert_eq!(keys, ["hostsystem", "service", "site"]);
    }
}
