//! Inventory: who is there. Sources are added up, duplicates by address merged, and the result is one
//! `watch` channel of an immutable [`Inventory`].

mod allow;
mod atlas;
mod endpoint;
mod join;
mod shard;
mod source;

pub use allow::{Allow, AllowError, AllowRule};
pub use atlas::AddressTemplate;
pub use endpoint::{Endpoint, EndpointError};
pub use shard::Shard;
pub use source::{InventoryError, InventoryWatch, METRICS};

use crate::target::TargetId;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Sources of targets, added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InventoryConfig {
    /// Prometheus file_sd JSON, watched.
    pub atlas: Option<PathBuf>,
    /// Address of the atlas's hosts, made from `{name}`, `{region}`, `{target}` or any label.
    pub host_address: AddressTemplate,
    /// Labels and their allowed values. A host of the atlas that has the label with another value, or lacks
    /// it, is left out; a vCenter, which has fewer labels, only if it has it with another value.
    pub only: BTreeMap<String, Vec<String>>,
    /// Addresses that may be given a password, whatever source they come from.
    pub allow: Allow,
    /// vCenters that stand in the configuration.
    pub vcenters: Vec<StaticTarget>,
    /// Hosts that stand in the configuration.
    pub hosts: Vec<StaticTarget>,
    /// This agent's part of all that.
    pub shard: Shard,
}

/// A target that stands in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticTarget {
    /// `name`, `name:port`, `[v6]:port`.
    pub address: String,
    /// Site, empty if none.
    pub site: String,
    /// Further labels.
    pub labels: BTreeMap<String, String>,
}

/// Everybody who is to be visited or polled by this agent. Sorted by address, one entry an address: made
/// by [`Inventory::new`] and [`Inventory::of_shard`], which see to both.
///
/// The hosts of other shards are known, too, but only to [`Inventory::match_host`]: what a vCenter's series
/// look like must not depend on which agent polls it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// ESXi hosts.
    pub hosts: Vec<Arc<Host>>,
    /// vCenters.
    pub vcenters: Vec<Arc<Vcenter>>,
    /// The hosts of all shards.
    all_hosts: Vec<Arc<Host>>,
    join: join::Index,
    all_vcenters: usize,
}

/// An ESXi host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Address as the inventory gives it (`name`, `name:port`, `[v6]:port`): value of `hostsystem`.
    pub address: Arc<str>,
    /// Where to connect.
    pub endpoint: Endpoint,
    /// Site, empty if none.
    pub site: Arc<str>,
    /// Further labels of the source.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}

/// A vCenter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vcenter {
    /// Address as the inventory gives it: value of `vcenter`.
    pub address: Arc<str>,
    /// Where to connect.
    pub endpoint: Endpoint,
    /// Site, empty if none.
    pub site: Arc<str>,
    /// Further labels of the source.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}

impl Host {
    /// Its identity.
    pub fn id(&self) -> TargetId {
        TargetId::host(self.address.clone())
    }
}

impl Vcenter {
    /// Its identity.
    pub fn id(&self) -> TargetId {
        TargetId::vcenter(self.address.clone())
    }
}

impl Inventory {
    /// Sorts and removes duplicates by address, whatever its case. Of two entries with one address the
    /// first one stays: so put those that were written by hand before those that a source lists.
    pub fn new(hosts: Vec<Host>, vcenters: Vec<Vcenter>) -> Self {
        Self::of_shard(hosts, vcenters, Shard::default())
    }

    /// The same, of the whole fleet's targets, for the agent that has this part of it.
    pub fn of_shard(hosts: Vec<Host>, vcenters: Vec<Vcenter>, shard: Shard) -> Self {
        let all_hosts = sorted(hosts, |host| &host.address);
        let mut vcenters = sorted(vcenters, |vcenter| &vcenter.address);
        let all_vcenters = vcenters.len();
        vcenters.retain(|vcenter| shard.owns(&vcenter.address));
        let hosts = all_hosts.iter().filter(|host| shard.owns(&host.address)).map(Arc::clone).collect();
        let join = join::Index::new(&all_hosts);
        Self { hosts, vcenters, all_hosts, join, all_vcenters }
    }

    /// How many hosts and vCenters all shards together have.
    pub fn of_all_shards(&self) -> (usize, usize) {
        (self.all_hosts.len(), self.all_vcenters)
    }

    /// Which host of the inventory a vCenter means, so that its series can carry the `address` that the
    /// SSH series have. In this order, and the first rule that finds somebody decides:
    /// 1. the vCenter's `name` for the host equals the address (its port left out);
    /// 2. their first labels are equal, and so is the `site`;
    /// 3. the `management_address` equals the address.
    ///
    /// `None`: nobody, or more than one.
    pub fn match_host(&self, name: &str, site: &str, management_address: Option<&str>) -> Option<&Arc<Host>> {
        self.all_hosts.get(self.join.find(name, site, management_address)?)
    }
}

fn sorted<T>(mut targets: Vec<T>, address: impl Fn(&T) -> &Arc<str>) -> Vec<Arc<T>> {
    let mut seen = HashSet::new();
    targets.retain(|target| seen.insert(address(target).to_ascii_lowercase()));
    targets.sort_by(|a, b| address(a).cmp(address(b)));
    targets.into_iter().map(Arc::new).collect()
}
