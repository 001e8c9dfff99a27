//! What each source said last, and the inventory that all of them make together.
//!
//! One lock, held for no I/O but a line in the log: whoever brings news merges it in at once, so that a poll
//! which finds hosts knows their addresses before it reports.

use super::atlas::Atlas;
use super::discovered::{DiscoverConfig, FoundHost, FoundHosts, HostList, keep_addresses};
use super::memory::Memory;
use super::merge::{Merged, Rows, merge};
use super::metrics::{ERROR, LAST_SUCCESS, LISTED, TARGETS};
use super::origin::Origin;
use super::{Host, Inventory, InventoryConfig, StaticTarget, Vcenter};
use crate::metric::Attributes;
use crate::stats::Stats;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Why there is no inventory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("inventory: {0}")]
pub struct InventoryError(pub(super) String);

/// Most contradictions that are said, once each.
const MAX_SAID: usize = 1000;

/// All sources.
#[derive(Debug)]
pub(super) struct Sources {
    stats: Arc<Stats>,
    memory: Memory,
    inner: Mutex<Inner>,
    inventory: watch::Sender<Arc<Inventory>>,
}

#[derive(Debug)]
struct Inner {
    config: InventoryConfig,
    /// The targets that stand in the configuration.
    fixed: Atlas,
    /// The rows of file and server.
    rows: BTreeMap<Origin, Atlas>,
    /// The lists of vCenters.
    lists: BTreeMap<Origin, HostList>,
    states: BTreeMap<Origin, State>,
    conflicts: HashSet<String>,
    /// Nothing is published before every source was looked at.
    begun: bool,
    /// Whether some row has an IP address.
    has_ip_addresses: bool,
}

/// How a source is.
#[derive(Debug, Default)]
struct State {
    /// Bad looks in a row.
    failures: u32,
    /// What is wrong, once it was said.
    trouble: Option<String>,
    /// What can't be used of what it lists.
    skipped: Option<String>,
}

impl Sources {
    pub(super) fn new(config: InventoryConfig, stats: Arc<Stats>) -> Result<Self, InventoryError> {
        let memory = Memory::new(config.memory.clone());
        let inner = Inner {
            fixed: fixed(&config)?,
            config,
            rows: BTreeMap::new(),
            lists: BTreeMap::new(),
            states: BTreeMap::new(),
            conflicts: HashSet::new(),
            begun: false,
            has_ip_addresses: false,
        };
        Ok(Self { stats, memory, inner: Mutex::new(inner), inventory: watch::Sender::default() })
    }

    /// Goes over to another configuration. Nothing is published before [`Self::begin`].
    pub(super) fn reconfigure(&self, config: InventoryConfig) -> Result<(), InventoryError> {
        let fixed = fixed(&config)?;
        let mut inner = self.lock();
        let url = |config: &InventoryConfig| config.http_sd.as_ref().map(|server| server.url.clone());
        // A server that is away just now still lists what it did.
        let stays = config.http_sd.is_some() && url(&config) == url(&inner.config);
        for (origin, stays) in [(Origin::Atlas, config.atlas.is_some()), (Origin::HttpSd, stays)] {
            if !stays {
                inner.rows.remove(&origin);
                self.forget(&mut inner, &origin);
            }
        }
        (inner.fixed, inner.config, inner.begun) = (fixed, config, false);
        Ok(())
    }

    /// Every source was looked at: from now on what they say is published.
    pub(super) fn begin(&self) {
        let mut inner = self.lock();
        let first = !std::mem::replace(&mut inner.begun, true);
        self.publish(&mut inner, first);
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Whether there is a source whose list is kept.
    pub(super) fn keeps(&self) -> bool {
        let inner = self.lock();
        let config = &inner.config;
        config.memory.is_some() && (config.http_sd.is_some() || config.discover.is_on())
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Inventory>> {
        self.inventory.subscribe()
    }

    pub(super) fn notes(&self) -> Vec<String> {
        let inner = self.lock();
        let of_source =
            |state: &State| state.skipped.iter().chain(&state.trouble).cloned().collect::<Vec<_>>();
        let conflicts = inner.conflicts.iter().map(|conflict| format!("inventory: {conflict}"));
        let mut notes: Vec<String> = inner.states.values().flat_map(of_source).chain(conflicts).collect();
        notes.sort();
        notes
    }

    pub(super) fn in_trouble(&self) -> usize {
        self.lock().states.values().filter(|state| state.trouble.is_some()).count()
    }

    /// A source lists this now.
    pub(super) fn accept(&self, origin: &Origin, atlas: Atlas) {
        let mut inner = self.lock();
        self.good(&mut inner, origin);
        self.take_in(&mut inner, origin, atlas);
    }

    /// What a source listed before the start, as it is away now.
    pub(super) fn recall(&self, origin: &Origin, atlas: Atlas) {
        self.take_in(&mut self.lock(), origin, atlas);
    }

    /// A source lists the same as before.
    pub(super) fn still_good(&self, origin: &Origin) {
        self.good(&mut self.lock(), origin);
    }

    /// A source can't be used. Said at the `patience`th time in a row.
    pub(super) fn trouble(&self, origin: &Origin, why: String, patience: u32) {
        let mut inner = self.lock();
        let known = match origin {
            Origin::Vcenter(_) => {
                let counts = |list: &&HostList| is_harmless(list, &inner.config);
                inner.lists.get(origin).filter(counts).map(|list| list.hosts.len())
            }
            _ => inner.rows.get(origin).map(|atlas| atlas.hosts.len() + atlas.vcenters.len()),
        };
        let state = inner.states.entry(origin.clone()).or_default();
        state.failures = state.failures.saturating_add(1);
        if state.failures < patience || state.trouble.is_some() {
            return;
        }
        let stands = match (origin, known) {
            (Origin::Atlas | Origin::Configuration, _) => "the last good inventory stands".to_owned(),
            (_, Some(known)) => format!("its last good list stands (targets: {known})"),
            (_, None) => "nobody of it is known until it answers".to_owned(),
        };
        let line = format!("inventory: {why}; {stands}");
        tracing::warn!("{line}");
        state.trouble = Some(line);
        self.stats.set(&ERROR, origin.attributes(), 1.0);
    }

    pub(super) fn has_ip_addresses(&self) -> bool {
        self.lock().has_ip_addresses
    }

    pub(super) fn discover_config(&self) -> DiscoverConfig {
        self.lock().config.discover.clone()
    }

    /// Number of hosts that a vCenter listed last.
    pub(super) fn listed_by(&self, vcenter: &Vcenter) -> Option<usize> {
        self.lock().lists.get(&Origin::Vcenter(Arc::clone(&vcenter.address))).map(|list| list.hosts.len())
    }

    /// A vCenter lists these hosts. `live`: now, and not before the start. Returns its list if that is news,
    /// and the inventory that comes of it.
    pub(super) fn accept_list(
        &self,
        vcenter: &Arc<Vcenter>,
        found: FoundHosts,
        live: bool,
    ) -> (Option<Arc<[FoundHost]>>, Arc<Inventory>) {
        let FoundHosts { mut hosts, is_verified } = found;
        let origin = Origin::Vcenter(Arc::clone(&vcenter.address));
        let mut inner = self.lock();
        let Some(discover) = inner.config.discover.of(vcenter) else {
            return (None, self.inventory.borrow().clone());
        };
        if live {
            self.good(&mut inner, &origin);
        }
        inner.states.entry(origin.clone()).or_default();
        self.count(&origin, hosts.len(), None);
        let before = inner.lists.get(&origin);
        // A vCenter promises no order.
        hosts.sort_by(|a, b| a.id.cmp(&b.id));
        if let Some(before) = before {
            keep_addresses(&mut hosts, &before.hosts, before.is_live);
        }
        let (vcenter, hosts) = (Arc::clone(vcenter), hosts.into());
        let list = HostList { vcenter, discover, hosts, is_verified, is_live: live };
        if before == Some(&list) {
            return (None, self.inventory.borrow().clone());
        }
        let news = Some(Arc::clone(&list.hosts));
        inner.lists.insert(origin, list);
        if !inner.begun {
            return (news, self.inventory.borrow().clone());
        }
        (news, self.publish(&mut inner, false))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn good(&self, inner: &mut Inner, origin: &Origin) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.stats.set(&LAST_SUCCESS, origin.attributes(), now.as_secs_f64());
        self.stats.set(&ERROR, origin.attributes(), 0.0);
        let state = inner.states.entry(origin.clone()).or_default();
        state.failures = 0;
        if state.trouble.take().is_some() {
            match origin {
                Origin::Vcenter(_) => tracing::info!("inventory: {origin} lists its hosts again"),
                Origin::HttpSd => tracing::info!("inventory: http_sd answers again"),
                _ => tracing::info!("inventory: the file is good again"),
            }
        }
    }

    fn take_in(&self, inner: &mut Inner, origin: &Origin, atlas: Atlas) {
        let skipped = (!atlas.skipped.is_empty())
            .then(|| format!("inventory: rows of {origin} that can't be used: {}", atlas.skipped));
        tell_skipped(inner, origin, skipped);
        self.count(origin, atlas.hosts.len(), Some(atlas.vcenters.len()));
        inner.rows.insert(origin.clone(), atlas);
        if inner.begun {
            self.publish(inner, false);
        }
    }

    fn count(&self, origin: &Origin, hosts: usize, vcenters: Option<usize>) {
        for (kind, count) in [("host", Some(hosts)), ("vcenter", vcenters)] {
            if let Some(count) = count {
                self.stats.set(&LISTED, origin.attributes().with("kind", kind), count as f64);
            }
        }
    }

    /// Makes the inventory of what all sources list, and sends it if its meaning has changed. The first one is
    /// no news.
    fn publish(&self, inner: &mut Inner, quietly: bool) -> Arc<Inventory> {
        let rows = [(Origin::Configuration, &inner.fixed)].into_iter();
        let rows = rows.chain(inner.rows.iter().map(|(origin, atlas)| (origin.clone(), atlas)));
        let rows: Vec<_> = rows
            .map(|(origin, atlas)| Rows { origin, hosts: &atlas.hosts, vcenters: &atlas.vcenters })
            .collect();
        let is_ip = |host: &Host| host.endpoint.host.parse::<IpAddr>().is_ok();
        let has_ip_addresses = rows.iter().any(|rows| rows.hosts.iter().any(is_ip));
        let of_now = |list: &HostList| {
            Some(HostList { discover: inner.config.discover.of(&list.vcenter)?, ..list.clone() })
        };
        let lists: Vec<HostList> =
            inner.lists.values().filter(|list| is_harmless(list, &inner.config)).filter_map(of_now).collect();
        let Merged { inventory, conflicts, skipped } = merge(&rows, &lists, inner.config.shard);
        inner.has_ip_addresses = has_ip_addresses;
        for conflict in conflicts {
            if inner.conflicts.len() < MAX_SAID && inner.conflicts.insert(conflict.clone()) {
                tracing::warn!("inventory: {conflict}");
            }
        }
        for (origin, skipped) in skipped {
            let line = (!skipped.is_empty())
                .then(|| format!("inventory: hosts of {origin} that can't be visited: {skipped}"));
            tell_skipped(inner, &origin, line);
        }
        self.forget_those_gone(inner, &inventory);
        for (kind, count) in [("host", inventory.hosts.len()), ("vcenter", inventory.vcenters.len())] {
            self.stats.set(&TARGETS, Attributes::new([("kind", kind)]), count as f64);
        }
        self.inventory.send_if_modified(|old| replace_if_different(old, inventory, quietly));
        self.inventory.borrow().clone()
    }

    /// A vCenter that is gone, or is not asked for its hosts any more.
    fn forget_those_gone(&self, inner: &mut Inner, inventory: &Inventory) {
        let gone = |origin: &Origin| match origin {
            Origin::Vcenter(address) => {
                let lists =
                    |vc: &&Arc<Vcenter>| vc.address == *address && inner.config.discover.of(vc).is_some();
                !inventory.all_vcenters.iter().any(|vc| lists(&vc))
            }
            _ => false,
        };
        let gone: Vec<Origin> = inner.states.keys().filter(|origin| gone(origin)).cloned().collect();
        for origin in gone {
            self.forget(inner, &origin);
        }
    }

    fn forget(&self, inner: &mut Inner, origin: &Origin) {
        inner.lists.remove(origin);
        inner.states.remove(origin);
        let attributes = origin.attributes();
        self.stats.unset(&ERROR, &attributes);
        self.stats.unset(&LAST_SUCCESS, &attributes);
        for kind in ["host", "vcenter"] {
            self.stats.unset(&LISTED, &attributes.with("kind", kind));
        }
    }
}

/// Whether a list counts: it may be from a time when something else than TLS kept the password from strangers.
fn is_harmless(list: &HostList, config: &InventoryConfig) -> bool {
    list.is_verified || !config.allow.is_everybody()
}

/// The targets that stand in the configuration.
fn fixed(config: &InventoryConfig) -> Result<Atlas, InventoryError> {
    let endpoint = |target: &StaticTarget| {
        target.address.parse().map_err(|e| InventoryError(format!("inventory of the configuration: {e}")))
    };
    let hosts = config.hosts.iter().map(|target| {
        Ok(Host {
            address: target.address.as_str().into(),
            endpoint: endpoint(target)?,
            site: target.site.as_str().into(),
            labels: target.labels.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect(),
        })
    });
    let vcenters = config.vcenters.iter().map(|target| {
        let (address, site) = (target.address.as_str().into(), target.site.as_str().into());
        Ok(Vcenter { address, endpoint: endpoint(target)?, site, labels: BTreeMap::new() })
    });
    Ok(Atlas {
        hosts: hosts.collect::<Result<_, _>>()?,
        vcenters: vcenters.collect::<Result<_, _>>()?,
        ..Atlas::default()
    })
}

/// One line when what can't be used of a source changes.
fn tell_skipped(inner: &mut Inner, origin: &Origin, line: Option<String>) {
    let state = inner.states.entry(origin.clone()).or_default();
    if let Some(line) = line.as_ref().filter(|line| state.skipped.as_ref() != Some(*line)) {
        tracing::warn!("{line}");
    }
    state.skipped = line;
}

fn replace_if_different(old: &mut Arc<Inventory>, new: Inventory, quietly: bool) -> bool {
    let differs = **old != new;
    if differs {
        let (hosts, vcenters) = new.of_all_shards();
        if !quietly {
            tracing::info!(
                "inventory: {} of {hosts} hosts, {} of {vcenters} vCenters are asked",
                new.hosts.len(),
                new.vcenters.len()
            );
        }
        *old = Arc::new(new);
    }
    differs
}
