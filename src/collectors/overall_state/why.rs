//! Why a host is not green: triggered alarms and configuration issues.

use super::series::label;
use super::{ALARM, ALARM_ACKNOWLEDGED};
use crate::collectors::Lookup;
use crate::metric::{Attributes, Sample};
use crate::vim::model::{Item, ManagedObject};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Most alarms and most issues of one host.
const MOST: usize = 100;

/// The alarms of the host itself. What is triggered below an entity is listed there, too
/// (`ManagedEntity.triggeredAlarmState`), and is no news of this one.
fn own_alarms(host: &ManagedObject) -> impl Iterator<Item = (&Arc<str>, &Item)> {
    let own = host.items("triggeredAlarmState").iter().filter(|state| state.get("entity") == Some(&host.id));
    own.filter_map(|state| Some((state.get("alarm")?, state)))
}

/// The alarms whose names are needed.
pub(super) fn lookup(hosts: &[ManagedObject]) -> Option<Lookup> {
    let ids: BTreeSet<Arc<str>> =
        hosts.iter().flat_map(own_alarms).map(|(alarm, _)| Arc::clone(alarm)).collect();
    (!ids.is_empty()).then_some(Lookup { kind: "Alarm", property: "info.name", ids })
}

/// Adds the host's alarms. Two alarms may have one name: they are one series for each severity, which is
/// acknowledged when both are.
pub(super) fn add_alarms(
    samples: &mut Vec<Sample>,
    host: &ManagedObject,
    own: &Attributes,
    names: &HashMap<Arc<str>, Arc<str>>,
) {
    let mut alarms: BTreeMap<Arc<str>, (BTreeSet<Arc<str>>, bool)> = BTreeMap::new();
    for (alarm, state) in own_alarms(host) {
        let severity = state.get("overallStatus").map_or("", |severity| &**severity);
        if severity == "green" {
            continue;
        }
        let name = label(names.get(alarm).unwrap_or(alarm));
        if alarms.len() >= MOST && !alarms.contains_key(&name) {
            continue;
        }
        let (severities, all_acknowledged) = alarms.entry(name).or_insert_with(|| (BTreeSet::new(), true));
        severities.insert(label(severity));
        *all_acknowledged &=
            state.get("acknowledged").is_some_and(|text| &**text == "true" || &**text == "1");
    }
    for (name, (severities, acknowledged)) in alarms {
        let attributes = own.with("alarm", name);
        for severity in severities {
            samples.push(Sample::new(&ALARM, attributes.with("severity", severity), 1.0));
        }
        samples.push(Sample::new(&ALARM_ACKNOWLEDGED, attributes, f64::from(u8::from(acknowledged))));
    }
}

/// The host's configuration issues: what kind of event each is, and its message. Events of the kinds that
/// came after the API was made are `EventEx` and `ExtendedEvent`, which carry their own identifier.
pub(super) fn issues(host: &ManagedObject) -> BTreeMap<Arc<str>, Option<&Arc<str>>> {
    let mut issues = BTreeMap::new();
    for event in host.items("configIssue").iter().take(MOST) {
        let own = event.get("eventTypeId").filter(|id| !id.is_empty());
        let kind = own.unwrap_or(if event.kind.is_empty() { &event.name } else { &event.kind });
        issues.insert(label(kind), event.get("fullFormattedMessage"));
    }
    issues
}
