//! The attributes of a host's series, made once and shared by all polls while nothing in them changes: of
//! 5,000 hosts they would be the larger part of a poll's work and memory.

use crate::inventory::Vcenter;
use crate::metric::Attributes;
use crate::vim::model::{ManagedObject, Reference, entity_name};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

/// `HostSystemConnectionState`.
pub(super) const CONNECTION_STATES: [&str; 3] = ["connected", "disconnected", "notResponding"];
/// `HostSystemPowerState`.
pub(super) const POWER_STATES: [&str; 4] = ["poweredOn", "poweredOff", "standBy", "unknown"];

/// Deepest tree that is walked up, against a loop of parents.
const MAX_DEPTH: usize = 64;
/// Longest value of an attribute, characters. vSphere allows 80 for a name.
const MAX_LABEL: usize = 256;

/// A peer's text as the value of an attribute.
pub(super) fn label(text: &str) -> Arc<str> {
    match text.char_indices().nth(MAX_LABEL) {
        Some((end, _)) => text.get(..end).unwrap_or_default().into(),
        None => text.into(),
    }
}

/// The attributes of one host's series.
#[derive(Debug)]
pub(super) struct Series {
    /// Of the status alone, which is that of the Python exporter: without `address`.
    pub status: Attributes,
    /// Of all others.
    pub own: Attributes,
    pub connection: [Attributes; CONNECTION_STATES.len()],
    pub power: [Attributes; POWER_STATES.len()],
    /// What the host is, and its attributes.
    facts: Facts,
    info: Attributes,
}

impl Series {
    pub fn new(vcenter: &Vcenter, name: &Arc<str>, address: Option<&Arc<str>>) -> Self {
        let status = Attributes::new([
            ("vcenter", Arc::clone(&vcenter.address)),
            ("site", Arc::clone(&vcenter.site)),
            ("hostsystem", Arc::clone(name)),
        ]);
        let own = match address {
            Some(address) => status.with("address", Arc::clone(address)),
            None => status.clone(),
        };
        let with_state = |state| own.with("state", state);
        let (connection, power) = (CONNECTION_STATES.map(with_state), POWER_STATES.map(with_state));
        let (facts, info) = (Facts::default(), own.clone());
        Self { status, own, connection, power, facts, info }
    }

    /// The attributes of the series that tells what the host is.
    pub fn info(&mut self, facts: Facts) -> Attributes {
        if facts != self.facts {
            self.info = facts.with(&self.own);
            self.facts = facts;
        }
        self.info.clone()
    }
}

/// What a host is, as far as it is known.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Facts {
    place: Place,
    version: Option<Arc<str>>,
    build: Option<Arc<str>>,
    model: Option<Arc<str>>,
}

impl Facts {
    pub fn new(host: &ManagedObject, place: Place) -> Self {
        let text = |property| {
            let text: &Arc<str> = host.text(property)?;
            let trimmed = text.trim();
            let is_whole = trimmed.len() == text.len() && text.len() <= MAX_LABEL;
            (!trimmed.is_empty()).then(|| if is_whole { Arc::clone(text) } else { label(trimmed) })
        };
        Self {
            place,
            version: text("summary.config.product.version"),
            build: text("summary.config.product.build"),
            model: text("summary.hardware.model"),
        }
    }

    fn with(&self, own: &Attributes) -> Attributes {
        let facts = [
            ("cluster", &self.place.cluster),
            ("datacenter", &self.place.datacenter),
            ("version", &self.version),
            ("build", &self.build),
            ("model", &self.model),
        ];
        let facts =
            facts.into_iter().filter_map(|(key, value)| Some((Cow::from(key), Arc::clone(value.as_ref()?))));
        Attributes::new(own.pairs().iter().cloned().chain(facts))
    }
}

/// Where in the tree a host stands. What is not known is left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Place {
    cluster: Option<Arc<str>>,
    datacenter: Option<Arc<str>>,
}

/// What is above the hosts.
pub(super) struct Tree<'a> {
    objects: HashMap<(&'a str, &'a str), &'a ManagedObject>,
    /// Many hosts share one parent.
    places: HashMap<(&'a str, &'a str), Place>,
}

impl<'a> Tree<'a> {
    pub fn new(objects: &'a [ManagedObject]) -> Self {
        let objects = objects.iter().map(|object| ((&*object.kind, &*object.id), object)).collect();
        Self { objects, places: HashMap::new() }
    }

    pub fn place(&mut self, host: &'a ManagedObject) -> Place {
        let Some(parent) = host.parent() else { return Place::default() };
        let key = (&*parent.kind, &*parent.id);
        if let Some(known) = self.places.get(&key) {
            return known.clone();
        }
        let place = self.walk(parent);
        self.places.insert(key, place.clone());
        place
    }

    /// A host of its own stands below a ComputeResource that is no cluster.
    fn walk(&self, from: &Reference) -> Place {
        let mut place = Place::default();
        let above = |reference: &Reference| self.objects.get(&(&*reference.kind, &*reference.id)).copied();
        let mut at = above(from);
        for _ in 0..MAX_DEPTH {
            let Some(object) = at else { break };
            let name = || object.text("name").map(|name| label(&entity_name(name)));
            match &*object.kind {
                "ClusterComputeResource" => place.cluster = place.cluster.or_else(name),
                "Datacenter" => {
                    place.datacenter = name();
                    break;
                }
                _ => {}
            }
            at = object.parent().and_then(above);
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_its_limit_and_is_cut_between_characters() {
        assert_eq!(&*label("esx1"), "esx1");
        let cut = label(&"ä".repeat(10_000));
        assert_eq!((cut.chars().count(), cut.len()), (MAX_LABEL, 2 * MAX_LABEL));
    }
}
