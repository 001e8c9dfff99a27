//! Inventory: who is there. Sources are added up (`merge`), duplicates by address joined, and the result is
//! one `watch` channel of an immutable [`Inventory`].
//!
//! `file` and `http_sd` are looked at by tasks of this room (`watched`). What vCenters list is told by whoever
//! polls them ([`Discovery`]): this room speaks no SOAP. `sources` holds what each of them said last, and
//! `memory` keeps it over restarts.

mod allow;
mod atlas;
mod discovered;
mod discovery;
mod endpoint;
mod file;
mod http_sd;
mod join;
mod look;
mod memory;
mod merge;
mod metrics;
mod origin;
mod shard;
mod sources;
mod watched;

pub use allow::{Allow, AllowError, AllowRule};
pub use atlas::AddressTemplate;
pub use discovered::{Connection, Discover, DiscoverConfig, DiscoveredAddress, FoundHost, FoundHosts};
pub use discovery::Discovery;
pub use endpoint::{Endpoint, EndpointError};
pub use http_sd::{HttpSdConfig, SdAuth, SdUrl};
pub use metrics::METRICS;
pub use shard::Shard;
pub use sources::InventoryError;
pub use watched::InventoryWatch;

use crate::target::TargetId;
use join::Match;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Sources of targets, added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InventoryConfig {
    /// Prometheus file_sd JSON, watched.
    pub atlas: Option<PathBuf>,
    /// The same over HTTP.
    pub http_sd: Option<HttpSdConfig>,
    /// Which vCenters list their hosts themselves.
    pub discover: DiscoverConfig,
    /// Folder for what http_sd and vCenters listed last, over restarts; `None`: it is not kept.
    pub memory: Option<PathBuf>,
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
    /// The vCenters of all shards.
    all_vcenters: Vec<Arc<Vcenter>>,
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
        Self::merged(hosts, vcenters, shard, &[])
    }

    /// The same, with the names that vCenters have for the hosts that they list.
    fn merged(hosts: Vec<Host>, vcenters: Vec<Vcenter>, shard: Shard, aliases: &[join::Alias]) -> Self {
        let all_hosts = sorted(hosts, |host| &host.address);
        let all_vcenters = sorted(vcenters, |vcenter| &vcenter.address);
        let vcenters = all_vcenters.iter().filter(|vc| shard.owns(&vc.address)).map(Arc::clone).collect();
        let hosts = all_hosts.iter().filter(|host| shard.owns(&host.address)).map(Arc::clone).collect();
        let join = join::Index::new(all_hosts.iter().map(Arc::as_ref), aliases);
        Self { hosts, vcenters, all_hosts, join, all_vcenters }
    }

    /// How many hosts and vCenters all shards together have.
    pub fn of_all_shards(&self) -> (usize, usize) {
        (self.all_hosts.len(), self.all_vcenters.len())
    }

    /// The vCenters of all shards: some of this agent's hosts are known to them alone.
    pub fn vcenters_of_all_shards(&self) -> &[Arc<Vcenter>] {
        &self.all_vcenters
    }

    /// Which host of the inventory a vCenter means, so that its series can carry the `address` that the
    /// SSH series have. In this order, and the first rule that finds somebody decides:
    /// 1. the vCenter's `name` for the host equals the address (its port left out);
    /// 2. a vCenter of that `site` lists the host by that name;
    /// 3. their first labels are equal, and so is the `site`;
    /// 4. the `management_address` equals the address.
    ///
    /// `None`: nobody, or more than one.
    pub fn match_host(&self, name: &str, site: &str, management_address: Option<&str>) -> Option<&Arc<Host>> {
        match self.join_host(name, site, management_address) {
            Joined::One(host) => Some(host),
            Joined::Nobody | Joined::Several => None,
        }
    }

    /// The same, for whoever has to know whether it is nobody or more than one.
    pub fn join_host(&self, name: &str, site: &str, management_address: Option<&str>) -> Joined<'_> {
        match self.join.find(name, site, management_address) {
            Some(Match::One(at)) => self.all_hosts.get(at).map_or(Joined::Nobody, Joined::One),
            Some(Match::Ambiguous) => Joined::Several,
            None => Joined::Nobody,
        }
    }

    /// Whether the address of some host is an IP address: only then can a `management_address` match.
    pub fn has_ip_addresses(&self) -> bool {
        self.join.has_ip_addresses
    }
}

/// Whom a vCenter means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined<'a> {
    /// This host.
    One(&'a Arc<Host>),
    /// Nobody that is known.
    Nobody,
    /// More than one could be meant.
    Several,
}

fn sorted<T>(mut targets: Vec<T>, address: impl Fn(&T) -> &Arc<str>) -> Vec<Arc<T>> {
    let mut seen = HashSet::new();
    targets.retain(|target| seen.insert(address(target).to_ascii_lowercase()));
    targets.sort_by(|a, b| address(a).cmp(address(b)));
    targets.into_iter().map(Arc::new).collect()
}
