//! One vCenter, asked once.

mod bound;
mod known;
mod rarely;

use super::host_lists::HostList;
use crate::collectors::{VcenterAnswer, VcenterCollector};
use crate::config::VcenterConfig;
use crate::file_stamp::Digest;
use crate::inventory::{Discovery, Inventory, Vcenter};
use crate::outcome::{Failure, FailureReason};
use crate::readings::Report;
use crate::stats::Stats;
use crate::vim::VimClient;
use crate::vim::client::{Access, Live};
use crate::vim::model::{ManagedObject, Reference};
use crate::vim::property::Query;
use crate::vim::tls::{Certificate, Trust};
use bound::{Bound, readings_of};
use known::Unknown;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{Instrument, Span};

/// Properties without which nothing else makes sense.
const ALWAYS: [&str; 2] = ["name", "parent"];
/// Most hosts that are asked for by name; more are as quickly read with all the others.
const MOST_HINTED: usize = 200;
/// Calls to read a list by itself, each of which may take its whole time: what service there is, the login, the hosts.
const CALLS_OF_A_LIST: u32 = 3;
/// A look-up must not keep the news waiting for longer.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

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
    /// Its span, still open: for what comes of the answers.
    pub span: Span,
}

/// How vCenters are asked. May be replaced while polls are under way.
#[derive(Clone)]
pub struct PollSetup {
    /// Pause between two polls.
    pub interval: Duration,
    /// TLS, pages, limits.
    pub config: VcenterConfig,
    /// The content of the files that `config` names: one that keeps its name may be another one.
    pub files: Digest,
    /// On whose behalf.
    pub collectors: Vec<Arc<dyn VcenterCollector>>,
    /// As whom.
    pub access: Access,
    /// Which vCenters list hosts for the inventory; `None`: nobody visits any.
    pub discovery: Option<Discovery>,
}

/// Polls one vCenter, and keeps its session between polls. Whoever owns it calls
/// [`VcenterPoller::logout`] in the end, also after a poll that was cancelled.
pub struct VcenterPoller {
    vcenter: Arc<Vcenter>,
    config: VcenterConfig,
    collectors: Vec<Bound>,
    access: Access,
    stats: Arc<Stats>,
    client: Option<VimClient>,
    files: Digest,
    unknown: Unknown,
    /// When the poll that began last has to have ended, its details included.
    until: Instant,
    /// The details and look-ups of which it was said that they fail.
    failing: BTreeSet<&'static str>,
    /// What is above the hosts, from the last whole answer.
    tree: Vec<ManagedObject>,
    /// The hosts of the last whole answer by id: name and parent.
    hosts: HashMap<Arc<str>, Place>,
    /// Whether it was said that something is unreadable.
    said_unreadable: bool,
    /// The vCenter's list of hosts, for the inventory.
    list: Option<HostList>,
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
            collectors: collectors.into_iter().map(Bound::new).collect(),
            access,
            stats,
            client: None,
            files: Digest::default(),
            unknown: Unknown::default(),
            until: Instant::now(),
            failing: BTreeSet::new(),
            tree: Vec::new(),
            hosts: HashMap::new(),
            said_unreadable: false,
            list: None,
        }
    }

    /// Tells the inventory which hosts the vCenter lists.
    #[must_use]
    pub fn listing(mut self, list: HostList) -> Self {
        self.list = Some(list);
        self
    }

    /// Knows that the files of its configuration have this content.
    #[must_use]
    pub fn with_files(mut self, files: Digest) -> Self {
        self.files = files;
        self
    }

    /// Asks for other collectors, with another configuration and as somebody else, from the next poll on. The
    /// session goes on unless it is one that would not be opened so.
    pub async fn adapt(&mut self, setup: &PollSetup) {
        let account = |access: &Access| access.accounts.account_of_vcenter(&self.vcenter).cloned();
        let as_before = self.config == setup.config
            && self.files == setup.files
            && self.access.allow == setup.access.allow
            && account(&self.access) == account(&setup.access);
        if !as_before {
            self.logout().await;
            self.client = None;
        }
        self.config.clone_from(&setup.config);
        self.files = setup.files;
        self.access.clone_from(&setup.access);
        let mut before = std::mem::take(&mut self.collectors);
        let bound = |collector: &Arc<dyn VcenterCollector>| {
            let collector = Arc::clone(collector);
            match before.iter().position(|old| old.collector.name() == collector.name()) {
                Some(at) => before.swap_remove(at).goes_on_with(collector),
                None => Bound::new(collector),
            }
        };
        self.collectors = setup.collectors.iter().map(bound).collect();
        match &setup.discovery {
            Some(discovery) if self.list.is_none() => self.list = Some(HostList::new(discovery.clone())),
            Some(_) => {}
            None => self.list = None,
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

    /// Reads the vCenter once, for all collectors. Never takes longer than the shortest of their
    /// intervals; without any, than the calls of a list may take.
    pub async fn poll(&mut self, inventory: &Inventory) -> Polled {
        self.poll_scope(Scope::Tree, inventory).await
    }

    /// Reads these hosts alone (by their ids, `host-15` say) in one small request, and reports them alone:
    /// the series of the others stand. For hosts about which there is a hint that they have changed.
    ///
    /// A change of the tree can't be told by that: where there was no whole poll yet, or one of the hosts
    /// is new, gone, renamed or moved, this is a whole poll. So it is where there are more hosts than are
    /// worth a list of them. Within the same limit of time.
    pub async fn poll_hosts(&mut self, hosts: &[Arc<str>], inventory: &Inventory) -> Polled {
        let known = (1..=MOST_HINTED).contains(&hosts.len())
            && hosts.iter().all(|host| self.hosts.contains_key(host));
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
        let interval = self.collectors.iter().map(|bound| bound.collector.interval()).min();
        let (limit, what) = match interval {
            Some(interval) => (interval, "its interval of "),
            // A list that is read by itself keeps nobody waiting.
            None => (self.config.call_timeout * CALLS_OF_A_LIST, ""),
        };
        self.until = started + limit;
        let id = self.vcenter.id();
        let read = self.read(scope, inventory, self.until).instrument(span.clone());
        let result = tokio::time::timeout(limit, read).await.unwrap_or_else(|_| {
            let line = format!("polling {id} took longer than {what}{} s", limit.as_secs_f64());
            Err(Failure::new(FailureReason::CommandTimeout, line))
        });
        let (reports, is_whole, outcome) = match result {
            Ok((reports, is_whole)) => (reports, is_whole, Ok(())),
            Err(failure) => {
                crate::span::fail(&span, &failure);
                if let (Scope::Tree, Some(list)) = (scope, &self.list) {
                    list.failed(&self.vcenter, &failure).await;
                }
                (Vec::new(), false, Err(failure))
            }
        };
        Polled { reports, is_whole, outcome, duration: started.elapsed(), span }
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
        let trust = self.client.as_ref().map(VimClient::trust);
        let is_verified = trust.is_some_and(|trust| trust != Trust::Unverified);
        // The hosts' addresses are a join key of what is reported next.
        let listed = match &mut self.list {
            Some(list) if is_whole => list.found(&self.vcenter, &self.tree, &hosts, is_verified).await,
            _ => None,
        };
        let inventory = listed.as_deref().unwrap_or(inventory);
        let mut reports = Vec::with_capacity(2 * self.collectors.len());
        for index in 0..self.collectors.len() {
            let Some(bound) = self.collectors.get_mut(index) else { continue };
            bound.lookups.want(bound.reader.lookup(&hosts), is_whole);
            if let Some(lookup) = bound.lookups.unknown(Instant::now()) {
                let deadline = deadline.min(Instant::now() + LOOKUP_LIMIT);
                self.look_up(index, &lookup, deadline).await;
            }
            let Some(bound) = self.collectors.get_mut(index) else { continue };
            let answer = VcenterAnswer {
                vcenter: &self.vcenter,
                tree: &self.tree,
                hosts: &hosts,
                is_whole,
                inventory,
                texts: bound.lookups.texts(),
            };
            reports.push(Report {
                target: self.vcenter.id(),
                collector: bound.collector.name(),
                readings: readings_of(&mut *bound.reader, &mut bound.reported, &answer),
                stale_after: Some(bound.collector.stale_after()),
            });
            reports.extend(bound.ends_of_details(&self.vcenter, &hosts, inventory, is_whole));
        }
        Ok((reports, is_whole))
    }

    /// The whole tree: keeps what is above the hosts, and gives the hosts.
    async fn read_tree(&mut self, deadline: Instant) -> Result<Vec<ManagedObject>, Failure> {
        let mut wanted = self.wanted();
        if let Some(list) = &mut self.list {
            wanted.extend(list.properties(&self.vcenter));
        }
        let mut hosts = self.read_known_properties(None, &wanted, deadline).await?;
        Span::current().record("vim.objects", hosts.len());
        let tree: Vec<_> = hosts.extract_if(.., |object| &*object.kind != "HostSystem").collect();
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
        let hosts = match self.read_known_properties(Some(ids), &self.wanted(), deadline).await {
            Err(error) if error.is_about_an_object_of(&gone) => return Ok(None),
            hosts => hosts?,
        };
        Span::current().record("vim.objects", hosts.len());
        let is_in_its_place =
            |host: &ManagedObject| self.hosts.get(&host.id).is_some_and(|known| *known == Place::of(host));
        let all = hosts.len() == ids.len() && hosts.iter().all(is_in_its_place);
        Ok(all.then_some(hosts))
    }

    /// What the collectors want at each poll.
    fn wanted(&self) -> BTreeSet<&'static str> {
        let own = self.collectors.iter().flat_map(|bound| bound.collector.host_properties());
        ALWAYS.iter().chain(own).copied().collect()
    }
}
