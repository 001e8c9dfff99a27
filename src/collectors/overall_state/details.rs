//! Hardware, sensors and services: what is asked more rarely.

use super::series::label;
use super::{HARDWARE, HARDWARE_HEALTH, SENSORS, SERVICE_RUNNING, SERVICES};
use crate::metric::{Attributes, Sample};
use crate::vim::model::{Item, ManagedObject};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Most components, and most services, of one host.
const MOST: usize = 200;

/// What is not well: kind, component, state.
type Component = (Arc<str>, Arc<str>, Arc<str>);

/// `HostHardwareElementInfo`s of processors, memory and storage.
pub(super) fn hardware(host: &ManagedObject, own: &Attributes) -> Vec<Sample> {
    components(host, HARDWARE.properties, own, |element| {
        let kind = element.name.strip_suffix("StatusInfo")?;
        Some((kind.into(), element.get("name")?, element.get("status.key")?))
    })
}

/// `HostNumericSensorInfo`s. Their names end in what they say at the moment, as in `Fan 1 --- Normal`, which
/// would make a new series of each change.
pub(super) fn sensors(host: &ManagedObject, own: &Attributes) -> Vec<Sample> {
    components(host, SENSORS.properties, own, |sensor| {
        let kind = sensor.get("sensorType").map_or("other", |kind| &**kind);
        let kind = format!("{}_sensor", kind.to_ascii_lowercase().replace(char::is_whitespace, "_"));
        Some((label(&kind), sensor.get("name")?, sensor.get("healthState.key")?))
    })
}

/// Components that are yellow or red. One that is `unknown` has no sensor, as nearly all of some servers
/// have none: that is no finding.
fn components<'a>(
    host: &'a ManagedObject,
    properties: &[&str],
    own: &Attributes,
    read: impl Fn(&'a Item) -> Option<(Arc<str>, &'a Arc<str>, &'a Arc<str>)>,
) -> Vec<Sample> {
    let items = properties.iter().flat_map(|property| host.items(property));
    let found = items.filter_map(read).filter_map(|(kind, name, state)| -> Option<Component> {
        let state = state.to_ascii_lowercase();
        let name = name.split(" --- ").next().unwrap_or_default().trim();
        matches!(&*state, "yellow" | "red").then(|| (kind, label(name), state.into()))
    });
    let found: BTreeSet<Component> = found.take(MOST).collect();
    let sample = |(kind, component, state)| {
        let attributes = own.pairs().iter().cloned();
        let more = [("kind", kind), ("component", component), ("state", state)];
        let more = more.map(|(key, value): (&'static str, Arc<str>)| (key.into(), value));
        Sample::new(&HARDWARE_HEALTH, Attributes::new(attributes.chain(more)), 1.0)
    };
    found.into_iter().map(sample).collect()
}

/// `HostService`s: what is not listed is not there, and not stopped.
pub(super) fn services(host: &ManagedObject, own: &Attributes) -> Vec<Sample> {
    let items = SERVICES.properties.iter().flat_map(|property| host.items(property)).take(MOST);
    let listed = items.filter_map(|service| {
        let policy = service.get("policy").map_or("", |policy| &**policy);
        Some((label(service.get("key")?), (label(policy), &**service.get("running")? == "true")))
    });
    let services: BTreeMap<Arc<str>, (Arc<str>, bool)> = listed.collect();
    let sample = |(service, (policy, running))| {
        let attributes = own.with("service", service).with("policy", policy);
        Sample::new(&SERVICE_RUNNING, attributes, f64::from(u8::from(running)))
    };
    services.into_iter().map(sample).collect()
}
