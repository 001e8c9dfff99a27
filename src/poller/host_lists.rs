//! The lists of hosts that vCenters have: read along with a poll, or by themselves where this agent asks a
//! vCenter nothing else; told to the inventory.
//!
//! A vCenter that is polled anyway is read in its one session. One whose status another shard reports, or
//! nobody, is logged in to for the list alone and logged out of again, at the inventory's slow pace.

use super::count;
use super::each::{Signals, keep_one_each};
use super::poll::{PollSetup, VcenterPoller};
use crate::inventory::{Connection, DiscoveredAddress, Discovery, FoundHost, FoundHosts, Inventory, Vcenter};
use crate::outcome::Failure;
use crate::stats::Stats;
use crate::target::TargetKind;
use crate::vim::management::{self, NET_CONFIG};
use crate::vim::model::{ManagedObject, Reference, entity_name};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What tells a host of a list.
const PROPERTIES: &[&str] = &["name", "parent", "runtime.connectionState", "runtime.inMaintenanceMode"];
/// Deepest tree that is walked up, against a loop of parents.
const MAX_DEPTH: usize = 64;

/// Hosts by identity and name.
type Known = HashSet<(Arc<str>, Arc<str>)>;

/// What a poll has to do for the list of its vCenter.
#[derive(Debug)]
pub struct HostList {
    discovery: Discovery,
    /// When management addresses were read last, and of which hosts.
    addresses: Option<(Instant, Known)>,
    /// A host has come whose address was not read yet.
    newcomers: bool,
    /// The poll that is under way reads them.
    reads_addresses: bool,
}

impl HostList {
    /// Nothing was read yet.
    pub fn new(discovery: Discovery) -> Self {
        Self { discovery, addresses: None, newcomers: false, reads_addresses: false }
    }

    /// The properties that are wanted this time.
    pub(super) fn properties(&mut self, vcenter: &Vcenter) -> Vec<&'static str> {
        let Some(discover) = self.discovery.of(vcenter) else { return Vec::new() };
        let interval = self.discovery.interval();
        let due = self.addresses.as_ref().is_none_or(|(at, _)| at.elapsed() >= interval);
        let of_use = discover.address == DiscoveredAddress::Management || self.discovery.needs_addresses();
        self.reads_addresses = of_use && (due || self.newcomers);
        let net_config = self.reads_addresses.then_some(NET_CONFIG);
        PROPERTIES.iter().copied().chain(net_config).collect()
    }

    /// A whole answer has come. Returns the inventory with what it lists; `None`: nobody wants a list.
    pub(super) async fn found(
        &mut self,
        vcenter: &Arc<Vcenter>,
        tree: &[ManagedObject],
        hosts: &[ManagedObject],
        is_verified: bool,
    ) -> Option<Arc<Inventory>> {
        self.discovery.of(vcenter)?;
        let hosts = found(tree, hosts);
        let mut present = hosts.iter().map(|host| (Arc::clone(&host.id), Arc::clone(&host.name)));
        if self.reads_addresses {
            self.addresses = Some((Instant::now(), present.collect()));
            self.newcomers = false;
        } else if let Some((_, known)) = &self.addresses {
            self.newcomers = present.any(|host| !known.contains(&host));
        }
        Some(self.discovery.found(vcenter, FoundHosts { hosts, is_verified }).await)
    }

    /// There was no answer.
    pub(super) async fn failed(&self, vcenter: &Arc<Vcenter>, failure: &Failure) {
        self.discovery.failed(vcenter, failure).await;
    }
}

/// The hosts of an answer. One without a readable name is none.
fn found(tree: &[ManagedObject], hosts: &[ManagedObject]) -> Vec<FoundHost> {
    let places: HashMap<&str, &ManagedObject> = tree.iter().map(|object| (&*object.id, object)).collect();
    let host = |object: &ManagedObject| {
        let (cluster, datacenter) = whereabouts(&places, object.parent());
        Some(FoundHost {
            id: Arc::clone(&object.id),
            name: object.name()?.into(),
            management_address: management::addresses(object).first().copied(),
            connection: match object.text("runtime.connectionState").map(|state| &**state) {
                Some("disconnected") => Connection::Disconnected,
                Some("notResponding") => Connection::NotResponding,
                _ => Connection::Connected,
            },
            in_maintenance: object.flag("runtime.inMaintenanceMode").unwrap_or(false),
            cluster,
            datacenter,
        })
    };
    hosts.iter().filter_map(host).collect()
}

/// Cluster and datacenter. A host of its own stands below a ComputeResource that is no cluster.
fn whereabouts(
    places: &HashMap<&str, &ManagedObject>,
    parent: Option<&Reference>,
) -> (Option<Arc<str>>, Option<Arc<str>>) {
    let (mut cluster, mut datacenter) = (None, None);
    let above = |reference: Option<&Reference>| places.get(&*reference?.id).copied();
    let mut at = above(parent);
    for _ in 0..MAX_DEPTH {
        let Some(object) = at else { break };
        let name = object.text("name").map(|name| Arc::from(entity_name(name)));
        match &*object.kind {
            "ClusterComputeResource" => cluster = name,
            "Datacenter" => datacenter = name,
            _ => {}
        }
        at = above(object.parent());
    }
    (cluster, datacenter)
}

/// Reads lists by themselves.
pub struct HostLists {
    setup: watch::Receiver<Arc<PollSetup>>,
    stats: Arc<Stats>,
    /// Those that were asked once, so that whoever was cut short can be logged out of.
    asked: Mutex<Vec<Arc<AsyncMutex<VcenterPoller>>>>,
    first_result: watch::Sender<bool>,
}

impl HostLists {
    /// Asks nobody yet. `first_result` becomes true with the first list that was read.
    pub fn new(
        setup: watch::Receiver<Arc<PollSetup>>,
        stats: Arc<Stats>,
        first_result: watch::Sender<bool>,
    ) -> Self {
        Self { setup, stats, asked: Mutex::default(), first_result }
    }

    fn discovery(&self) -> Option<Discovery> {
        self.setup.borrow().discovery.clone()
    }

    /// Whether hosts come from vCenters at all.
    pub fn are_wanted(&self) -> bool {
        self.discovery().is_some_and(|discovery| discovery.is_on())
    }

    /// Reads the lists of all vCenters once, all at the same time, polled or not, but for those that are `known` to
    /// fail: for whoever wants to know the hosts and nothing else.
    pub async fn read_all(&self, inventory: &Inventory, known: impl Fn(&Vcenter) -> bool) {
        let Some(discovery) = self.discovery() else { return };
        let all = inventory.vcenters_of_all_shards().iter();
        self.read_each(all.filter(|vcenter| discovery.of(vcenter).is_some() && !known(vcenter))).await;
    }

    /// Logs out wherever a reading was dropped half-way. Bounded by the client.
    pub async fn logout_all(&self) {
        let asked = std::mem::take(&mut *self.asked());
        futures::future::join_all(asked.iter().map(|poller| async { poller.lock().await.logout().await }))
            .await;
    }

    fn asked(&self) -> MutexGuard<'_, Vec<Arc<AsyncMutex<VcenterPoller>>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the lists once that no poll brings.
    pub(super) async fn round(&self, inventory: &Inventory) {
        self.read_each(self.unpolled(inventory)).await;
    }

    /// Reads the lists that no poll brings, until cancelled. Whoever notifies `now` has them read at once.
    pub(super) async fn run(
        self: Arc<Self>,
        inventory: watch::Receiver<Arc<Inventory>>,
        now: Arc<Notify>,
        cancel: CancellationToken,
    ) {
        let signals = Signals { inventory, setup: self.setup.clone(), now, cancel };
        keep_one_each(
            signals,
            |present| self.unpolled(present).cloned().collect(),
            |vcenter, now, stop| Arc::clone(&self).keep_reading(vcenter, now, stop),
        )
        .await;
    }

    async fn read_each(&self, vcenters: impl Iterator<Item = &Arc<Vcenter>>) {
        let readings = vcenters.map(|vcenter| async move {
            let poller = Arc::new(AsyncMutex::new(self.poller(vcenter)));
            self.asked().push(Arc::clone(&poller));
            self.read(vcenter, &mut *poller.lock().await, &CancellationToken::new()).await;
        });
        futures::future::join_all(readings).await;
        self.asked().clear();
    }

    /// Those that list hosts, of which there is use, and that this agent does not poll.
    fn unpolled<'a>(&self, inventory: &'a Inventory) -> impl Iterator<Item = &'a Arc<Vcenter>> + use<'a> {
        let setup = Arc::clone(&self.setup.borrow());
        let wants = move |vcenter: &&Arc<Vcenter>| {
            let polled = !setup.collectors.is_empty() && inventory.vcenters.contains(*vcenter);
            !polled && setup.discovery.as_ref().is_some_and(|lists| lists.of(vcenter).is_some())
        };
        inventory.vcenters_of_all_shards().iter().filter(wants)
    }

    /// A poller without collectors.
    fn poller(&self, vcenter: &Arc<Vcenter>) -> VcenterPoller {
        let PollSetup { config, access, discovery, .. } = (**self.setup.borrow()).clone();
        let poller =
            VcenterPoller::new(Arc::clone(vcenter), config, Vec::new(), access, Arc::clone(&self.stats));
        match discovery {
            Some(discovery) => poller.listing(HostList::new(discovery)),
            None => poller,
        }
    }

    /// Agents that were started together shall not all log in at the same moment, again and again.
    async fn keep_reading(self: Arc<Self>, vcenter: Arc<Vcenter>, now: Arc<Notify>, stop: CancellationToken) {
        loop {
            self.read(&vcenter, &mut self.poller(&vcenter), &stop).await;
            // Without discovery this task is about to be stopped.
            let Some(discovery) = self.discovery() else { return stop.cancelled().await };
            let pause = discovery.interval().mul_f64(0.9 + 0.2 * rand::random::<f64>());
            tokio::select! {
                () = stop.cancelled() => return,
                () = now.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Logs in, reads, and logs out whatever came of it.
    async fn read(&self, vcenter: &Vcenter, poller: &mut VcenterPoller, stop: &CancellationToken) {
        let inventory = Inventory::default();
        let polled = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            polled = poller.poll(&inventory) => Some(polled),
        };
        poller.logout().await;
        let Some(polled) = polled else { return };
        let failure = polled.outcome.err();
        count(&self.stats, TargetKind::Vcenter, failure.as_ref());
        tracing::debug!(vcenter = %vcenter.address, failed = failure.is_some(), "list of hosts read");
        self.first_result.send_if_modified(|first| !std::mem::replace(first, true));
    }
}
