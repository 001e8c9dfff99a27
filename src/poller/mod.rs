//! The poller: who is asked when, and what becomes of how it ended.
//!
//! `schedule` decides when, `visit` asks one host once, `poll` asks one vCenter once, `pool` keeps the
//! sessions. Every visit and poll is wrapped here, once: its samples and its outcome go to the readings,
//! its end is counted.

mod callers;
mod details;
mod each;
mod hints;
mod host_lists;
mod hosts;
mod hung;
mod lane;
mod lookups;
pub mod poll;
pub mod pool;
mod schedule;
pub mod series;
mod vcenters;
pub mod visit;

pub use host_lists::{HostList, HostLists};
pub use hosts::{HostCollectors, HostVisits};
pub use lane::Lane;
pub use schedule::Pace;
pub use vcenters::VcenterPolls;

use crate::inventory::Inventory;
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::outcome::Failure;
use crate::stats::Stats;
use crate::target::{TargetId, TargetKind};
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Ended visits and polls.
pub static ROUNDS: MetricDef = MetricDef {
    name: "esxi.agent.visits",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Ended visits of hosts and polls of vCenters, by outcome: success or the reason of the failure.",
    attributes: &["kind", "outcome"],
};

/// The agent's own metrics of this room.
pub static METRICS: &[&MetricDef] = &[&ROUNDS, &schedule::OVERRUNS, &lane::LANES, &hints::HINTS];

/// Both ways of asking, for whoever runs them: round after round (`run`) or one round (`once`).
pub struct Poller {
    /// Visits by SSH.
    pub hosts: Arc<HostVisits>,
    /// Polls by SOAP.
    pub vcenters: Arc<VcenterPolls>,
    /// Which hosts vCenters list.
    pub lists: Arc<HostLists>,
}

/// The end of one visit or poll, for whoever counts along.
#[derive(Debug, Clone)]
pub struct Concluded {
    /// Whose.
    pub target: TargetId,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
}

impl Poller {
    /// Visits and polls everybody at their paces until cancelled; then logs out everywhere. Whoever
    /// notifies `now` makes everybody due at once.
    pub async fn run(
        &self,
        inventory: watch::Receiver<Arc<Inventory>>,
        pace: watch::Receiver<Pace>,
        now: &Now,
        stats: Arc<Stats>,
        cancel: CancellationToken,
    ) {
        let hosts = async {
            self.run_hosts(inventory.clone(), pace, now, stats, cancel.clone()).await;
            self.hosts.close_all().await;
        };
        let vcenters =
            Arc::clone(&self.vcenters).run(inventory.clone(), Arc::clone(&now.vcenters), cancel.clone());
        let lists = Arc::clone(&self.lists).run(inventory.clone(), Arc::clone(&now.lists), cancel.clone());
        tokio::join!(hosts, vcenters, lists);
        debug!("everybody is logged out");
    }

    /// Visits the hosts alone at their pace until cancelled, and keeps the sessions.
    pub async fn run_hosts(
        &self,
        inventory: watch::Receiver<Arc<Inventory>>,
        pace: watch::Receiver<Pace>,
        now: &Now,
        stats: Arc<Stats>,
        cancel: CancellationToken,
    ) {
        let callers = self.vcenters.callers();
        let (hosts, now) = (Arc::clone(&self.hosts), Arc::clone(&now.hosts));
        schedule::Schedule::new(hosts, inventory, pace, now, callers, stats).run(cancel).await;
    }

    /// Asks everybody once, at most `pace.max_in_flight` hosts at a time; keeps the sessions. `now` says who
    /// there is: where vCenters list hosts they come first, and then those hosts as well.
    pub async fn round(
        &self,
        now: impl Fn() -> Arc<Inventory>,
        pace: &Pace,
        concluded: impl Fn(Concluded) + Sync,
    ) {
        let (concluded, first) = (&concluded, now());
        let visits = async |inventory: &Inventory| self.hosts.round(inventory, pace, concluded).await;
        let polls = self.vcenters.round(&first, concluded);
        if self.lists.are_wanted() {
            tokio::join!(self.lists.round(&first), polls);
            visits(&now()).await;
        } else {
            tokio::join!(visits(&first), polls);
        }
    }

    /// Ends every kept session and logs out of every vCenter. Bounded.
    pub async fn close(&self) {
        tokio::join!(self.hosts.close_all(), self.vcenters.logout_all(), self.lists.logout_all());
    }
}

/// Handles that make everybody due at once.
#[derive(Debug, Clone, Default)]
pub struct Now {
    hosts: Arc<Notify>,
    vcenters: Arc<Notify>,
    lists: Arc<Notify>,
}

impl Now {
    /// Visits and polls everybody now.
    pub fn everybody(&self) {
        self.lists.notify_one();
        self.hosts.notify_one();
        self.vcenters.notify_one();
    }
}

/// Counts the end of a visit or poll.
fn count(stats: &Stats, kind: TargetKind, failure: Option<&Failure>) {
    let outcome = failure.map_or("success", |failure| failure.reason.word());
    stats.add(&ROUNDS, Attributes::new([("kind", kind.word()), ("outcome", outcome)]), 1.0);
}
