//! What a vCenter says of its hosts: overall status and why it is what it is, connection, power,
//! maintenance, what they are.
//!
//! Alarms and configuration issues come with each poll. Hardware, sensors and services are details: large,
//! and slow to change.

mod details;
mod join;
mod reader;
mod series;
mod why;

use super::{Detail, VcenterCollector, VcenterReader};
use crate::config::OverallStateConfig;
use crate::metric::{Cadence, Kind, MetricDef, Unit};
use crate::vim::management::NET_CONFIG;
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

/// `HostSystem.triggeredAlarmState`.
pub static ALARM: MetricDef = state(
    "esxi.host.alarm",
    "1 while the alarm of that name is triggered on the host itself; severity is red or yellow.",
    &["address", "alarm", "hostsystem", "severity", "site", "vcenter"],
);
/// `AlarmState.acknowledged`.
pub static ALARM_ACKNOWLEDGED: MetricDef = state(
    "esxi.host.alarm.acknowledged",
    "Whether somebody has acknowledged the triggered alarm: 1 or 0.",
    &["address", "alarm", "hostsystem", "site", "vcenter"],
);
/// `HostSystem.configIssue`.
pub static CONFIG_ISSUE: MetricDef = state(
    "esxi.host.config_issue",
    "1 while the vCenter sees the issue in the host's configuration; issue is the event type's identifier.",
    &["address", "hostsystem", "issue", "site", "vcenter"],
);
/// `HostHardwareStatusInfo`, and `HostNumericSensorInfo` where it was asked for.
pub static HARDWARE_HEALTH: MetricDef = state(
    "esxi.host.hardware.health",
    "1 for each component that is yellow or red; kind is cpu, memory, storage, or a sensor's type and _sensor.",
    &["address", "component", "hostsystem", "kind", "site", "state", "vcenter"],
);
/// `HostService.running`.
pub static SERVICE_RUNNING: MetricDef = state(
    "esxi.host.service.running",
    "What the vCenter says of the host's own services: 1 running, 0 not; policy is on, off or automatic.",
    &["address", "hostsystem", "policy", "service", "site", "vcenter"],
);

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
    &ALARM,
    &ALARM_ACKNOWLEDGED,
    &CONFIG_ISSUE,
    &HARDWARE_HEALTH,
    &SERVICE_RUNNING,
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
    "triggeredAlarmState",
    "configIssue",
];

/// Pause between two readings of what is large and slow to change.
const SLOW: Duration = Duration::from_secs(600);

/// Summary of the hardware: 0.7 KB a host and more.
const HARDWARE: Detail = Detail {
    name: "hardware",
    properties: &["runtime.healthSystemRuntime.hardwareStatusInfo"],
    every: SLOW,
    most_hosts: 1000,
};
/// Every sensor: 37 KB a host, so of hosts that are not green alone.
const SENSORS: Detail = Detail {
    name: "sensors",
    properties: &["runtime.healthSystemRuntime.systemHealthInfo.numericSensorInfo"],
    every: SLOW,
    most_hosts: 50,
};
/// 4.5 KB a host.
const SERVICES: Detail =
    Detail { name: "services", properties: &["config.service.service"], every: SLOW, most_hosts: 500 };
/// Which address the host is managed by: no small property tells, so it is asked of those hosts alone that
/// the inventory does not know by name.
const ADDRESSES: Detail =
    Detail { name: "addresses", properties: &[NET_CONFIG], every: SLOW, most_hosts: 100 };

/// The overall state collector.
#[derive(Debug)]
pub struct OverallState {
    interval: Duration,
    stale_after: Duration,
    details: Vec<Detail>,
}

impl OverallState {
    /// The collector with its configuration.
    pub fn new(config: &OverallStateConfig) -> Self {
        let report = &config.report;
        let details = [
            (report.hardware, HARDWARE),
            (report.sensors, SENSORS),
            (report.services, SERVICES),
            (true, ADDRESSES),
        ];
        Self {
            interval: config.interval,
            stale_after: config.stale_after,
            details: details.into_iter().filter(|(on, _)| *on).map(|(_, detail)| detail).collect(),
        }
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

    fn details(&self) -> &[Detail] {
        &self.details
    }

    fn reader(&self) -> Box<dyn VcenterReader> {
        Box::new(reader::Reader::default())
    }
}

#[cfg(test)]
mod tests;
