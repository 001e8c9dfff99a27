//! When hosts are visited.
//!
//! Each host has a stable phase in the interval (a hash of its address), so that a fleet's visits are
//! spread evenly and stay where they are over restarts. One task owns the whole timetable: a host that
//! is not being visited costs an entry in a heap, not a task.

use crate::inventory::{Host, Inventory};
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::stats::Stats;
use crate::target::TargetId;
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;
use tracing::{debug, warn};

/// Visits that had not ended when their interval was over.
pub static OVERRUNS: MetricDef = MetricDef {
    name: "esxi.agent.overruns",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Visits and polls that had not ended when the next one was due.",
    attributes: &["kind"],
};

/// Pause between the first visits of two hosts after the start, so that a small fleet is known within
/// seconds and a large one is not rushed at.
const START_RAMP: Duration = Duration::from_millis(20);

/// Pace and width of the visits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// Time between the starts of two visits of one host.
    pub interval: Duration,
    /// Most visits at a time.
    pub max_in_flight: usize,
}

/// What the timetable drives.
pub trait Visits: Send + Sync + 'static {
    /// Visits the host once and keeps what came of it. Ends within `limit` by itself.
    fn visit(&self, host: Arc<Host>, limit: Duration) -> impl Future<Output = ()> + Send;
    /// The host has left the inventory; no visit of it is under way.
    fn forget(&self, host: &TargetId);
    /// Somebody asked for visits now: the next ones ask everything, whatever is due.
    fn hurry(&self) {}
}

/// The timetable of all hosts.
pub struct Schedule<V> {
    visits: Arc<V>,
    inventory: watch::Receiver<Arc<Inventory>>,
    pace: watch::Receiver<Pace>,
    now: Arc<Notify>,
    stats: Arc<Stats>,
}

struct Entry {
    host: Arc<Host>,
    /// Place in the interval, 0..1.
    phase: f64,
    /// When the visit that is waiting or under way was due.
    due: Instant,
    running: Option<AbortHandle>,
}

/// A host that is due. The heap may hold outdated ones: only the one that agrees with its entry counts.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due(Instant, TargetId);

#[derive(Default)]
struct Timetable {
    entries: HashMap<TargetId, Entry>,
    heap: BinaryHeap<Reverse<Due>>,
    running: JoinSet<()>,
    who: HashMap<Id, TargetId>,
    late: usize,
    told: Option<Instant>,
}

impl<V: Visits> Schedule<V> {
    /// A timetable over the hosts of `inventory`. Whoever notifies `now` makes every host due at once.
    pub fn new(
        visits: Arc<V>,
        inventory: watch::Receiver<Arc<Inventory>>,
        pace: watch::Receiver<Pace>,
        now: Arc<Notify>,
        stats: Arc<Stats>,
    ) -> Self {
        Self { visits, inventory, pace, now, stats }
    }

    /// Visits until cancelled. Visits under way are then dropped: they are no failures.
    pub async fn run(mut self, cancel: CancellationToken) {
        let start = Instant::now();
        let mut table = Timetable::default();
        self.reconcile(&mut table, start);
        loop {
            let pace = self.pace.borrow_and_update().clone();
            let next = table.next_due().filter(|_| table.running.len() < pace.max_in_flight);
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Ok(()) = self.inventory.changed() => self.reconcile(&mut table, start),
                Ok(()) = self.pace.changed() => {}
                Some(ended) = table.running.join_next_with_id() => {
                    let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    self.ended(&mut table, id, start, &pace);
                }
                () = self.now.notified() => {
                    self.visits.hurry();
                    table.all_due(Instant::now());
                }
                () = sleep_until(next.unwrap_or(start)), if next.is_some() => self.start(&mut table, &pace),
            }
        }
        table.running.shutdown().await;
    }

    fn reconcile(&mut self, table: &mut Timetable, start: Instant) {
        let inventory = Arc::clone(&self.inventory.borrow_and_update());
        let present: HashMap<TargetId, &Arc<Host>> =
            inventory.hosts.iter().map(|host| (host.id(), host)).collect();
        table.entries.retain(|id, entry| {
            let stays = present.contains_key(id);
            match &entry.running {
                _ if stays => {}
                // Forgotten when the visit has really ended: it must not report after that.
                Some(visit) => visit.abort(),
                None => self.visits.forget(id),
            }
            stays
        });
        let interval = self.pace.borrow().interval;
        let newcomers = present.keys().filter(|id| !table.entries.contains_key(*id)).count();
        let ramp = interval.min(START_RAMP.saturating_mul(u32::try_from(newcomers).unwrap_or(u32::MAX)));
        let now = Instant::now().max(start);
        for (id, host) in present {
            if let Some(entry) = table.entries.get_mut(&id) {
                entry.host = Arc::clone(host);
                continue;
            }
            let phase = phase(&id.address);
            let due = now + ramp.mul_f64(phase);
            table.entries.insert(id.clone(), Entry { host: Arc::clone(host), phase, due, running: None });
            table.heap.push(Reverse(Due(due, id)));
        }
        debug!(hosts = table.entries.len(), "timetable follows the inventory");
    }

    /// Starts the visit of the host that is due first.
    fn start(&self, table: &mut Timetable, pace: &Pace) {
        let Some(Reverse(Due(due, id))) = table.heap.pop() else { return };
        let Some(entry) = table.entries.get_mut(&id).filter(|e| e.due == due && e.running.is_none()) else {
            return;
        };
        let (visits, host, limit) = (Arc::clone(&self.visits), Arc::clone(&entry.host), pace.interval);
        let visit = async move { visits.visit(host, limit).await };
        let handle = table.running.spawn(visit.with_current_subscriber());
        table.who.insert(handle.id(), id);
        entry.running = Some(handle);
    }

    /// A visit has ended: the host's next one is the first on its grid that is still ahead.
    fn ended(&self, table: &mut Timetable, task: Id, start: Instant, pace: &Pace) {
        let Some(id) = table.who.remove(&task) else { return };
        let Some(entry) = table.entries.get_mut(&id) else { return self.visits.forget(&id) };
        if entry.running.take_if(|running| running.id() == task).is_none() {
            return;
        }
        let now = Instant::now();
        if now >= entry.due + pace.interval {
            self.stats.add(&OVERRUNS, Attributes::new([("kind", "host")]), 1.0);
            table.late += 1;
        }
        entry.due = next_on_grid(start, entry.phase, pace.interval, now.max(entry.due + pace.interval / 2));
        table.heap.push(Reverse(Due(entry.due, id)));
        table.tell_of_overruns(now, pace);
    }
}

impl Timetable {
    /// When the first host is due, outdated places of the heap left aside.
    fn next_due(&mut self) -> Option<Instant> {
        while let Some(Reverse(Due(due, id))) = self.heap.peek() {
            if self.entries.get(id).is_some_and(|entry| entry.due == *due && entry.running.is_none()) {
                return Some(*due);
            }
            self.heap.pop();
        }
        None
    }

    fn all_due(&mut self, now: Instant) {
        for (id, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.running.is_none()) {
            entry.due = now;
            self.heap.push(Reverse(Due(now, id.clone())));
        }
    }

    /// One line an interval at the most, with what can be done about it.
    fn tell_of_overruns(&mut self, now: Instant, pace: &Pace) {
        let due_to_tell = self.told.is_none_or(|told| now >= told + pace.interval);
        if self.late == 0 || !due_to_tell {
            return;
        }
        let waiting = self.heap.peek().is_some_and(|Reverse(Due(due, _))| *due <= now);
        if waiting && self.running.len() + 1 >= pace.max_in_flight {
            warn!(
                late = self.late,
                max_in_flight = pace.max_in_flight,
                "visits are late because only max_in_flight hosts are visited at a time: raise it, or the interval"
            );
        } else {
            warn!(late = self.late, "visits took longer than the interval: see esxi.host.ssh.visit.duration");
        }
        self.late = 0;
        self.told = Some(now);
    }
}

/// A host's place in the interval, 0..1: the same on every start, evenly spread over a fleet. SHA-256,
/// since the standard hasher may change with the compiler.
fn phase(address: &str) -> f64 {
    let digest = Sha256::digest(address.as_bytes());
    let head = digest.iter().take(4).fold(0u32, |head, byte| (head << 8) | u32::from(*byte));
    f64::from(head) / (f64::from(u32::MAX) + 1.0)
}

/// The first instant of `start + (phase + k) * interval` that is not before `earliest`.
fn next_on_grid(start: Instant, phase: f64, interval: Duration, earliest: Instant) -> Instant {
    let first = start + interval.mul_f64(phase);
    let behind = earliest.saturating_duration_since(first);
    let rounds = behind.as_secs_f64() / interval.as_secs_f64();
    first + interval.mul_f64(rounds.ceil())
}

#[cfg(test)]
mod tests;
