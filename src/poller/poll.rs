//! One vCenter, asked once.

use crate::collectors::{VcenterAnswer, VcenterCollector};
use crate::config::VcenterConfig;
use crate::inventory::{Inventory, Vcenter};
use crate::outcome::{Failure, FailureReason};
use crate::readings::{Reading, Report};
use crate::stats::Stats;
use crate::vim::VimClient;
use crate::vim::client::{Access, Live, VimError};
use crate::vim::model::{ManagedObject, Reference};
use crate::vim::property::Query;
use crate::vim::soap::FaultKind;
use crate::vim::tls::Certificate;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{Instrument, Span};

/// Properties without which nothing else makes sense.
const ALWAYS: [&str; 2] = ["name", "parent"];

/// What a poll brought.
#[derive(Debug)]
pub struct Polled {
    /// For the readings; empty when the poll failed, so that the old ones stand until they are stale.
    pub reports: Vec<Report>,
    /// Whether every host was asked about, so that one that is not in the reports is none of the vCenter's.
    pub is_whole: bool,
    /// How it ended.
    pub outcome: Result<(), Failure>,
    /// How long it took.
    pub duration: Duration,
}

/// Polls one vCenter, and keeps its session between polls. Whoever owns it calls
/// [`VcenterPoller::logout`] in the end, also after a poll that was cancelled.
pub struct VcenterPoller {
    vcenter: Arc<Vcenter>,
    config: VcenterConfig,
    collectors: Vec<Arc<dyn VcenterCollector>>,
    access: Access,
    stats: Arc<Stats>,
    client: Option<VimClient>,
    /// What this vCenter's version does not know, and which version that is.
    unknown: BTreeSet<String>,
    api_version: String,
    /// What is above the hosts, from the last whole answer.
    tree: Vec<ManagedObject>,
    /// The hosts of the last whole answer by id: name and parent.
    hosts: HashMap<Arc<str>, Place>,
    /// Whether it was said that something is unreadable.
    said_unreadable: bool,
    /// The parts of the last report, so that the series of a host that is gone can be ended.
    reported: HashMap<&'static str, HashSet<Arc<str>>>,
}

/// What ties a host to its name and into the tree.
#[derive(Debug, PartialEq)]
struct Place {
    name: Option<Arc<str>>,
    parent: Option<Reference>,
}

impl Place {
    fn of(host: &ManagedObject) -> Self {
        Self { name: host.text("name").cloned(), parent: host.parent().cloned() }
    }
}

/// What is to be asked about.
#[derive(Debug, Clone, Copy)]
enum Scope<'a> {
    /// The whole tree.
    Tree,
    /// These hosts.
    Hosts(&'a [Arc<str>]),
}

impl VcenterPoller {
    /// A poller that has not asked yet.
    pub fn new(
        vcenter: Arc<Vcenter>,
        config: VcenterConfig,
        collectors: Vec<Arc<dyn VcenterCollector>>,
        access: Access,
        stats: Arc<Stats>,
    ) -> Self {
        Self {
            vcenter,
            config,
            collectors,
            access,
            stats,
            client: None,
            unknown: BTreeSet::new(),
            api_version: String::new(),
            tree: Vec::new(),
            hosts: HashMap::new(),
            said_unreadable: false,
            reported: HashMap::new(),
        }
    }

    /// Which vCenter.
    pub fn vcenter(&self) -> &Arc<Vcenter> {
        &self.vcenter
    }

    /// Whether it may be asked to tell what changes.
    pub fn hints(&self) -> bool {
        self.config.hints
    }

    /// Its session, if there is one as far as we know.
    pub fn live(&self) -> Option<Live> {
        self.client.as_ref().and_then(VimClient::live)
    }

    /// The certificate that it presented last, whether it was believed or not.
    pub fn certificate(&self) -> Option<Arc<Certificate>> {
        self.client.as_ref().and_then(VimClient::certificate)
    }

    /// Reads the vCenter once, for all collectors. Never takes longer than the shortest of their intervals.
    pub async fn poll(&mut self, inventory: &Inventory) -> Polled {
        self.poll_scope(Scope::Tree, inventory).await
    }

    /// Reads these hosts alone (by their ids, `host-15` say) in one small request, and reports them alone:
    /// the series of the others stand. For hosts about which there is a hint that they have changed.
    ///
    /// A change of the tree can't be told by that: where there was no whole poll yet, or one of the hosts
    /// is new, gone, renamed or moved, this is a whole poll. Within the same limit of time.
    pub async fn poll_hosts(&mut self, hosts: &[Arc<str>], inventory: &Inventory) -> Polled {
        let known = !hosts.is_empty() && hosts.iter().all(|host| self.hosts.contains_key(host));
        self.poll_scope(if known { Scope::Hosts(hosts) } else { Scope::Tree }, inventory).await
    }

    async fn poll_scope(&mut self, scope: Scope<'_>, inventory: &Inventory) -> Polled {
        let span = tracing::info_span!(
            parent: None,
            "poll",
            otel.kind = "internal",
            server.address = %self.vcenter.endpoint.host,
            esxi.site = %self.vcenter.site,
            vim.objects = tracing::field::Empty,
        );
        let started = Instant::now();
        let limit = self.collectors.iter().map(|collector| collector.interval()).min();
        let limit = limit.unwrap_or(self.config.call_timeout);
        let id = self.vcenter.id();
        let read = self.read(scope, inventory, started + limit).instrument(span.clone());
        let result = tokio::time::timeout(limit, read).await.unwrap_or_else(|_| {
            let line = format!("polling {id} took longer than its interval of {} s", limit.as_secs_f64());
            Err(Failure::new(FailureReason::CommandTimeout, line))
        });
        let (reports, is_whole, outcome) = match result {
            Ok((reports, is_whole)) => (reports, is_whole, Ok(())),
            Err(failure) => {
                crate::span::fail(&span, &failure);
                (Vec::new(), false, Err(failure))
            }
        };
        Polled { reports, is_whole, outcome, duration: started.elapsed() }
    }

    /// Ends the session, within a few seconds.
    pub async fn logout(&mut self) {
        if let Some(client) = &mut self.client {
            client.logout().await;
        }
    }

    /// The reports, and whether they are about the whole tree.
    async fn read(
        &mut self,
        scope: Scope<'_>,
        inventory: &Inventory,
        deadline: Instant,
    ) -> Result<(Vec<Report>, bool), Failure> {
        let hosts = match scope {
            Scope::Tree => None,
            Scope::Hosts(ids) => self.read_hosts(ids, deadline).await?,
        };
        let is_whole = hosts.is_none();
        let hosts = match hosts {
            Some(hosts) => hosts,
            None => self.read_tree(deadline).await?,
        };
        self.look_at_missing(&hosts);
        let collectors = self.collectors.clone();
        let report = |collector: &Arc<_>| self.report(&**collector, &hosts, inventory, is_whole);
        Ok((collectors.iter().map(report).collect(), is_whole))
    }

    /// The whole tree: keeps what is above the hosts, and gives the hosts.
    async fn read_tree(&mut self, deadline: Instant) -> Result<Vec<ManagedObject>, Failure> {
        let objects = self.read_known_properties(None, deadline).await?;
        Span::current().record("vim.objects", objects.len());
        let (hosts, tree): (Vec<_>, Vec<_>) =
            objects.into_iter().partition(|object| &*object.kind == "HostSystem");
        if hosts.is_empty() && !self.hosts.is_empty() {
            let before = self.hosts.len();
            let line = format!("{} lists no host after {before}: suspect, ignored", self.vcenter.id());
            return Err(Failure::new(FailureReason::AnswerUnreadable, line));
        }
        self.tree = tree;
        self.hosts = hosts.iter().map(|host| (Arc::clone(&host.id), Place::of(host))).collect();
        Ok(hosts)
    }

    /// These hosts; `None`: the tree has changed, so they have to be seen in it.
    async fn read_hosts(
        &mut self,
        ids: &[Arc<str>],
        deadline: Instant,
    ) -> Result<Option<Vec<ManagedObject>>, Failure> {
        let gone = Query::Objects { kind: "HostSystem", ids, properties: &[] };
        let hosts = match self.read_known_properties(Some(ids), deadline).await {
            Err(error) if error.is_about_an_object_of(&gone) => return Ok(None),
            hosts => hosts?,
        };
        Span::current().record("vim.objects", hosts.len());
        let is_in_its_place =
            |host: &ManagedObject| self.hosts.get(&host.id).is_some_and(|known| *known == Place::of(host));
        let all = hosts.len() == ids.len() && hosts.iter().all(is_in_its_place);
        Ok(all.then_some(hosts))
    }

    /// Asks for every property that the collectors want, of these hosts or of all in the tree, without
    /// those properties that the vCenter turns out not to know.
    async fn read_known_properties(
        &mut self,
        hosts: Option<&[Arc<str>]>,
        deadline: Instant,
    ) -> Result<Vec<ManagedObject>, VimError> {
        // The client stays in its place while it is used: a cancelled poll must not lose the session.
        let client = match &mut self.client {
            Some(client) => client,
            empty => empty.insert(VimClient::new(
                &self.config,
                Arc::clone(&self.vcenter),
                self.access.clone(),
                Arc::clone(&self.stats),
            )?),
        };
        let wanted: BTreeSet<&str> = ALWAYS
            .into_iter()
            .chain(self.collectors.iter().flat_map(|collector| collector.host_properties().iter().copied()))
            .collect();
        loop {
            let asked: Vec<&str> =
                wanted.iter().copied().filter(|property| !self.unknown.contains(*property)).collect();
            let query = match hosts {
                Some(ids) => Query::Objects { kind: "HostSystem", ids, properties: &asked },
                None => Query::Tree(&asked),
            };
            let result = client.retrieve(&query, deadline).await;
            if let Some(service) = client.service()
                && service.api_version != self.api_version
            {
                self.api_version.clone_from(&service.api_version);
                self.unknown.clear();
            }
            let error = match result {
                Ok(objects) => return Ok(objects),
                Err(error) => error,
            };
            let named = error.fault.as_ref().filter(|fault| fault.kind == FaultKind::InvalidProperty);
            let named = named.and_then(|fault| fault.subject.as_deref());
            match named.filter(|named| asked.contains(named) && !ALWAYS.contains(named)) {
                Some(named) => forget(&mut self.unknown, &self.vcenter, &self.api_version, named),
                None => return Err(error),
            }
        }
    }

    /// Newer simulators, and maybe servers, tell of an unknown property host by host.
    fn look_at_missing(&mut self, objects: &[ManagedObject]) {
        let mut denied = 0;
        for (path, fault) in objects.iter().flat_map(|object| &object.missing) {
            match fault {
                FaultKind::InvalidProperty
                    if !ALWAYS.contains(&&**path) && !self.unknown.contains(&**path) =>
                {
                    forget(&mut self.unknown, &self.vcenter, &self.api_version, path);
                }
                FaultKind::NoPermission => denied += 1,
                _ => {}
            }
        }
        if denied > 0 && !std::mem::replace(&mut self.said_unreadable, true) {
            tracing::warn!(
                vcenter = %self.vcenter.address,
                "{denied} properties can't be read: the account lacks the role Read-only on some objects"
            );
        }
        self.said_unreadable = denied > 0;
    }

    fn report(
        &mut self,
        collector: &dyn VcenterCollector,
        hosts: &[ManagedObject],
        inventory: &Inventory,
        is_whole: bool,
    ) -> Report {
        let answer = VcenterAnswer { vcenter: &self.vcenter, tree: &self.tree, hosts, inventory };
        let mut readings = collector.read(&answer);
        let before = self.reported.entry(collector.name()).or_default();
        if is_whole {
            let present: HashSet<Arc<str>> =
                readings.iter().map(|reading| Arc::clone(&reading.part)).collect();
            // The answer is whole, so what it does not name any more is gone, and not just silent.
            let gone = std::mem::take(before).into_iter().filter(|part| !present.contains(part));
            readings.extend(gone.map(|part| Reading { part, samples: Vec::new() }));
            *before = present;
        } else {
            // A host that was left out of the whole answer (a second one of its name, say) still is.
            readings.retain(|reading| before.contains(&reading.part));
        }
        Report {
            target: self.vcenter.id(),
            collector: collector.name(),
            readings,
            stale_after: Some(collector.stale_after()),
        }
    }
}

fn forget(unknown: &mut BTreeSet<String>, vcenter: &Vcenter, api_version: &str, property: &str) {
    tracing::warn!(
        vcenter = %vcenter.address,
        "API version {api_version} has no property {property} of HostSystem: its series are left out"
    );
    unknown.insert(property.to_owned());
}
