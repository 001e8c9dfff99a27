//! The composition root: builds every part from the configuration, spawns, and drains. Only this module
//! and the verbs know everybody.

use crate::accounts::Accounts;
use crate::accounts::guard::Guard;
use crate::collectors;
use crate::config::Config;
use crate::inventory::{Inventory, InventoryError, InventoryWatch};
use crate::open_files;
use crate::outcome::Failure;
use crate::poller::{Concluded, HostList, HostLists, HostVisits, Now, Pace, Poller, VcenterPolls};
use crate::poller::{poll::VcenterPoller, visit::Visitor};
use crate::readings::Readings;
use crate::span::PastSpans;
use crate::ssh::{Connector, HostKeys};
use crate::stats::Stats;
use crate::telemetry::export::Exporter;
use crate::telemetry::{Console, Telemetry, TelemetryError, catalog};
use crate::vim::client::Access;
use crate::web::{BindError, Shown, Web};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;
use tracing::{info, warn};

/// Time for logging out everywhere once the agent is stopped.
const LOGOUT_LIMIT: Duration = Duration::from_secs(4);
/// Time for the last points, spans and logs after that. Together below the 10 s that service managers and
/// operators expect.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// Why the agent could not be built. One line each.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The inventory can't be read, and there is no older one yet.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The way out can't be built.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The port can't be had.
    #[error(transparent)]
    Web(#[from] BindError),
    /// The host keys can't be read.
    #[error("{0}")]
    HostKeys(#[from] Failure),
}

/// As whom to log in, whether a login may be tried, and at which addresses.
pub async fn access(config: &Config, stats: &Arc<Stats>) -> Access {
    let guard = Guard::open(config.lockout.clone(), &config.state_dir, Arc::clone(stats)).await;
    Access {
        accounts: Arc::new(Accounts::with_credentials(config.accounts.clone(), guard.credentials())),
        guard: Arc::new(guard),
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
    /// Pace of the visits.
    pub pace: Pace,
    reuse_sessions: bool,
    /// Asked before every login with a password.
    pub guard: Arc<Guard>,
    inventory: InventoryWatch,
    first_result: watch::Receiver<bool>,
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
        let Access { accounts, guard, allow } = access(config, &stats).await;
        let discovery = inventory.discovery();
        let nobody = {
            let inventory = inventory.subscribe();
            let inventory = inventory.borrow();
            let lists = |vcenter: &Arc<_>| discovery.of(vcenter).is_some();
            let no_hosts = config.critical_service.is_none()
                || inventory.hosts.is_empty() && !inventory.vcenters_of_all_shards().iter().any(lists);
            no_hosts && (config.overall_state.is_none() || inventory.vcenters.is_empty())
        };
        // A shard of a small fleet may be empty, and ready without any result.
        let (first, first_result) = watch::channel(nobody);

        let pace = config.critical_service.as_ref().map_or(
            Pace { interval: Duration::from_secs(60), max_in_flight: 1 },
            |critical| Pace { interval: critical.interval, max_in_flight: critical.max_in_flight },
        );
        let host_collectors = collectors::host_collectors(config);
        let hosts = if host_collectors.is_empty() {
            None
        } else {
            let host_keys = Arc::new(HostKeys::load(&config.ssh, Arc::clone(&stats))?);
            let connector =
                Connector::new(config.ssh.clone(), host_keys, Arc::clone(&guard), Arc::clone(&stats));
            let connector = connector.allowing(Arc::clone(&allow));
            let visitor = Visitor::new(connector, Arc::clone(&accounts), Arc::clone(&stats), past_spans);
            let (readings, stats) = (Arc::clone(&readings), Arc::clone(&stats));
            Some(Arc::new(HostVisits::new(visitor, host_collectors, readings, stats, first.clone())))
        };
        let lists = hosts.is_some().then(|| {
            let (discovery, settings, stats) =
                (discovery.clone(), config.vcenter.clone(), Arc::clone(&stats));
            let access = Access {
                accounts: Arc::clone(&accounts),
                guard: Arc::clone(&guard),
                allow: Arc::clone(&allow),
            };
            let polls = config.overall_state.is_some();
            Arc::new(HostLists::new(discovery, settings, access, stats, polls, first.clone()))
        });

        let vcenter_collectors = collectors::vcenter_collectors(config);
        let vcenters = config.overall_state.as_ref().map(|overall| {
            let access = Access { accounts, guard: Arc::clone(&guard), allow };
            let settings = config.vcenter.clone();
            let (collectors, counted) = (vcenter_collectors, Arc::clone(&stats));
            let make = Box::new(move |vcenter| {
                let (collectors, stats) = (collectors.clone(), Arc::clone(&counted));
                VcenterPoller::new(vcenter, settings.clone(), collectors, access.clone(), stats)
                    .listing(HostList::new(discovery.clone()))
            });
            let (readings, stats) = (Arc::clone(&readings), Arc::clone(&stats));
            Arc::new(VcenterPolls::new(make, overall.interval, readings, stats, first))
        });
        let poller = Poller { hosts, vcenters, lists };
        let reuse_sessions = config.ssh.reuse_sessions;
        Ok(Self { poller, readings, stats, pace, reuse_sessions, guard, inventory, first_result })
    }

    /// Everybody who is there now.
    pub fn inventory(&self) -> Arc<Inventory> {
        Arc::clone(&self.inventory.subscribe().borrow())
    }

    /// One round over everybody; `concluded` is told of each visit and poll that has ended.
    pub async fn round(&self, concluded: impl Fn(Concluded) + Sync) {
        self.poller.round(&self.inventory.subscribe(), &self.pace, concluded).await;
    }

    /// Logs out everywhere, and writes down what the next start has to know. Bounded.
    pub async fn close(&mut self) {
        self.poller.close().await;
        self.guard.flush().await;
        self.inventory.end().await;
    }

    /// What there is to say about the inventory, and how many of its sources can't be used.
    pub fn inventory_notes(&self) -> (Vec<String>, usize) {
        (self.inventory.notes(), self.inventory.sources_in_trouble())
    }

    /// How many targets one round asks.
    pub fn targets(&self) -> usize {
        let inventory = self.inventory();
        let hosts = self.poller.hosts.as_ref().map_or(0, |_| inventory.hosts.len());
        hosts + self.poller.vcenters.as_ref().map_or(0, |_| inventory.vcenters.len())
    }

    /// One line for people if the process may not have all the sessions open that the inventory asks for.
    pub fn shortage_of_files(&self) -> Option<String> {
        let hosts = self.poller.hosts.as_ref().map_or(0, |_| self.inventory().hosts.len());
        open_files::shortage(if self.reuse_sessions { hosts } else { hosts.min(self.pace.max_in_flight) })
    }

    /// Whether hosts, and whether vCenters are asked.
    pub fn asked(&self) -> (bool, bool) {
        (self.poller.hosts.is_some(), self.poller.vcenters.is_some())
    }
}

/// The agent: everything that asks, and the ways out.
pub struct Agent {
    rounds: Rounds,
    telemetry: Telemetry,
    web: Option<Web>,
    now: Now,
    notes: Vec<String>,
    /// Ends what runs from the building on: the watch over the inventory, the exporter.
    stop_watching: CancellationToken,
}

/// For whoever started an agent in the same process: tests and the demo.
#[derive(Clone)]
pub struct AgentHandle {
    /// Where `/metrics` is, if it is on.
    pub web: Option<SocketAddr>,
    /// What was found.
    pub readings: Arc<Readings>,
    /// What the agent counts about itself.
    pub stats: Arc<Stats>,
    /// Makes everybody due at once.
    pub now: Now,
    /// Asks for an export at once; `None`: nothing is pushed.
    pub exporter: Option<Exporter>,
}

impl Agent {
    /// Builds every part and binds the port; nothing is asked yet. `notes` are said once at the start.
    ///
    /// # Errors
    /// When a part can't be built; nothing is left behind then.
    pub async fn build(
        config: Arc<Config>,
        notes: Vec<String>,
        console: Option<Console>,
    ) -> Result<Self, StartError> {
        let (readings, stats) = (Readings::new(), Stats::new());
        let stop_watching = CancellationToken::new();
        // Whatever was started is stopped if something later can't be built.
        let undo = stop_watching.clone().drop_guard();
        let telemetry = Telemetry::start(
            &config,
            Arc::clone(&readings),
            Arc::clone(&stats),
            console,
            stop_watching.clone(),
        )?;
        let spans = telemetry.past_spans();
        let building = async {
            let web = match &config.prometheus {
                Some(prometheus) => Some(Web::bind(prometheus).await?),
                None => None,
            };
            let rounds = Rounds::build_with(&config, readings, stats, spans, stop_watching.clone()).await?;
            Ok::<_, StartError>((rounds, web))
        };
        let (rounds, web) = building.with_subscriber(telemetry.dispatch.clone()).await?;
        undo.disarm();
        Ok(Self { rounds, telemetry, web, now: Now::default(), notes, stop_watching })
    }

    /// Handles to the agent, to be taken before it runs.
    pub fn handle(&self) -> AgentHandle {
        AgentHandle {
            web: self.web.as_ref().map(Web::address),
            readings: Arc::clone(&self.rounds.readings),
            stats: Arc::clone(&self.rounds.stats),
            now: self.now.clone(),
            exporter: self.telemetry.exporter().cloned(),
        }
    }

    /// Runs until `stop`; then stops visiting, logs out, and sends the last points, spans and logs, within
    /// 10 s.
    pub async fn run(self, stop: CancellationToken) {
        let dispatch = self.telemetry.dispatch.clone();
        self.work(stop).with_subscriber(dispatch).await;
    }

    async fn work(self, stop: CancellationToken) {
        let Self { rounds, telemetry, web, now, notes, stop_watching } = self;
        for note in notes.into_iter().chain(rounds.shortage_of_files()) {
            warn!("{note}");
        }
        let everybody = rounds.inventory();
        info!(
            hosts = everybody.hosts.len(),
            vcenters = everybody.vcenters.len(),
            web = web.as_ref().map(|web| tracing::field::display(web.address())),
            "esxi-otel-agent {} runs",
            env!("CARGO_PKG_VERSION")
        );

        let (_keep, pace) = watch::channel(rounds.pace.clone());
        let inventory = rounds.inventory.subscribe();
        let asking = rounds.poller.run(inventory, pace, &now, Arc::clone(&rounds.stats), stop.clone());
        let asking = async {
            tokio::pin!(asking);
            tokio::select! {
                () = &mut asking => {}
                () = async { stop.cancelled().await; tokio::time::sleep(LOGOUT_LIMIT).await } => {
                    warn!("not everybody could be logged out within {LOGOUT_LIMIT:?}");
                }
            }
        };
        let serving = async {
            if let Some(web) = web {
                let shown = Shown {
                    defs: catalog::all().into(),
                    readings: Arc::clone(&rounds.readings),
                    stats: Arc::clone(&rounds.stats),
                    ready: rounds.first_result.clone(),
                };
                web.serve(shown, stop.clone()).await;
            }
        };
        // The hosts that vCenters list are known only by and by.
        let counting = async {
            let mut inventory = rounds.inventory.subscribe();
            let mut told = rounds.shortage_of_files().is_some();
            while !told && stop.run_until_cancelled(inventory.changed()).await.is_some_and(|c| c.is_ok()) {
                if let Some(shortage) = rounds.shortage_of_files() {
                    warn!("{shortage}");
                    told = true;
                }
            }
        };
        tokio::join!(asking, serving, counting);
        // A login whose verdict is not written down counts as lost.
        rounds.guard.flush().await;
        telemetry.shutdown(FLUSH_LIMIT).await;
        stop_watching.cancel();
        rounds.inventory.stopped().await;
    }
}
