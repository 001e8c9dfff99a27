//! What one round found, as a table or as JSON.

use crate::inventory::Inventory;
use crate::metric::Sample;
use crate::outcome::Failure;
use crate::readings::{Readings, TargetStatus};
use comfy_table::{LineStyle, Table, TableStyle, presets};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The whole report.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Hosts visited by SSH.
    pub hosts: Vec<HostRow>,
    /// vCenters polled by SOAP.
    pub vcenters: Vec<VcenterRow>,
}

/// One host.
#[derive(Debug, Serialize)]
pub struct HostRow {
    /// Its address.
    pub hostsystem: String,
    /// Its site.
    pub site: String,
    /// How the visit ended.
    #[serde(flatten)]
    pub outcome: OutcomeRow,
    /// Each service, by its reported name: `running`, `stopped`, or the reason why that is not known.
    pub services: BTreeMap<String, String>,
}

/// One vCenter.
#[derive(Debug, Serialize)]
pub struct VcenterRow {
    /// Its address.
    pub vcenter: String,
    /// Its site.
    pub site: String,
    /// How the poll ended.
    #[serde(flatten)]
    pub outcome: OutcomeRow,
    /// Its hosts, by the name that it gives them.
    pub hosts: BTreeMap<String, HostState>,
}

/// How a visit or poll ended.
#[derive(Debug, Serialize)]
pub struct OutcomeRow {
    /// Whether it succeeded.
    pub up: bool,
    /// How long it took.
    pub seconds: f64,
    /// The word for the failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The failure in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What a vCenter says of a host.
#[derive(Debug, Default, Serialize)]
pub struct HostState {
    /// green, yellow, red, gray.
    pub overall_status: &'static str,
    /// connected, disconnected, notResponding.
    pub connection_state: String,
    /// Whether it is in maintenance mode.
    pub maintenance_mode: bool,
}

impl Report {
    /// What the readings say of everybody in the inventory. `hosts` and `vcenters` tell who was asked.
    pub fn of(inventory: &Inventory, readings: &Readings, hosts: bool, vcenters: bool) -> Self {
        let host = |host: &std::sync::Arc<crate::inventory::Host>| HostRow {
            hostsystem: host.address.to_string(),
            site: host.site.to_string(),
            outcome: OutcomeRow::of(readings.status(&host.id())),
            services: services(readings.of_target(&host.id()).iter()),
        };
        let vcenter = |vcenter: &std::sync::Arc<crate::inventory::Vcenter>| VcenterRow {
            vcenter: vcenter.address.to_string(),
            site: vcenter.site.to_string(),
            outcome: OutcomeRow::of(readings.status(&vcenter.id())),
            hosts: host_states(&readings.of_target(&vcenter.id())),
        };
        Self {
            hosts: inventory.hosts.iter().filter(|_| hosts).map(host).collect(),
            vcenters: inventory.vcenters.iter().filter(|_| vcenters).map(vcenter).collect(),
        }
    }

    /// How many visits and polls failed.
    pub fn failed(&self) -> usize {
        let hosts = self.hosts.iter().filter(|row| !row.outcome.up).count();
        hosts + self.vcenters.iter().filter(|row| !row.outcome.up).count()
    }

    /// For people. Services are columns; failures are told below the table, each in one line.
    pub fn to_table(&self) -> String {
        let mut text = String::new();
        if !self.hosts.is_empty() {
            let names: BTreeSet<&String> = self.hosts.iter().flat_map(|row| row.services.keys()).collect();
            let mut table = table();
            let head = ["host", "site", "ssh"].map(str::to_owned).into_iter();
            table.set_header(head.chain(names.iter().map(|name| (*name).clone())).chain(["took".to_owned()]));
            for row in &self.hosts {
                let services = names.iter().map(|name| row.services.get(*name).map_or("", String::as_str));
                let cells = [row.hostsystem.as_str(), row.site.as_str(), row.outcome.word()];
                let took = format!("{:.2} s", row.outcome.seconds);
                table.add_row(cells.into_iter().chain(services).chain([took.as_str()]));
            }
            let _ = writeln!(text, "{}", table.trim_fmt());
        }
        if self.vcenters.iter().any(|row| !row.hosts.is_empty()) {
            let mut table = table();
            table.set_header(["vCenter", "host", "overall status", "connection", "maintenance"]);
            for (vcenter, (host, state)) in
                self.vcenters.iter().flat_map(|v| v.hosts.iter().map(move |h| (v, h)))
            {
                let maintenance = if state.maintenance_mode { "yes" } else { "" };
                let cells =
                    [&vcenter.vcenter, host, state.overall_status, &state.connection_state, maintenance];
                table.add_row(cells);
            }
            let _ = writeln!(text, "{}", table.trim_fmt());
        }
        if !self.vcenters.is_empty() {
            let mut table = table();
            table.set_header(["vCenter", "site", "soap", "hosts", "took"]);
            for row in &self.vcenters {
                let (hosts, took) = (row.hosts.len().to_string(), format!("{:.2} s", row.outcome.seconds));
                table.add_row([&row.vcenter, &row.site, row.outcome.word(), &hosts, &took]);
            }
            let _ = writeln!(text, "{}", table.trim_fmt());
        }
        for message in self.failures() {
            let _ = writeln!(text, "{message}");
        }
        let (hosts, vcenters, failed) = (self.hosts.len(), self.vcenters.len(), self.failed());
        let not_asked = self.outcomes().filter(|outcome| !outcome.was_asked()).count();
        let not_asked =
            if not_asked > 0 { format!(", {not_asked} of them not asked") } else { String::new() };
        let _ = writeln!(text, "{hosts} hosts and {vcenters} vCenters, {failed} failed{not_asked}");
        text
    }

    fn outcomes(&self) -> impl Iterator<Item = &OutcomeRow> {
        let vcenters = self.vcenters.iter().map(|row| &row.outcome);
        self.hosts.iter().map(|row| &row.outcome).chain(vcenters)
    }

    fn failures(&self) -> impl Iterator<Item = &String> {
        let asked = self.outcomes().filter(|outcome| outcome.was_asked());
        asked.filter_map(|outcome| outcome.message.as_ref())
    }
}

impl OutcomeRow {
    /// Of something that took `seconds`.
    pub(super) fn new(failure: Option<&Failure>, seconds: f64) -> Self {
        let (reason, message) = failure.map(|f| (f.reason.word(), f.message.clone())).unzip();
        Self { up: failure.is_none(), seconds, reason, message }
    }

    fn of(status: Option<TargetStatus>) -> Self {
        let Some(status) = status else {
            let message = Some("not asked".to_owned());
            return Self { up: false, seconds: 0.0, reason: None, message };
        };
        Self::new(status.failure.as_ref(), status.duration.as_secs_f64())
    }

    /// Not if the round was stopped before.
    fn was_asked(&self) -> bool {
        self.up || self.reason.is_some()
    }

    pub(super) fn word(&self) -> &str {
        if self.up { "ok" } else { self.reason.unwrap_or("not asked") }
    }
}

/// The same without lines between the rows, for those that are many and short.
pub(super) fn dense_table() -> Table {
    let line = |fill| LineStyle::none().fill(fill).junction(fill);
    let mut table = Table::new();
    table.load_style(
        TableStyle::new().top_border(line('─')).header_separator(line('═')).bottom_border(line('─')),
    );
    table
}

fn table() -> Table {
    let mut table = Table::new();
    // Without lines between the rows: twice as many hosts on the screen.
    table.load_style(presets::NOTHING.header_separator(LineStyle::none().fill('─').junction('─')));
    table
}

/// What each service answered: `running`, `stopped`, or why that is not known.
pub(super) fn services<'a>(samples: impl Iterator<Item = &'a Sample> + Clone) -> BTreeMap<String, String> {
    let mut services = BTreeMap::new();
    for sample in samples.clone().filter(|sample| sample.def.name == "esxi.critical_service.status") {
        let state = if sample.value == 1.0 { "running" } else { "stopped" };
        services.insert(sample.attributes.get("service").unwrap_or_default().to_owned(), state.to_owned());
    }
    // A problem says more than the status beside it, which may be an older one.
    for sample in samples.filter(|sample| sample.def.name == "esxi.critical_service.problem") {
        let reason = sample.attributes.get("reason").unwrap_or_default().to_owned();
        services.insert(sample.attributes.get("service").unwrap_or_default().to_owned(), reason);
    }
    services
}

fn host_states(samples: &[Sample]) -> BTreeMap<String, HostState> {
    let mut hosts: BTreeMap<String, HostState> = BTreeMap::new();
    for sample in samples {
        let Some(host) = sample.attributes.get("hostsystem") else { continue };
        let state = hosts.entry(host.to_owned()).or_default();
        match sample.def.name {
            "esxi.overall_status" => {
                state.overall_status = match sample.value {
                    2.0 => "green",
                    1.0 => "yellow",
                    0.0 => "red",
                    _ => "gray",
                }
            }
            "esxi.host.connection_state" if sample.value == 1.0 => {
                state.connection_state = sample.attributes.get("state").unwrap_or_default().to_owned();
            }
            "esxi.host.maintenance_mode" => state.maintenance_mode = sample.value == 1.0,
            _ => {}
        }
    }
    hosts
}
