//! Reads one vCenter's answers.

use super::join::{Candidate, Found, Shared};
use super::series::{CONNECTION_STATES, Facts, POWER_STATES, Series, Tree, label};
use super::{
    ADDRESSES, BOOT_TIME, CONFIG_ISSUE, CONNECTION_STATE, HARDWARE, INFO, MAINTENANCE_MODE, OVERALL_STATUS,
    POWER_STATE, QUARANTINE_MODE, REBOOT_REQUIRED, SENSORS, SERVICES, details, why,
};
use crate::collectors::{Detail, Lookup, VcenterAnswer, VcenterReader, Want};
use crate::inventory::{Inventory, Vcenter};
use crate::metric::{Attributes, MetricDef, Sample};
use crate::readings::Reading;
use crate::vim::management;
use crate::vim::model::{ManagedObject, entity_name};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Most things that are said once each.
const MAX_SAID: usize = 1000;

/// What is remembered of a vCenter between its answers.
#[derive(Debug, Default)]
pub(super) struct Reader {
    hosts: HashMap<Arc<str>, Known>,
    /// Who has an address of the inventory for himself.
    shared: Shared,
    /// What was said already, so that it is said once and not at each poll.
    said: HashSet<String>,
}

/// What is remembered of a host.
#[derive(Debug)]
struct Known {
    /// Its name as it came.
    raw: Arc<str>,
    name: Arc<str>,
    /// What the inventory says of it, and which address it has by that.
    found: Found,
    address: Option<Arc<str>>,
    /// By which addresses it is managed, where that was asked.
    management: Vec<IpAddr>,
    series: Series,
    issues: BTreeSet<Arc<str>>,
    /// Another host has the same name.
    is_left_out: bool,
    /// It was not in any answer before.
    is_new: bool,
    /// Its series are others than at the answer before: details that carry the old ones have to end.
    has_changed: bool,
}

impl Known {
    fn new(vcenter: &Vcenter, raw: &Arc<str>) -> Self {
        let name = label(&entity_name(raw));
        let series = Series::new(vcenter, &name, None);
        Self {
            raw: Arc::clone(raw),
            name,
            found: Found::default(),
            address: None,
            management: Vec::new(),
            series,
            issues: BTreeSet::new(),
            is_left_out: false,
            is_new: true,
            has_changed: false,
        }
    }

    /// Gives it the address that was found for it, unless others could have that.
    fn join(&mut self, vcenter: &Vcenter, id: &str, shared: &Shared) {
        let address = shared.address(id, &self.found);
        if address != self.address.as_ref() {
            self.series = Series::new(vcenter, &self.name, address);
            self.address = address.cloned();
            self.has_changed = true;
        }
        self.has_changed &= !self.is_new;
    }
}

impl Reader {
    fn say_once(&mut self, line: String) {
        if self.said.len() < MAX_SAID && !self.said.contains(&line) {
            tracing::warn!("{line}");
            self.said.insert(line);
        }
    }

    /// What is remembered of a host, brought up to date; `None`: it has no readable name.
    fn know(&mut self, answer: &VcenterAnswer<'_>, host: &ManagedObject) -> Option<&mut Known> {
        let vcenter = answer.vcenter;
        let Some(raw) = host.text("name").filter(|name| !name.is_empty()) else {
            self.say_once(format!("vCenter {}: {} has no readable name, left out", vcenter.address, host.id));
            return None;
        };
        let is_new = !self.hosts.contains_key(&host.id);
        let known = self.hosts.entry(Arc::clone(&host.id)).or_insert_with(|| Known::new(vcenter, raw));
        known.has_changed = known.raw != *raw;
        if known.has_changed {
            let management = std::mem::take(&mut known.management);
            *known = Known { management, has_changed: true, ..Known::new(vcenter, raw) };
        }
        known.is_new = is_new;
        known.found = Found::look(&known.name, &known.management, vcenter, answer.inventory);
        Some(known)
    }

    fn host(&mut self, answer: &VcenterAnswer<'_>, host: &ManagedObject, facts: Facts) -> Vec<Sample> {
        let mut samples = Vec::with_capacity(16);
        let Some(known) = self.hosts.get_mut(&host.id) else { return samples };
        let mut odd = Vec::new();
        let series = &mut known.series;
        if let Some(word) = host.text("overallStatus") {
            let value = status(word).unwrap_or_else(|| {
                odd.push(format!("unknown overallStatus {:?}, reported as -1", shown(word)));
                -1.0
            });
            samples.push(Sample::new(&OVERALL_STATUS, series.status.clone(), value));
        }
        samples.push(Sample::new(&INFO, series.info(facts), 1.0));
        for (def, property, states, attributes) in [
            (&CONNECTION_STATE, "runtime.connectionState", &CONNECTION_STATES[..], &series.connection[..]),
            (&POWER_STATE, "runtime.powerState", &POWER_STATES[..], &series.power[..]),
        ] {
            let Some(current) = host.text(property) else { continue };
            if !add_states(&mut samples, def, states, attributes, current) {
                odd.push(format!("unknown state {:?} for {}", shown(current), def.name));
            }
        }
        for (def, property) in [
            (&MAINTENANCE_MODE, "runtime.inMaintenanceMode"),
            (&QUARANTINE_MODE, "runtime.inQuarantineMode"),
            (&REBOOT_REQUIRED, "summary.rebootRequired"),
        ] {
            if let Some(flag) = host.flag(property) {
                samples.push(Sample::new(def, series.own.clone(), f64::from(u8::from(flag))));
            }
        }
        if let Some(time) = host.time("runtime.bootTime") {
            samples.push(Sample::new(&BOOT_TIME, series.own.clone(), time));
        }
        why::add_alarms(&mut samples, host, &series.own, answer.texts);
        add_issues(&mut samples, answer.vcenter, host, known);
        for line in odd {
            self.say_once(format!("vCenter {}: {line}", answer.vcenter.address));
        }
        samples
    }
}

impl VcenterReader for Reader {
    fn lookup(&self, hosts: &[ManagedObject]) -> Option<Lookup> {
        why::lookup(hosts)
    }

    fn read(&mut self, answer: &VcenterAnswer<'_>) -> Vec<Reading> {
        let mut names: HashSet<Arc<str>> = HashSet::with_capacity(answer.hosts.len());
        let mut named = Vec::with_capacity(answer.hosts.len());
        for host in answer.hosts {
            let Some(known) = self.know(answer, host) else { continue };
            // Two series with the same attributes would make the whole page invalid for Prometheus.
            known.is_left_out = !names.insert(Arc::clone(&known.name));
            if known.is_left_out {
                let (vcenter, name) = (&answer.vcenter.address, shown(&known.name));
                self.say_once(format!("vCenter {vcenter}: a second host {name:?}, left out"));
                continue;
            }
            named.push(host);
        }
        if answer.is_whole {
            let present: HashSet<&Arc<str>> = answer.hosts.iter().map(|host| &host.id).collect();
            self.hosts.retain(|id, _| present.contains(id));
            let of_answer = named.iter().filter_map(|host| {
                let known = self.hosts.get(&host.id)?;
                Some(Candidate { id: &host.id, name: &known.name, found: &known.found })
            });
            self.shared.compare(answer.vcenter, of_answer);
        }
        let mut tree = Tree::new(answer.tree);
        let mut readings = Vec::with_capacity(named.len());
        for host in named {
            if let Some(known) = self.hosts.get_mut(&host.id) {
                known.join(answer.vcenter, &host.id, &self.shared);
            }
            let samples = self.host(answer, host, Facts::new(host, tree.place(host)));
            readings.push(Reading { part: Arc::clone(&host.id), samples });
        }
        readings
    }

    /// What a host that is away or switched off said last is no news.
    fn wants(&self, detail: &Detail, host: &ManagedObject, inventory: &Inventory) -> Want {
        let is = |property, word| host.text(property).is_some_and(|text| &**text == word);
        let Some(known) = self.hosts.get(&host.id) else { return Want::No };
        if known.is_left_out || known.has_changed && *detail != ADDRESSES {
            return Want::No;
        }
        if !is("runtime.connectionState", "connected") || !is("runtime.powerState", "poweredOn") {
            return Want::No;
        }
        let is_green = is("overallStatus", "green");
        match detail {
            _ if *detail == SENSORS && is_green => Want::No,
            _ if *detail == ADDRESSES && (known.found.is_by_name || !inventory.has_ip_addresses()) => {
                Want::No
            }
            _ if *detail == ADDRESSES || is_green => Want::Yes,
            _ => Want::Soon,
        }
    }

    fn read_detail(&mut self, detail: &Detail, answer: &VcenterAnswer<'_>) -> Vec<Reading> {
        let mut readings = Vec::new();
        for host in answer.hosts {
            let Some(known) = self.hosts.get_mut(&host.id) else { continue };
            let own = &known.series.own;
            let samples = match detail {
                _ if *detail == HARDWARE => details::hardware(host, own),
                _ if *detail == SENSORS => details::sensors(host, own),
                _ if *detail == SERVICES => details::services(host, own),
                _ => {
                    // The next poll's series have the address.
                    known.management = management::addresses(host);
                    continue;
                }
            };
            readings.push(Reading { part: detail.part(&host.id), samples });
        }
        readings
    }
}

/// 2 green, 1 yellow, 0 red, -1 gray. What a later version may add is unknown, like gray.
fn status(word: &str) -> Option<f64> {
    match word {
        "green" => Some(2.0),
        "yellow" => Some(1.0),
        "red" => Some(0.0),
        "gray" => Some(-1.0),
        _ => None,
    }
}

/// One series for each known state. A state that nobody knows is `unknown` where there is such a one, or
/// else all of them are 0. Whether it is known.
fn add_states(
    samples: &mut Vec<Sample>,
    def: &'static MetricDef,
    states: &[&str],
    attributes: &[Attributes],
    current: &str,
) -> bool {
    let is_known = states.contains(&current);
    let current = if is_known { current } else { "unknown" };
    for (state, attributes) in states.iter().zip(attributes) {
        let value = f64::from(u8::from(*state == current));
        samples.push(Sample::new(def, attributes.clone(), value));
    }
    is_known
}

/// The message of an issue is for the log: it may hold anything, and is another one each time.
fn add_issues(samples: &mut Vec<Sample>, vcenter: &Vcenter, host: &ManagedObject, known: &mut Known) {
    let issues = why::issues(host);
    for (issue, message) in &issues {
        if !known.issues.contains(issue) {
            let message: String = message.map(|text| text.chars().take(1000).collect()).unwrap_or_default();
            tracing::info!(
                vcenter = %vcenter.address, hostsystem = %known.name, issue = %issue,
                "{} has a configuration issue: {message:?}", known.name
            );
        }
        samples.push(Sample::new(&CONFIG_ISSUE, known.series.own.with("issue", Arc::clone(issue)), 1.0));
    }
    known.issues = issues.into_keys().collect();
}

/// A peer's word in a log line: not more than a line's worth of it.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}
