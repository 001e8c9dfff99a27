//! The series that every visit and poll has, whatever the collectors: did it work, if not why, how long
//! did it take, when did it last work.

use crate::inventory::{Host, Vcenter};
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Sample, Unit};
use crate::outcome::Failure;
use crate::readings::{Reading, Readings, Report};
use crate::target::TargetId;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

macro_rules! series {
    ($prefix:literal, $what:literal, $how:literal, $attributes:tt, $with_reason:tt) => {
        /// Whether the last one succeeded.
        pub static UP: MetricDef = MetricDef {
            name: concat!($prefix, ".up"),
            kind: Kind::Gauge,
            unit: Unit::None,
            cadence: Cadence::OnChange,
            help: concat!("Whether the last ", $how, " of the ", $what, " succeeded: 1 or 0."),
            attributes: &$attributes,
        };
        /// Why the last one failed.
        pub static FAILURE: MetricDef = MetricDef {
            name: concat!($prefix, ".failure"),
            kind: Kind::Gauge,
            unit: Unit::None,
            cadence: Cadence::OnChange,
            help: concat!("1 while the last ", $how, " of the ", $what, " failed, with the reason."),
            attributes: &$with_reason,
        };
        /// When one last succeeded.
        pub static LAST_SUCCESS: MetricDef = MetricDef {
            name: concat!($prefix, ".last_success.timestamp"),
            kind: Kind::Gauge,
            unit: Unit::Seconds,
            cadence: Cadence::Periodic,
            help: concat!("Unix time of the last ", $how, " of the ", $what, " that succeeded."),
            attributes: &$attributes,
        };
    };
}

/// Of visits by SSH.
pub mod host {
    use super::{Cadence, Kind, MetricDef, Unit};

    series!("esxi.host.ssh", "host", "SSH visit", ["hostsystem", "site"], ["hostsystem", "reason", "site"]);
    /// How long the last visit took.
    pub static DURATION: MetricDef = MetricDef {
        name: "esxi.host.ssh.visit.duration",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        cadence: Cadence::Periodic,
        help: "How long the last SSH visit of the host took.",
        attributes: &["hostsystem", "site"],
    };
}

/// Of polls by SOAP.
pub mod vcenter {
    use super::{Cadence, Kind, MetricDef, Unit};

    series!("esxi.vcenter", "vCenter", "poll", ["site", "vcenter"], ["reason", "site", "vcenter"]);
    /// How long the last poll took.
    pub static DURATION: MetricDef = MetricDef {
        name: "esxi.vcenter.poll.duration",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        cadence: Cadence::Periodic,
        help: "How long the last poll of the vCenter took, all its pages included.",
        attributes: &["site", "vcenter"],
    };
}

/// Both sets.
pub static METRICS: &[&MetricDef] = &[
    &host::UP,
    &host::FAILURE,
    &host::DURATION,
    &host::LAST_SUCCESS,
    &vcenter::UP,
    &vcenter::FAILURE,
    &vcenter::DURATION,
    &vcenter::LAST_SUCCESS,
];

/// One of the two sets.
struct Defs {
    up: &'static MetricDef,
    failure: &'static MetricDef,
    duration: &'static MetricDef,
    last_success: &'static MetricDef,
}

static HOST: Defs = Defs {
    up: &host::UP,
    failure: &host::FAILURE,
    duration: &host::DURATION,
    last_success: &host::LAST_SUCCESS,
};

static VCENTER: Defs = Defs {
    up: &vcenter::UP,
    failure: &vcenter::FAILURE,
    duration: &vcenter::DURATION,
    last_success: &vcenter::LAST_SUCCESS,
};

/// Stores how a visit ended.
pub fn conclude_visit(readings: &Readings, host: &Host, failure: Option<Failure>, took: Duration) {
    let attributes = Attributes::new([("site", host.site.clone()), ("hostsystem", host.address.clone())]);
    conclude(readings, &HOST, &host.id(), &attributes, failure, took);
}

/// Stores how a poll ended.
pub fn conclude_poll(readings: &Readings, vcenter: &Vcenter, failure: Option<Failure>, took: Duration) {
    let attributes = Attributes::new([("site", vcenter.site.clone()), ("vcenter", vcenter.address.clone())]);
    conclude(readings, &VCENTER, &vcenter.id(), &attributes, failure, took);
}

fn conclude(
    readings: &Readings,
    defs: &Defs,
    id: &TargetId,
    attributes: &Attributes,
    failure: Option<Failure>,
    took: Duration,
) {
    let reason = failure.as_ref().map(|failure| failure.reason.word());
    readings.conclude(id, failure, took, SystemTime::now());
    let sample = |def, value| Sample::new(def, attributes.clone(), value);
    let mut samples = vec![
        sample(defs.up, f64::from(u8::from(reason.is_none()))),
        sample(defs.duration, took.as_secs_f64()),
    ];
    if let Some(reason) = reason {
        samples.push(Sample::new(defs.failure, attributes.with("reason", reason), 1.0));
    }
    if let Some(at) = readings.status(id).and_then(|status| status.last_success) {
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        samples.push(sample(defs.last_success, at));
    }
    let readings_of_outcome = vec![Reading { part: Arc::from("outcome"), samples }];
    readings.record(Report {
        target: id.clone(),
        collector: "outcome",
        readings: readings_of_outcome,
        // Until the target leaves the inventory: a host never vanishes without a word.
        stale_after: None,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Endpoint;
    use crate::outcome::FailureReason;
    use std::collections::BTreeMap;

    fn esx1() -> Host {
        let address: Arc<str> = "esx1.example.org".into();
        let endpoint = Endpoint { host: address.clone(), port: None };
        Host { address, endpoint, site: "eu-1".into(), labels: BTreeMap::new() }
    }

    fn value(readings: &Readings, def: &MetricDef) -> Option<f64> {
        readings.snapshot().samples().find(|sample| sample.def == def).map(|sample| sample.value)
    }

    #[tokio::test]
    async fn a_host_goes_down_with_its_reason_and_comes_back_without() {
        let readings = Readings::new();
        conclude_visit(&readings, &esx1(), None, Duration::from_secs(1));
        assert_eq!(value(&readings, &host::UP), Some(1.0));
        assert_eq!(value(&readings, &host::FAILURE), None);
        let worked_at = value(&readings, &host::LAST_SUCCESS);

        let refused = Failure::new(FailureReason::ConnectRefused, "esx1.example.org: refused");
        conclude_visit(&readings, &esx1(), Some(refused), Duration::from_secs(1));
        assert_eq!(value(&readings, &host::UP), Some(0.0));
        assert_eq!(value(&readings, &host::FAILURE), Some(1.0));
        assert_eq!(value(&readings, &host::LAST_SUCCESS), worked_at, "its age tells how long it is down");

        conclude_visit(&readings, &esx1(), None, Duration::from_secs(1));
        assert_eq!(value(&readings, &host::FAILURE), None);
    }

    #[tokio::test]
    async fn a_host_that_never_worked_has_no_last_success() {
        let readings = Readings::new();
        let failure = Failure::new(FailureReason::Dns, "no such name");
        conclude_visit(&readings, &esx1(), Some(failure), Duration::ZERO);
        assert_eq!(value(&readings, &host::LAST_SUCCESS), None);
        assert_eq!(value(&readings, &host::UP), Some(0.0));
    }
}
