//! The contract of collectors that read from vCenters.
//!
//! Each poll reads the [`VcenterCollector::host_properties`] of all hosts, and is reported at once. What is
//! large, or changes rarely, is a [`Detail`]: read at a slower pace, of those hosts of which it is wanted,
//! after the poll's report is out.

use crate::inventory::{Inventory, Vcenter};
use crate::readings::Reading;
use crate::vim::model::ManagedObject;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// A collector that reads properties from vCenters: what to ask.
pub trait VcenterCollector: Send + Sync {
    /// Its name in configuration, logs and the readings.
    fn name(&self) -> &'static str;
    /// Pause between two polls.
    fn interval(&self) -> Duration;
    /// Age at which its readings are no longer reported; those of details after three times their pace.
    fn stale_after(&self) -> Duration;
    /// Which properties of HostSystem it needs at each poll (paths such as `runtime.connectionState`).
    fn host_properties(&self) -> &'static [&'static str];
    /// What else it asks, more rarely.
    fn details(&self) -> &[Detail] {
        &[]
    }
    /// A parser of one vCenter's answers. It outlives changes of the configuration, and so may not hold any: a
    /// collector of the same name takes it over. What was configured comes with each answer's [`Detail`].
    fn reader(&self) -> Box<dyn VcenterReader>;
}

/// Reads the answers of one vCenter, in the order in which they come, and may remember what it needs for
/// the next one.
pub trait VcenterReader: Send {
    /// Objects beside the hosts of which it needs a text, to read an answer about these hosts.
    fn lookup(&self, _hosts: &[ManagedObject]) -> Option<Lookup> {
        None
    }
    /// Reads an answer. One part a host, named by the host's id, which survives a renaming.
    fn read(&mut self, answer: &VcenterAnswer<'_>) -> Vec<Reading>;
    /// Whether a detail is wanted of a host, by what the poll said of it.
    fn wants(&self, _detail: &Detail, _host: &ManagedObject, _inventory: &Inventory) -> Want {
        Want::Yes
    }
    /// Reads the answer to a detail. At most one part a host, named by [`Detail::part`].
    fn read_detail(&mut self, _detail: &Detail, _answer: &VcenterAnswer<'_>) -> Vec<Reading> {
        Vec::new()
    }
}

/// What a vCenter answered.
#[derive(Debug, Clone, Copy)]
pub struct VcenterAnswer<'a> {
    /// The vCenter.
    pub vcenter: &'a Vcenter,
    /// Its folders, datacenters and compute resources, all of them, with name and parent.
    pub tree: &'a [ManagedObject],
    /// Its hosts, all of them or some.
    pub hosts: &'a [ManagedObject],
    /// Whether these are all the hosts that it has.
    pub is_whole: bool,
    /// For the join key `address`.
    pub inventory: &'a Inventory,
    /// What was looked up, by the objects' ids. One that could not be read is not there.
    pub texts: &'a HashMap<Arc<str>, Arc<str>>,
}

/// A text of objects that are not in the tree: the name of alarms, say. Remembered by the poller, and read
/// again now and then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// Their type.
    pub kind: &'static str,
    /// The property, a string.
    pub property: &'static str,
    /// Which ones.
    pub ids: BTreeSet<Arc<str>>,
}

/// A question about hosts beyond what each poll reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detail {
    /// Names it within the collector.
    pub name: &'static str,
    /// Which properties of HostSystem.
    pub properties: &'static [&'static str],
    /// Pause between two answers about a host.
    pub every: Duration,
    /// Most hosts of one request, by the size of the answer, which is held in memory. There is at most one
    /// such request a poll.
    pub most_hosts: usize,
}

impl Detail {
    /// The name of its part for a host.
    pub fn part(&self, host: &str) -> Arc<str> {
        format!("{host}/{}", self.name).into()
    }
}

/// Whether a detail is wanted of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// No: what was known of it ends.
    No,
    /// At the detail's pace.
    Yes,
    /// The same, and at once where it was not [`Want::Soon`] before: something has happened to the host.
    Soon,
}
