//! The composition root: builds every part from the configuration, spawns, and drains. Only this module
//! and the verbs know everybody.

mod reload;
mod rounds;
mod web;

pub use reload::Reload;
pub use rounds::{Rounds, access, lists_alone};

use crate::config::watch::ConfigWatch;
use crate::config::{Config, Sources};
use crate::inventory::InventoryError;
use crate::outcome::Failure;
use crate::poller::Now;
use crate::readings::Readings;
use crate::stats::Stats;
use crate::telemetry::export::Exporter;
use crate::telemetry::{Console, Telemetry, TelemetryError, catalog};
use crate::web::{BindError, Shown, Web};
use reload::{Reloader, Requests};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
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

/// The agent: everything that asks, and the ways out.
pub struct Agent {
    rounds: Rounds,
    telemetry: Telemetry,
    web: Option<Web>,
    now: Now,
    notes: Vec<String>,
    reload: (Reload, Requests),
    files: Option<ConfigWatch>,
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
    /// Reads the configuration again.
    pub reload: Reload,
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
            let web = web::bind(&config).await?;
            let rounds = Rounds::build_with(&config, readings, stats, spans, stop_watching.clone()).await?;
            Ok::<_, StartError>((rounds, web))
        };
        let (rounds, web) = building.with_subscriber(telemetry.dispatch.clone()).await?;
        undo.disarm();
        let (now, reload) = (Now::default(), Reload::new());
        Ok(Self { rounds, telemetry, web, now, notes, reload, files: None, stop_watching })
    }

    /// The same, which follows the files of its configuration: those that were loaded from `sources`, of
    /// which one is the `file`. Blocks for a moment.
    #[must_use]
    pub fn following(mut self, sources: Sources, file: Option<&Path>) -> Self {
        self.files = Some(ConfigWatch::new(sources, file, &self.rounds.controls.config));
        self
    }

    /// Handles to the agent, to be taken before it runs.
    pub fn handle(&self) -> AgentHandle {
        AgentHandle {
            web: self.web.as_ref().map(Web::address),
            readings: Arc::clone(&self.rounds.readings),
            stats: Arc::clone(&self.rounds.stats),
            now: self.now.clone(),
            exporter: self.telemetry.exporter().cloned(),
            reload: self.reload.0.clone(),
        }
    }

    /// Runs until `stop`; then stops visiting, logs out, and sends the last points, spans and logs, within
    /// 10 s.
    pub async fn run(self, stop: CancellationToken) {
        let dispatch = self.telemetry.dispatch.clone();
        self.work(stop).with_subscriber(dispatch).await;
    }

    async fn work(self, stop: CancellationToken) {
        let Self { rounds, telemetry, web, now, notes, reload: (_reload, requests), files, stop_watching } =
            self;
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

        telemetry.make_room(everybody.hosts.len());
        let Rounds { poller, readings, stats, guard, controls, first_result } = rounds;
        let asking =
            poller.run(controls.subscribe(), controls.paces(), &now, Arc::clone(&stats), stop.clone());
        let asking = async {
            tokio::pin!(asking);
            tokio::select! {
                () = &mut asking => {}
                () = async { stop.cancelled().await; tokio::time::sleep(LOGOUT_LIMIT).await } => {
                    warn!("not everybody could be logged out within {LOGOUT_LIMIT:?}");
                }
            }
        };
        let (changing, listening) = web::changing();
        let shown = Shown {
            defs: catalog::all().into(),
            readings: Arc::clone(&readings),
            stats: Arc::clone(&stats),
            ready: first_result,
        };
        let serving = listening.run(web, shown, stop.clone());
        let following =
            Reloader::new(controls, changing, &telemetry, stats, files).run(requests, stop.clone());
        let ((), (), controls) = tokio::join!(asking, serving, following);
        // A login whose verdict is not written down counts as lost. A disk that hangs must not take the time that the
        // last points have.
        let flushing = tokio::time::timeout(FLUSH_LIMIT, guard.flush());
        let _ = tokio::join!(flushing, telemetry.shutdown(FLUSH_LIMIT));
        stop_watching.cancel();
        controls.stopped().await;
    }
}
