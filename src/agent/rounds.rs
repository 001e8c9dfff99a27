//! Everything that asks, built from a configuration, and how it is told of another one.

use super::StartError;
use crate::accounts::Accounts;
use crate::accounts::guard::Guard;
use crate::collectors;
use crate::config::Config;
use crate::file_stamp::Digest;
use crate::inventory::{Discovery, Inventory, InventoryWatch};
use crate::open_files;
use crate::poller::poll::PollSetup;
use crate::poller::visit::{Means, Visitor};
use crate::poller::{Concluded, HostCollectors, HostLists, HostVisits, Pace, Poller, VcenterPolls};
use crate::readings::Readings;
use crate::span::PastSpans;
use crate::ssh::{Connector, HostKeys};
use crate::stats::Stats;
use crate::vim::client::Access;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// As whom to log in, whether a login may be tried, and at which addresses.
pub async fn access(config: &Config, stats: &Arc<Stats>) -> Access {
    let guard = Guard::open(config.lockout.clone(), &config.state_dir, Arc::clone(stats)).await;
    access_by(config, Arc::new(guard))
}

fn access_by(config: &Config, guard: Arc<Guard>) -> Access {
    Access {
        accounts: Arc::new(Accounts::with_credentials(config.accounts.clone(), guard.credentials())),
        guard,
        allow: Arc::new(config.inventory.allow.clone()),
    }
}

/// Everything that asks, without the ways out.
pub struct Rounds {
    /// Visits and polls.
    pub poller: Poller,
    /// What they found.
    pub readings: Arc<Readings>,
    /// What the agent counts about itself.
    pub stats: Arc<Stats>,
    /// Asked before every login with a password.
    pub guard: Arc<Guard>,
    pub(super) controls: Controls,
    pub(super) first_result: watch::Receiver<bool>,
}

/// What the rooms that ask are told while they run, and what another configuration needs of the one before.
pub(super) struct Controls {
    pub(super) config: Arc<Config>,
    inventory: InventoryWatch,
    listed: watch::Receiver<Arc<Inventory>>,
    /// Who of the inventory is asked at all: nobody of a kind for which no collector is on.
    asked: watch::Sender<Arc<Inventory>>,
    pace: watch::Sender<Pace>,
    collectors: watch::Sender<HostCollectors>,
    means: watch::Sender<Means>,
    setup: watch::Sender<Arc<PollSetup>>,
    host_keys: Arc<HostKeys>,
    guard: Arc<Guard>,
    readings: Arc<Readings>,
    stats: Arc<Stats>,
}

/// What could go wrong with another configuration, done: the rest can't.
pub(super) struct Prepared {
    config: Arc<Config>,
    files: Digest,
    /// `None`: as before.
    host_keys: Option<Arc<HostKeys>>,
}

impl Rounds {
    /// Reads the inventory and builds what asks. Nothing is asked yet.
    ///
    /// # Errors
    /// When the inventory or the known host keys can't be read.
    pub async fn build(config: &Arc<Config>) -> Result<Self, StartError> {
        let (readings, stats) = (Readings::new(), Stats::new());
        Self::build_with(config, readings, stats, PastSpans::default(), CancellationToken::new()).await
    }

    /// The same, into `readings` and `stats` that others know, with spans, until `stop`.
    ///
    /// # Errors
    /// When the inventory or the known host keys can't be read.
    pub async fn build_with(
        config: &Arc<Config>,
        readings: Arc<Readings>,
        stats: Arc<Stats>,
        past_spans: PastSpans,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let inventory = InventoryWatch::start(&config.inventory, Arc::clone(&stats), stop).await?;
        let (listed, discovery) = (inventory.subscribe(), inventory.discovery());
        let access = access(config, &stats).await;
        let guard = Arc::clone(&access.guard);
        let host_keys = Arc::new(host_keys(config, &stats)?);

        let (asked, _) = watch::channel(asked_of(config, &listed.borrow()));
        let nobody = {
            let (asked, visits) = (asked.borrow(), kinds_asked(config).0);
            let lists = |vcenter: &Arc<_>| visits && discovery.of(vcenter).is_some();
            let is_listed = asked.vcenters_of_all_shards().iter().any(lists);
            let is_known = inventory.sources_in_trouble() == 0;
            asked.hosts.is_empty() && asked.vcenters.is_empty() && !is_listed && is_known
        };
        // A shard of a small fleet may be empty, and ready without any result. Not so one whose source is away.
        let (first, first_result) = watch::channel(nobody);

        let connector = Connector::new(
            config.ssh.clone(),
            Arc::clone(&host_keys),
            Arc::clone(&guard),
            Arc::clone(&stats),
        );
        let connector = connector.allowing(Arc::clone(&access.allow));
        let (means, by_means) = watch::channel(Means::new(connector, Arc::clone(&access.accounts)));
        let visitor = Visitor::following(by_means, Arc::clone(&stats), past_spans);
        let (collectors, for_collectors) = watch::channel(collectors::host_collectors(config).into());
        let hosts = HostVisits::new(
            visitor,
            for_collectors,
            Arc::clone(&readings),
            Arc::clone(&stats),
            first.clone(),
        );

        let setup = poll_setup(config, access, files(config).await, discovery);
        let (setup, by_setup) = watch::channel(Arc::new(setup));
        let lists = HostLists::new(by_setup.clone(), Arc::clone(&stats), first.clone());
        let vcenters = VcenterPolls::new(by_setup, Arc::clone(&readings), Arc::clone(&stats), first);
        let poller = Poller { hosts: Arc::new(hosts), vcenters: Arc::new(vcenters), lists: Arc::new(lists) };
        let controls = Controls {
            config: Arc::clone(config),
            inventory,
            listed,
            asked,
            pace: watch::channel(pace(config)).0,
            collectors,
            means,
            setup,
            host_keys,
            guard: Arc::clone(&guard),
            readings: Arc::clone(&readings),
            stats: Arc::clone(&stats),
        };
        Ok(Self { poller, readings, stats, guard, controls, first_result })
    }

    /// Everybody who is asked now.
    pub fn inventory(&self) -> Arc<Inventory> {
        asked_of(&self.controls.config, &self.controls.listed.borrow())
    }

    /// One round over everybody; `concluded` is told of each visit and poll that has ended.
    pub async fn round(&self, concluded: impl Fn(Concluded) + Sync) {
        self.poller.round(|| self.inventory(), &self.pace(), concluded).await;
    }

    /// Logs out everywhere, and writes down what the next start has to know. Bounded.
    pub async fn close(&mut self) {
        self.poller.close().await;
        self.guard.flush().await;
        self.controls.inventory.end().await;
    }

    /// What there is to say about the inventory, and how many of its sources can't be used.
    pub fn inventory_notes(&self) -> (Vec<String>, usize) {
        (self.controls.inventory.notes(), self.controls.inventory.sources_in_trouble())
    }

    /// Pace of the visits.
    pub fn pace(&self) -> Pace {
        self.controls.pace.borrow().clone()
    }

    /// How many targets one round asks.
    pub fn targets(&self) -> usize {
        let inventory = self.inventory();
        inventory.hosts.len() + inventory.vcenters.len()
    }

    /// One line for people if the process may not have all the sessions open that the inventory asks for.
    pub fn shortage_of_files(&self) -> Option<String> {
        self.controls.shortage_of_files()
    }

    /// Whether hosts, and whether vCenters are asked.
    pub fn asked(&self) -> (bool, bool) {
        kinds_asked(&self.controls.config)
    }
}

impl Controls {
    /// Everybody who is asked, now and later.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Inventory>> {
        self.asked.subscribe()
    }

    /// The pace, now and later.
    pub(super) fn paces(&self) -> watch::Receiver<Pace> {
        self.pace.subscribe()
    }

    /// How many hosts are asked.
    pub(super) fn hosts(&self) -> usize {
        self.asked.borrow().hosts.len()
    }

    pub(super) fn shortage_of_files(&self) -> Option<String> {
        let hosts = asked_of(&self.config, &self.listed.borrow()).hosts.len();
        let (reused, most) = (self.config.ssh.reuse_sessions, self.pace.borrow().max_in_flight);
        open_files::shortage(if reused { hosts } else { hosts.min(most) })
    }

    /// Waits until the inventory has changed. Then [`Self::publish`].
    pub(super) async fn inventory_changed(&mut self) {
        if self.listed.changed().await.is_err() {
            // Nothing watches it: it stands as it is.
            std::future::pending::<()>().await;
        }
    }

    /// Tells who is asked from now on.
    pub(super) fn publish(&mut self) {
        let asked = asked_of(&self.config, &self.listed.borrow_and_update());
        self.asked.send_if_modified(|before| {
            let differs = *before != asked;
            if differs {
                *before = asked;
            }
            differs
        });
    }

    /// Does what can fail of taking over `config`. If nothing does and it `looks_anew`, the inventory has changed
    /// already, as its sources had to be looked at; nobody hears of that before [`Self::apply`].
    ///
    /// # Errors
    /// When the inventory or the known host keys can't be read; nothing has changed then.
    pub(super) async fn prepare(
        &mut self,
        config: Arc<Config>,
        looks_anew: bool,
    ) -> Result<Prepared, StartError> {
        let same_keys = self.config.ssh.known_hosts == config.ssh.known_hosts
            && self.config.ssh.host_key_policy == config.ssh.host_key_policy;
        let host_keys = match same_keys {
            true => None,
            false => Some(Arc::new(host_keys(&config, &self.stats)?)),
        };
        let files = files(&config).await;
        if looks_anew {
            self.inventory.reconfigure(&config.inventory).await?;
        }
        Ok(Prepared { config, files, host_keys })
    }

    /// Takes over what was prepared: every room hears of what concerns it.
    pub(super) fn apply(&mut self, prepared: Prepared) {
        let Prepared { config, files, host_keys } = prepared;
        if let Some(host_keys) = host_keys {
            self.host_keys = host_keys;
        }
        let access = access_by(&config, Arc::clone(&self.guard));
        let connector = self.means.borrow().connector.configured(
            config.ssh.clone(),
            Arc::clone(&self.host_keys),
            Arc::clone(&access.allow),
        );
        self.means.send_replace(Means::new(connector, Arc::clone(&access.accounts)));
        self.setup.send_replace(Arc::new(poll_setup(&config, access, files, self.inventory.discovery())));
        let collectors: HostCollectors = collectors::host_collectors(&config).into();
        for collector in collectors.iter() {
            self.readings.keep_parts(collector.name(), |part| collector.asks_for(part));
        }
        self.collectors.send_replace(collectors);
        let pace = pace(&config);
        self.pace.send_if_modified(|before| std::mem::replace(before, pace.clone()) != pace);
        self.config = config;
        self.publish();
    }

    /// Ends the watch over the inventory. What is to be remembered of it is written down then.
    pub(super) async fn stopped(mut self) {
        self.inventory.end().await;
    }
}

/// Read at once where hosts are asked, so that an unreadable file is told at the start.
fn host_keys(config: &Config, stats: &Arc<Stats>) -> Result<HostKeys, StartError> {
    let stats = Arc::clone(stats);
    match kinds_asked(config) {
        (true, _) => Ok(HostKeys::load(&config.ssh, stats)?),
        (false, _) => Ok(HostKeys::new(config.ssh.known_hosts.clone(), config.ssh.host_key_policy, stats)),
    }
}

/// Whether hosts, and whether vCenters are asked.
fn kinds_asked(config: &Config) -> (bool, bool) {
    (!collectors::host_collectors(config).is_empty(), !collectors::vcenter_collectors(config).is_empty())
}

fn asked_of(config: &Config, listed: &Arc<Inventory>) -> Arc<Inventory> {
    let (hosts, vcenters) = kinds_asked(config);
    if hosts && vcenters {
        return Arc::clone(listed);
    }
    let mut asked = (**listed).clone();
    if !hosts {
        asked.hosts.clear();
    }
    if !vcenters {
        asked.vcenters.clear();
    }
    Arc::new(asked)
}

fn pace(config: &Config) -> Pace {
    config.critical_service.as_ref().map_or(
        Pace { interval: Duration::from_secs(60), max_in_flight: 1 },
        |critical| Pace { interval: critical.interval, max_in_flight: critical.max_in_flight },
    )
}

fn poll_setup(config: &Config, access: Access, files: Digest, discovery: Discovery) -> PollSetup {
    let collectors = collectors::vcenter_collectors(config);
    let interval = collectors.iter().map(|collector| collector.interval()).min();
    PollSetup {
        interval: interval.unwrap_or(Duration::from_secs(30)),
        config: config.vcenter.clone(),
        files,
        collectors,
        access,
        discovery: kinds_asked(config).0.then_some(discovery),
    }
}

/// For whoever wants the lists of hosts that vCenters have, and nothing else of them.
pub fn lists_alone(config: &Config, access: Access, discovery: Discovery) -> PollSetup {
    let setup = poll_setup(config, access, Digest::default(), discovery);
    PollSetup { collectors: Vec::new(), ..setup }
}

async fn files(config: &Config) -> Digest {
    let vcenter = config.vcenter.clone();
    let read = move || Digest::of(vcenter.files().iter().map(PathBuf::as_path));
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}
