//! One vCenter, asked once.

use crate::collectors::VcenterCollector;
use crate::config::VcenterConfig;
use crate::file_stamp::Digest;
use crate::inventory::{Inventory, Vcenter};
use crate::outcome::{Failure, FailureReason};
use crate::readings::{Reading, Report};
use crate::stats::Stats;
use crate::vim::VimClient;
use crate::vim::client::Access;
use crate::vim::model::ManagedObject;
use crate::vim::soap::FaultKind;
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
    /// The content of the certificates that `config` names: a file that keeps its name may be another one.
    pub trusted: Digest,
    /// On whose behalf.
    pub collectors: Vec<Arc<dyn VcenterCollector>>,
    /// As whom.
    pub access: Access,
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
    trusted: Digest,
    /// What this vCenter's version does not know, and which version that is.
    unknown: BTreeSet<String>,
    api_version: String,
    /// Number of hosts in the last whole answer.
    hosts: usize,
    /// Whether it was said that something is unreadable.
    said_unreadable: bool,
    /// The parts of the last report, so that the series of a host that is gone can be ended.
    reported: HashMap<&'static str, HashSet<Arc<str>>>,
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
            trusted: Digest::default(),
            unknown: BTreeSet::new(),
            api_version: String::new(),
            hosts: 0,
            said_unreadable: false,
            reported: HashMap::new(),
        }
    }

    /// Asks for other collectors, with another configuration and as somebody else, from the next poll on. The
    /// session goes on unless it is one that would not be opened so.
    pub async fn adapt(&mut self, setup: &PollSetup) {
        let account = |access: &Access| access.accounts.account_of_vcenter(&self.vcenter).cloned();
        let as_before = self.config == setup.config
            && self.trusted == setup.trusted
            && self.access.allow == setup.access.allow
            && account(&self.access) == account(&setup.access);
        if !as_before {
            self.logout().await;
            self.client = None;
        }
        self.config.clone_from(&setup.config);
        self.trusted = setup.trusted;
        self.collectors.clone_from(&setup.collectors);
        self.access.clone_from(&setup.access);
    }

    /// Which vCenter.
    pub fn vcenter(&self) -> &Arc<Vcenter> {
        &self.vcenter
    }

    /// Reads the vCenter once, for all collectors. Never takes longer than the shortest of their intervals.
    pub async fn poll(&mut self, inventory: &Inventory) -> Polled {
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
        let read = self.read(inventory, started + limit).instrument(span.clone());
        let result = tokio::time::timeout(limit, read).await.unwrap_or_else(|_| {
            let line = format!("polling {id} took longer than its interval of {} s", limit.as_secs_f64());
            Err(Failure::new(FailureReason::CommandTimeout, line))
        });
        let (reports, outcome) = match result {
            Ok(reports) => (reports, Ok(())),
            Err(failure) => {
                crate::span::fail(&span, &failure);
                (Vec::new(), Err(failure))
            }
        };
        Polled { reports, outcome, duration: started.elapsed(), span }
    }

    /// Ends the session, within a few seconds.
    pub async fn logout(&mut self) {
        if let Some(client) = &mut self.client {
            client.logout().await;
        }
    }

    async fn read(&mut self, inventory: &Inventory, deadline: Instant) -> Result<Vec<Report>, Failure> {
        let objects = self.read_known_properties(deadline).await?;
        Span::current().record("vim.objects", objects.len());
        let hosts = objects.iter().filter(|object| &*object.kind == "HostSystem").count();
        if hosts == 0 && self.hosts > 0 {
            let line = format!("{} lists no host after {}: suspect, ignored", self.vcenter.id(), self.hosts);
            return Err(Failure::new(FailureReason::AnswerUnreadable, line));
        }
        self.hosts = hosts;
        self.look_at_missing(&objects);
        let collectors = self.collectors.clone();
        Ok(collectors.iter().map(|collector| self.report(&**collector, &objects, inventory)).collect())
    }

    /// Asks for every property that the collectors want, without those that the vCenter turns out not to
    /// know.
    async fn read_known_properties(&mut self, deadline: Instant) -> Result<Vec<ManagedObject>, Failure> {
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
            let result = client.read_tree(&asked, deadline).await;
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
                None => return Err(error.failure),
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
        objects: &[ManagedObject],
        inventory: &Inventory,
    ) -> Report {
        let mut readings = collector.read(&self.vcenter, objects, inventory);
        let present: HashSet<Arc<str>> = readings.iter().map(|reading| Arc::clone(&reading.part)).collect();
        // The answer is whole, so what it does not name any more is gone, and not just silent.
        let before = self.reported.insert(collector.name(), present.clone()).unwrap_or_default();
        let gone = before.into_iter().filter(|part| !present.contains(part));
        readings.extend(gone.map(|part| Reading { part, samples: Vec::new() }));
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
