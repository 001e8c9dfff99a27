//! Visits wrapped: which collectors are due, what becomes of the answers and of the outcome.

use super::lane::Lane;
use super::schedule::{Pace, Visits};
use super::visit::Visitor;
use super::{Concluded, count, series};
use crate::collectors::HostCollector;
use crate::inventory::{Host, Inventory};
use crate::outcome::Failure;
use crate::readings::Readings;
use crate::stats::Stats;
use crate::target::{TargetId, TargetKind};
use futures::StreamExt;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Those that ask hosts.
pub type HostCollectors = Arc<[Arc<dyn HostCollector>]>;

/// The visits of all hosts.
pub struct HostVisits {
    visitor: Visitor,
    collectors: watch::Receiver<HostCollectors>,
    /// When each collector last asked a host.
    asked: Mutex<HashMap<TargetId, HashMap<&'static str, Instant>>>,
    readings: Arc<Readings>,
    stats: Arc<Stats>,
    first_result: watch::Sender<bool>,
}

impl HostVisits {
    /// Visits on behalf of `collectors`: each visit for those of its time. `first_result` becomes true with the first visit that ended.
    pub fn new(
        visitor: Visitor,
        collectors: watch::Receiver<HostCollectors>,
        readings: Arc<Readings>,
        stats: Arc<Stats>,
        first_result: watch::Sender<bool>,
    ) -> Self {
        Self { visitor, collectors, asked: Mutex::default(), readings, stats, first_result }
    }

    /// Visits every host once, at most `pace.max_in_flight` at a time.
    pub(super) async fn round(
        &self,
        inventory: &Inventory,
        pace: &Pace,
        concluded: &(impl Fn(Concluded) + Sync),
    ) {
        let collectors = &self.collectors();
        let visits = inventory.hosts.iter().map(|host| async move {
            let (failure, _) = self.visit_all(host, collectors, pace.interval).await;
            concluded(Concluded { target: host.id(), failure });
        });
        futures::stream::iter(visits).buffer_unordered(pace.max_in_flight).collect::<()>().await;
    }

    /// Ends every kept session. Bounded.
    pub(super) async fn close_all(&self) {
        self.visitor.close_all().await;
    }

    fn collectors(&self) -> HostCollectors {
        Arc::clone(&self.collectors.borrow())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TargetId, HashMap<&'static str, Instant>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The collectors whose own interval is over, half a visit's interval of tolerance included.
    fn due(&self, host: &TargetId, interval: Duration) -> Vec<Arc<dyn HostCollector>> {
        let now = Instant::now();
        let mut asked = self.lock();
        let asked = asked.entry(host.clone()).or_default();
        let is_due = |collector: &&Arc<dyn HostCollector>| {
            asked.get(collector.name()).is_none_or(|at| now + interval / 2 >= *at + collector.interval())
        };
        let due: Vec<_> = self.collectors().iter().filter(is_due).cloned().collect();
        for collector in &due {
            asked.insert(collector.name(), now);
        }
        due
    }

    /// One visit, its samples and its outcome stored, its end counted.
    async fn visit_all(
        &self,
        host: &Arc<Host>,
        due: &[Arc<dyn HostCollector>],
        limit: Duration,
    ) -> (Option<Failure>, Lane) {
        let visited = self.visitor.visit(host, due, limit).await;
        // What changed was seen by this visit.
        let _seen_by = visited.span.entered();
        for report in visited.reports {
            self.readings.record(report);
        }
        let failure = visited.outcome.err();
        count(&self.stats, TargetKind::Host, failure.as_ref());
        series::conclude_visit(&self.readings, host, failure.clone(), visited.duration);
        self.first_result.send_if_modified(|first| !std::mem::replace(first, true));
        let lane = Lane::after(failure.as_ref(), visited.reached, visited.duration);
        (failure, lane)
    }
}

impl Visits for HostVisits {
    async fn visit(&self, host: Arc<Host>, limit: Duration) -> Option<Lane> {
        let due = self.due(&host.id(), limit);
        if due.is_empty() {
            return None;
        }
        let (_, lane) = self.visit_all(&host, &due, limit).await;
        if lane != Lane::Normal {
            // Nothing was answered: whenever the next visit comes, everything is due.
            self.lock().remove(&host.id());
        }
        Some(lane)
    }

    fn forget(&self, host: &TargetId) {
        self.lock().remove(host);
        self.visitor.forget(host);
        self.readings.forget(host);
    }

    fn hurry(&self) {
        self.lock().clear();
        self.visitor.ask_all();
    }
}
