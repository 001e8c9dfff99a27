//! What a vCenter says of its hosts: overall status, connection, power, maintenance, what they are.

use super::{VcenterAnswer, VcenterCollector};
use crate::config::OverallStateConfig;
use crate::inventory::{Inventory, Vcenter};
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Sample, Unit};
use crate::readings::Reading;
use crate::vim::model::{ManagedObject, Reference, entity_name};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Attributes of every series but the status: `address` is the join key to the series that come by SSH.
const HOST: &[&str] = &["address", "hostsystem", "site", "vcenter"];
/// The same, with a state.
const HOST_STATE: &[&str] = &["address", "hostsystem", "site", "state", "vcenter"];

const fn state(name: &'static str, help: &'static str, attributes: &'static [&'static str]) -> MetricDef {
    MetricDef { name, kind: Kind::Gauge, unit: Unit::None, cadence: Cadence::OnChange, help, attributes }
}

/// `HostSystem.overallStatus`. Name, labels and values are those of the Python exporter.
pub static OVERALL_STATUS: MetricDef = state(
    "esxi.overall_status",
    "Overall status of the host by its vCenter: 2 green, 1 yellow, 0 red, -1 gray or unknown.",
    &["hostsystem", "site", "vcenter"],
);
/// What the host is.
pub static INFO: MetricDef = state(
    "esxi.host.info",
    "What the vCenter says the host is; always 1.",
    &["address", "build", "cluster", "datacenter", "hostsystem", "model", "site", "vcenter", "version"],
);
/// `HostRuntimeInfo.connectionState`.
pub static CONNECTION_STATE: MetricDef = state(
    "esxi.host.connection_state",
    "Connection between vCenter and host: 1 for the state that it is in, 0 for the others.",
    HOST_STATE,
);
/// `HostRuntimeInfo.powerState`.
pub static POWER_STATE: MetricDef = state(
    "esxi.host.power_state",
    "Power of the host: 1 for the state that it is in, 0 for the others.",
    HOST_STATE,
);
/// `HostRuntimeInfo.inMaintenanceMode`.
pub static MAINTENANCE_MODE: MetricDef =
    state("esxi.host.maintenance_mode", "1 while the host is in maintenance mode, else 0.", HOST);
/// `HostRuntimeInfo.inQuarantineMode`, since API 6.5.
pub static QUARANTINE_MODE: MetricDef =
    state("esxi.host.quarantine_mode", "1 while the host is in quarantine mode, else 0.", HOST);
/// `HostListSummary.rebootRequired`.
pub static REBOOT_REQUIRED: MetricDef =
    state("esxi.host.reboot_required", "1 while the host waits for a reboot, else 0.", HOST);
/// `HostRuntimeInfo.bootTime`.
pub static BOOT_TIME: MetricDef = MetricDef {
    name: "esxi.host.boot.timestamp",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    cadence: Cadence::OnChange,
    help: "When the host was booted, seconds of unix time.",
    attributes: HOST,
};

/// Every metric of this collector.
pub static METRICS: super::Metrics = &[
    &OVERALL_STATUS,
    &INFO,
    &CONNECTION_STATE,
    &POWER_STATE,
    &MAINTENANCE_MODE,
    &QUARANTINE_MODE,
    &REBOOT_REQUIRED,
    &BOOT_TIME,
];

/// Leaves only: a whole `runtime` or `summary` is 40 KB a host.
const PROPERTIES: &[&str] = &[
    "name",
    "parent",
    "overallStatus",
    "runtime.connectionState",
    "runtime.powerState",
    "runtime.inMaintenanceMode",
    "runtime.inQuarantineMode",
    "runtime.bootTime",
    "summary.rebootRequired",
    "summary.config.product.version",
    "summary.config.product.build",
    "summary.hardware.model",
];

/// `HostSystemConnectionState`.
const CONNECTION_STATES: &[&str] = &["connected", "disconnected", "notResponding"];
/// `HostSystemPowerState`.
const POWER_STATES: &[&str] = &["poweredOn", "poweredOff", "standBy", "unknown"];

/// Deepest tree that is walked up, against a loop of parents.
const MAX_DEPTH: usize = 64;
/// Most things that are said once each.
const MAX_SAID: usize = 1000;

/// The overall state collector.
#[derive(Debug)]
pub struct OverallState {
    interval: Duration,
    stale_after: Duration,
    /// What was said already, so that it is said once and not at each poll.
    said: Mutex<HashSet<String>>,
}

impl OverallState {
    /// The collector with its configuration.
    pub fn new(config: &OverallStateConfig) -> Self {
        Self { interval: config.interval, stale_after: config.stale_after, said: Mutex::default() }
    }

    fn say_once(&self, line: String) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() < MAX_SAID && !said.contains(&line) {
            tracing::warn!("{line}");
            said.insert(line);
        }
    }

    /// 2 green, 1 yellow, 0 red, -1 gray. What a later version may add is unknown, like gray.
    fn status(&self, vcenter: &Vcenter, status: &str) -> f64 {
        match status {
            "green" => 2.0,
            "yellow" => 1.0,
            "red" => 0.0,
            "gray" => -1.0,
            other => {
                self.say_once(format!(
                    "vCenter {}: unknown overallStatus {:?}, reported as -1",
                    vcenter.address,
                    shown(other)
                ));
                -1.0
            }
        }
    }

    /// One series for each known state. A state that nobody knows is `unknown` where there is such a one,
    /// or else all of them are 0.
    fn states(
        &self,
        samples: &mut Vec<Sample>,
        vcenter: &Vcenter,
        (def, known): (&'static MetricDef, &'static [&'static str]),
        attributes: &Attributes,
        current: &str,
    ) {
        let mut current = current;
        if !known.contains(&current) {
            let shown = shown(current);
            self.say_once(format!("vCenter {}: unknown state {shown:?} for {}", vcenter.address, def.name));
            current = "unknown";
        }
        for state in known {
            let value = if *state == current { 1.0 } else { 0.0 };
            samples.push(Sample::new(def, attributes.with("state", *state), value));
        }
    }

    fn host(
        &self,
        vcenter: &Vcenter,
        host: &ManagedObject,
        name: &str,
        tree: &Tree<'_>,
        inventory: &Inventory,
    ) -> Vec<Sample> {
        let mut samples = Vec::with_capacity(16);
        let own: Attributes = Attributes::new([
            ("vcenter", Arc::clone(&vcenter.address)),
            ("site", Arc::clone(&vcenter.site)),
            ("hostsystem", Arc::from(name)),
        ]);
        if let Some(status) = host.text("overallStatus") {
            samples.push(Sample::new(&OVERALL_STATUS, own.clone(), self.status(vcenter, status)));
        }
        let attributes = match inventory.match_host(name, &vcenter.site, None) {
            Some(known) => own.with("address", Arc::clone(&known.address)),
            None => own,
        };
        samples.push(Sample::new(&INFO, tree.info(host, &attributes), 1.0));
        if let Some(state) = host.text("runtime.connectionState") {
            self.states(&mut samples, vcenter, (&CONNECTION_STATE, CONNECTION_STATES), &attributes, state);
        }
        if let Some(state) = host.text("runtime.powerState") {
            self.states(&mut samples, vcenter, (&POWER_STATE, POWER_STATES), &attributes, state);
        }
        for (def, property) in [
            (&MAINTENANCE_MODE, "runtime.inMaintenanceMode"),
            (&QUARANTINE_MODE, "runtime.inQuarantineMode"),
            (&REBOOT_REQUIRED, "summary.rebootRequired"),
        ] {
            if let Some(flag) = host.flag(property) {
                samples.push(Sample::new(def, attributes.clone(), f64::from(u8::from(flag))));
            }
        }
        if let Some(time) = host.time("runtime.bootTime") {
            samples.push(Sample::new(&BOOT_TIME, attributes, time));
        }
        samples
    }
}

impl VcenterCollector for OverallState {
    fn name(&self) -> &'static str {
        "overall_state"
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    fn stale_after(&self) -> Duration {
        self.stale_after
    }

    fn host_properties(&self) -> &'static [&'static str] {
        PROPERTIES
    }

    fn read(&self, answer: &VcenterAnswer<'_>) -> Vec<Reading> {
        let vcenter = answer.vcenter;
        let tree = Tree::new(answer.tree);
        let mut names = HashSet::new();
        let mut readings = Vec::new();
        for host in answer.hosts {
            let Some(name) = host.name() else {
                self.say_once(format!(
                    "vCenter {}: {} has no readable name, left out",
                    vcenter.address, host.id
                ));
                continue;
            };
            // Two series with the same attributes would make the whole page invalid for Prometheus.
            if names.contains(&name) {
                let name = shown(&name);
                self.say_once(format!("vCenter {}: a second host {name:?}, left out", vcenter.address));
                continue;
            }
            let samples = self.host(vcenter, host, &name, &tree, answer.inventory);
            names.insert(name);
            readings.push(Reading { part: Arc::clone(&host.id), samples });
        }
        readings
    }
}

/// The objects by identity, for walking up.
struct Tree<'a>(HashMap<(&'a str, &'a str), &'a ManagedObject>);

impl<'a> Tree<'a> {
    fn new(objects: &'a [ManagedObject]) -> Self {
        Self(objects.iter().map(|object| ((&*object.kind, &*object.id), object)).collect())
    }

    fn above(&self, reference: Option<&Reference>) -> Option<&'a ManagedObject> {
        let reference = reference?;
        self.0.get(&(&*reference.kind, &*reference.id)).copied()
    }

    /// The attributes of [`INFO`]: what is not known is left out. A host of its own stands below a
    /// ComputeResource that is no cluster.
    fn info(&self, host: &ManagedObject, attributes: &Attributes) -> Attributes {
        let mut pairs: Vec<(Cow<'static, str>, Arc<str>)> = attributes.pairs().to_vec();
        let mut at = self.above(host.parent());
        for _ in 0..MAX_DEPTH {
            let Some(object) = at else { break };
            let key = match &*object.kind {
                "ClusterComputeResource" => Some("cluster"),
                "Datacenter" => Some("datacenter"),
                _ => None,
            };
            if let (Some(key), Some(name)) = (key, object.text("name")) {
                pairs.push((key.into(), entity_name(name).into()));
            }
            if key == Some("datacenter") {
                break;
            }
            at = self.above(object.parent());
        }
        for (key, property) in [
            ("version", "summary.config.product.version"),
            ("build", "summary.config.product.build"),
            ("model", "summary.hardware.model"),
        ] {
            if let Some(text) = host.text(property).filter(|text| !text.trim().is_empty()) {
                pairs.push((key.into(), text.trim().into()));
            }
        }
        Attributes::new(pairs)
    }
}

/// A peer's word in a log line: not more than a line's worth of it.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
#[path = "overall_state_tests.rs"]
mod tests;
