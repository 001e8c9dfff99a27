//! Which of the properties that the collectors read can't be had, and why.

use super::hosts_of;
use crate::collectors::VcenterCollector;
use crate::steps::Steps;
use crate::vim::VimClient;
use crate::vim::client::VimError;
use crate::vim::model::ManagedObject;
use crate::vim::property::Query;
use crate::vim::soap::{Fault, FaultKind};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Of so many hosts the details are read, which are large: what is granted at the root is granted for all.
const MOST_HOSTS: usize = 10;

/// A property that was kept back.
#[derive(Debug)]
struct Kept {
    /// By these hosts.
    hosts: HashSet<Arc<str>>,
    /// Why, by the first of them.
    fault: Fault,
}

/// What was found unreadable.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    /// By property and kind of fault.
    faults: BTreeMap<(String, String), Kept>,
    /// What the vCenter's version does not have.
    unknown: BTreeSet<String>,
    /// Why there is no whole answer.
    failed: Option<String>,
}

impl Unreadable {
    /// Takes down what these hosts kept back.
    pub fn add(&mut self, hosts: &[ManagedObject]) {
        for host in hosts {
            for (path, fault) in &host.missing {
                if fault.kind == FaultKind::InvalidProperty {
                    self.unknown.insert(path.to_string());
                    continue;
                }
                let key = (path.to_string(), fault.kind.name().to_owned());
                let new = || Kept { hosts: HashSet::new(), fault: fault.clone() };
                self.faults.entry(key).or_insert_with(new).hosts.insert(Arc::clone(&host.id));
            }
        }
    }

    /// Asks for what each poll reads of all hosts, and for the details of some, each within `limit`.
    pub async fn look(
        &mut self,
        client: &mut VimClient,
        collectors: &[Arc<dyn VcenterCollector>],
        hosts: &[ManagedObject],
        limit: Duration,
    ) {
        let polled: BTreeSet<&str> =
            collectors.iter().flat_map(|collector| collector.host_properties()).copied().collect();
        let details: BTreeSet<&str> = collectors
            .iter()
            .flat_map(|collector| collector.details())
            .flat_map(|detail| detail.properties)
            .copied()
            .collect();
        let some: Vec<Arc<str>> = hosts.iter().take(MOST_HOSTS).map(|host| Arc::clone(&host.id)).collect();
        for (ids, wanted) in [(None, polled), (Some(&some), details)] {
            if wanted.is_empty() || ids.is_some_and(|ids| ids.is_empty()) {
                continue;
            }
            match self.read(client, ids.map(Vec::as_slice), wanted, Instant::now() + limit).await {
                Ok(objects) => self.add(&hosts_of(objects)),
                Err(error) => self.failed = Some(error.to_string()),
            }
        }
    }

    /// Without those that the vCenter turns out not to know.
    async fn read(
        &mut self,
        client: &mut VimClient,
        ids: Option<&[Arc<str>]>,
        mut wanted: BTreeSet<&str>,
        deadline: Instant,
    ) -> Result<Vec<ManagedObject>, VimError> {
        loop {
            let properties: Vec<&str> = wanted.iter().copied().collect();
            let query = match ids {
                Some(ids) => Query::Objects { kind: "HostSystem", ids, properties: &properties },
                None => Query::Tree(&properties),
            };
            let error = match client.retrieve(&query, deadline).await {
                Ok(objects) => return Ok(objects),
                Err(error) => error,
            };
            let named = error.fault.as_ref().filter(|fault| fault.kind == FaultKind::InvalidProperty);
            let Some(named) = named.and_then(|fault| fault.subject.clone()) else { return Err(error) };
            let before = wanted.len();
            wanted.retain(|property| *property != named);
            if wanted.len() == before {
                return Err(error);
            }
            self.unknown.insert(named);
            if wanted.is_empty() {
                return Ok(Vec::new());
            }
        }
    }

    /// As facts.
    pub fn tell(&self, steps: &Steps) {
        let hosts: HashSet<&Arc<str>> = self.faults.values().flat_map(|kept| &kept.hosts).collect();
        steps.fact("hosts_not_readable", hosts.len().to_string());
        let what = |((path, _), Kept { hosts, fault }): (&(String, String), &Kept)| {
            format!("{path} of {}: {fault}", hosts.len())
        };
        let all = [
            ("not_readable", self.faults.iter().map(what).collect::<Vec<_>>().join(", ")),
            ("unknown_properties", self.unknown.iter().cloned().collect::<Vec<_>>().join(", ")),
            ("properties_unknown", self.failed.clone().unwrap_or_default()),
        ];
        for (name, text) in all.into_iter().filter(|(_, text)| !text.is_empty()) {
            steps.fact(name, text);
        }
    }
}
