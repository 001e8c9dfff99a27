//! When hosts are visited.
//!
//! Each host has a stable phase in the interval (a hash of its address), so that a fleet's visits are
//! spread evenly and stay where they are over restarts. One task owns the whole timetable: a host that
//! is not being visited costs an entry in a heap, not a task.
//!
//! A host whose visit only cost time leaves that pace: it waits in a queue of its own, with few places and
//! growing pauses, until it answers (see `lane`). So a part of a fleet that hangs holds up nobody. Those that
//! were lost together are tried again together (see `outage`).

mod outage;

use super::callers::Callers;
use super::lane::{Census, Lane, jittered, pause_of, slow_places};
use crate::inventory::{Host, Inventory};
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::stats::Stats;
use crate::target::TargetId;
use outage::Outages;
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
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
    help: "Visits and polls that had not ended when the next one was due; those of slow hosts left aside.",
    attributes: &["kind"],
};

/// Pause between the first visits of two hosts after the start, so that a small fleet is known within
/// seconds and a large one is not rushed at.
const START_RAMP: Duration = Duration::from_millis(20);

/// Visits that are due so soon after one another are started together: one after the other each would find the
/// processor's caches cold, which costs as much again.
const TOGETHER: Duration = Duration::from_millis(100);

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
    /// Visits the host once and keeps what came of it. Ends within `limit` by itself. Says where the host
    /// belongs from now on; `None`: there was nothing to ask.
    fn visit(&self, host: Arc<Host>, limit: Duration) -> impl Future<Output = Option<Lane>> + Send;
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
    callers: Arc<Callers>,
    stats: Arc<Stats>,
}

struct Entry {
    host: Arc<Host>,
    /// Place in the interval, 0..1.
    phase: f64,
    lane: Lane,
    /// How many visits in a row ended outside the normal lane.
    setbacks: u32,
    /// When it left the normal lane.
    left: Option<Instant>,
    /// When the visit that is waiting or under way was due.
    due: Instant,
    running: Option<AbortHandle>,
    /// A visit was asked for while this one was under way.
    again: bool,
}

/// A host that is due. A queue may hold outdated ones: only the one that agrees with its entry counts.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due(Instant, TargetId);

type Queue = BinaryHeap<Reverse<Due>>;

/// A visit under way.
struct Running {
    id: TargetId,
    /// In which lane it was started.
    lane: Lane,
}

#[derive(Default)]
struct Timetable {
    entries: HashMap<TargetId, Entry>,
    queue: Queue,
    /// That of the slow lane.
    slow_queue: Queue,
    running: JoinSet<Option<Lane>>,
    who: HashMap<Id, Running>,
    /// How many of those under way were started in the slow lane.
    slow_running: usize,
    census: Census,
    outages: Outages,
    late: usize,
    told: Option<Instant>,
}

impl<V: Visits> Schedule<V> {
    /// A timetable over the hosts of `inventory`. Whoever notifies `now` makes every host due at once;
    /// `callers` those that are paused and show signs of life.
    pub fn new(
        visits: Arc<V>,
        inventory: watch::Receiver<Arc<Inventory>>,
        pace: watch::Receiver<Pace>,
        now: Arc<Notify>,
        callers: Arc<Callers>,
        stats: Arc<Stats>,
    ) -> Self {
        Self { visits, inventory, pace, now, callers, stats }
    }

    /// Visits until cancelled. Visits under way are then dropped: they are no failures.
    pub async fn run(mut self, cancel: CancellationToken) {
        let start = Instant::now();
        let mut table = Timetable::default();
        self.reconcile(&mut table, start);
        loop {
            let pace = self.pace.borrow_and_update().clone();
            let next = table.next_due(&pace);
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Ok(()) = self.inventory.changed() => self.reconcile(&mut table, start),
                Ok(()) = self.pace.changed() => table.quicken(start, &self.pace.borrow()),
                Some(ended) = table.running.join_next_with_id() => {
                    let (id, lane) = ended.unwrap_or_else(|error| (error.id(), None));
                    self.ended(&mut table, id, lane, start, &pace);
                }
                () = self.now.notified() => {
                    self.visits.hurry();
                    table.all_due(Instant::now());
                }
                called = self.callers.called() => table.due_at_once(&called, Instant::now()),
                () = sleep_until(next.map_or(start, |(due, _)| due)), if next.is_some() => {
                    let horizon = Instant::now() + together(pace.interval);
                    while let Some((due, lane)) = table.next_due(&pace)
                        && due <= horizon
                    {
                        self.start(&mut table, lane, &pace);
                    }
                }
            }
        }
        table.running.shutdown().await;
    }

    fn reconcile(&mut self, table: &mut Timetable, start: Instant) {
        let inventory = Arc::clone(&self.inventory.borrow_and_update());
        let present: HashMap<TargetId, &Arc<Host>> =
            inventory.hosts.iter().map(|host| (host.id(), host)).collect();
        let census = &mut table.census;
        table.entries.retain(|id, entry| {
            let stays = present.contains_key(id);
            if !stays {
                census.remove(entry.lane);
            }
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
        let ramp = ramp(newcomers, interval);
        let now = Instant::now().max(start);
        for (id, host) in present {
            let Some(entry) = table.entries.get_mut(&id) else {
                let phase = phase(&id.address);
                let due = now + ramp.mul_f64(phase);
                let (host, lane) = (Arc::clone(host), Lane::default());
                let (setbacks, left, running, again) = (0, None, None, false);
                let entry = Entry { host, phase, lane, setbacks, left, due, running, again };
                table.entries.insert(id.clone(), entry);
                table.census.add(lane);
                table.queue.push(Reverse(Due(due, id)));
                continue;
            };
            let before = std::mem::replace(&mut entry.host, Arc::clone(host));
            // What kept the old one from answering may not concern the new one.
            if before != *host && entry.lane != Lane::Normal {
                (entry.setbacks, entry.left) = (0, None);
                table.move_to(&id, Lane::Normal);
                table.make_due(&id, now);
            }
        }
        table.census.tell(&self.stats);
        debug!(hosts = table.entries.len(), "timetable follows the inventory");
    }

    /// Starts the visit of the host that is due first in the lane's queue.
    fn start(&self, table: &mut Timetable, lane: Lane, pace: &Pace) {
        let Some(Reverse(Due(due, id))) = table.queue_of(lane).pop() else { return };
        let Some(entry) = table.entries.get_mut(&id).filter(|entry| entry.waits_for(due)) else { return };
        let (visits, host, limit) = (Arc::clone(&self.visits), Arc::clone(&entry.host), pace.interval);
        let visit = async move { visits.visit(host, limit).await };
        let handle = table.running.spawn(visit.with_current_subscriber());
        let lane = entry.lane;
        table.slow_running += usize::from(lane == Lane::Slow);
        table.who.insert(handle.id(), Running { id, lane });
        entry.running = Some(handle);
    }

    /// A visit has ended: the host's next one is the first on its grid that is still ahead, or comes after
    /// the pause of its lane.
    fn ended(&self, table: &mut Timetable, task: Id, lane: Option<Lane>, start: Instant, pace: &Pace) {
        let Some(Running { id, lane: was }) = table.who.remove(&task) else { return };
        table.slow_running -= usize::from(was == Lane::Slow);
        let Some(entry) = table.entries.get_mut(&id) else { return self.visits.forget(&id) };
        if entry.running.take_if(|running| running.id() == task).is_none() {
            return;
        }
        let now = Instant::now();
        if was == Lane::Normal && now >= entry.due + pace.interval {
            self.stats.add(&OVERRUNS, Attributes::new([("kind", "host")]), 1.0);
            table.late += 1;
        }
        let left = entry.left;
        if let Some(lane) = lane {
            entry.setbacks = if lane == Lane::Normal { 0 } else { entry.setbacks.saturating_add(1) };
            entry.left = if lane == Lane::Normal { None } else { left.or(Some(now)) };
        }
        let (is_back, is_lost) =
            (left.is_some() && entry.left.is_none(), left.is_none() && entry.left.is_some());
        let usual =
            || next_on_grid(start, entry.phase, pace.interval, now.max(entry.due + pace.interval / 2));
        let due = match pause_of(entry.setbacks, pace.interval) {
            _ if std::mem::take(&mut entry.again) && lane != Some(Lane::Slow) => now,
            Some(pause) if !table.outages.is_ending(left, now, pace.interval) => now + jittered(pause),
            _ => usual(),
        };
        if lane.is_some_and(|lane| table.move_to(&id, lane)) {
            table.census.tell(&self.stats);
        }
        table.make_due(&id, due);
        if is_lost {
            table.outages.lost(now, table.entries.len(), pace.interval);
        } else if is_back && table.outages.ends(left, now, pace.interval) {
            table.try_those_lost_together(now, pace.interval);
        }
        table.send_scout(&id, now, pace.interval);
        table.tell_of_overruns(now, pace);
    }
}

impl Entry {
    /// Whether this is its place in the queue, and no outdated one.
    fn waits_for(&self, due: Instant) -> bool {
        self.due == due && self.running.is_none()
    }
}

impl Timetable {
    /// When which lane may start its next visit, outdated places of the queues left aside.
    fn next_due(&mut self, pace: &Pace) -> Option<(Instant, Lane)> {
        let Self { entries, queue, slow_queue, .. } = self;
        let normal = first(queue, |id, due| {
            entries.get(id).is_some_and(|entry| entry.lane != Lane::Slow && entry.waits_for(due))
        });
        let slow = first(slow_queue, |id, due| {
            entries.get(id).is_some_and(|entry| entry.lane == Lane::Slow && entry.waits_for(due))
        });
        let slow = slow.filter(|_| self.slow_running < slow_places(pace.max_in_flight));
        let next = match (normal, slow) {
            (Some(normal), Some(slow)) if slow < normal => (slow, Lane::Slow),
            (Some(normal), _) => (normal, Lane::Normal),
            (None, Some(slow)) => (slow, Lane::Slow),
            (None, None) => return None,
        };
        (self.running.len() < pace.max_in_flight).then_some(next)
    }

    fn queue_of(&mut self, lane: Lane) -> &mut Queue {
        if lane == Lane::Slow { &mut self.slow_queue } else { &mut self.queue }
    }

    /// Whether that is another lane.
    fn move_to(&mut self, id: &TargetId, lane: Lane) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        let before = std::mem::replace(&mut entry.lane, lane);
        self.census.remove(before);
        self.census.add(lane);
        before != lane
    }

    /// Puts a host that is not being visited into its lane's queue.
    fn make_due(&mut self, id: &TargetId, due: Instant) {
        let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.running.is_none()) else { return };
        entry.due = due;
        let lane = entry.lane;
        self.queue_of(lane).push(Reverse(Due(due, id.clone())));
    }

    /// The pace has changed: whoever would come earlier by it does.
    fn quicken(&mut self, start: Instant, pace: &Pace) {
        let now = Instant::now();
        let mut earlier = Vec::new();
        for (id, entry) in self.entries.iter().filter(|(_, entry)| entry.lane == Lane::Normal) {
            let due = next_on_grid(start, entry.phase, pace.interval, now);
            if due < entry.due {
                earlier.push((id.clone(), due));
            }
        }
        earlier.iter().for_each(|(id, due)| self.make_due(id, *due));
    }

    fn all_due(&mut self, now: Instant) {
        let mut waiting = Vec::new();
        for (id, entry) in &mut self.entries {
            // What is answered to a visit under way may be older than the wish.
            entry.again = entry.running.is_some();
            if !entry.again {
                waiting.push(id.clone());
            }
        }
        waiting.iter().for_each(|id| self.make_due(id, now));
    }

    /// Those of `hosts` that are paused are due now.
    fn due_at_once(&mut self, hosts: &HashSet<TargetId>, now: Instant) {
        for id in hosts {
            let paused = |entry: &&mut Entry| entry.lane != Lane::Normal && entry.due > now;
            let Some(entry) = self.entries.get_mut(id).filter(paused) else { continue };
            // A sign of life that comes a little too early is worth more tries.
            entry.setbacks = 0;
            self.make_due(id, now);
        }
    }

    /// Those that were lost together with one that answers again, one after the other. Their pauses, should
    /// they need them, go on growing.
    fn try_those_lost_together(&mut self, now: Instant, interval: Duration) {
        let is_lost = |entry: &Entry| self.outages.includes(entry.left) && entry.running.is_none();
        let lost: Vec<_> =
            self.entries.iter().filter(|(_, e)| is_lost(e)).map(|(id, e)| (id.clone(), e.phase)).collect();
        let ramp = ramp(lost.len(), interval);
        debug!(hosts = lost.len(), "one of those that were lost together answers: the others are tried");
        for (id, phase) in lost {
            let due = now + ramp.mul_f64(phase);
            if self.entries.get(&id).is_some_and(|entry| entry.due > due) {
                self.make_due(&id, due);
            }
        }
    }

    /// As long as those that were lost together stay away one of them is tried at every interval: each time
    /// the one that would have to wait longest. `ended` is whose visit has just ended.
    fn send_scout(&mut self, ended: &TargetId, now: Instant, interval: Duration) {
        let is_lost = |entry: &Entry| self.outages.includes(entry.left);
        if !self.entries.get(ended).is_some_and(is_lost) {
            return;
        }
        let is_out = |scout: &TargetId| scout != ended && self.entries.get(scout).is_some_and(is_lost);
        if self.outages.scout.as_ref().is_some_and(is_out) {
            return;
        }
        let waiting = self.entries.iter().filter(|(_, entry)| is_lost(entry) && entry.running.is_none());
        let scout = waiting.max_by_key(|(_, entry)| entry.due).map(|(id, entry)| (id.clone(), entry.due));
        let Some((scout, due)) = scout else { return };
        if due > now + interval {
            self.make_due(&scout, now + interval);
        }
        self.outages.scout = Some(scout);
    }

    /// One line an interval at the most, with what can be done about it.
    fn tell_of_overruns(&mut self, now: Instant, pace: &Pace) {
        let due_to_tell = self.told.is_none_or(|told| now >= told + pace.interval);
        if self.late == 0 || !due_to_tell {
            return;
        }
        let waiting = self.queue.peek().is_some_and(|Reverse(Due(due, _))| *due <= now);
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

fn together(interval: Duration) -> Duration {
    TOGETHER.min(interval / 60)
}

/// Over how long the visits of `hosts` that are due at once are spread.
fn ramp(hosts: usize, interval: Duration) -> Duration {
    interval.min(START_RAMP.saturating_mul(u32::try_from(hosts).unwrap_or(u32::MAX)))
}

/// The first place of a queue that is not outdated.
fn first(queue: &mut Queue, is_valid: impl Fn(&TargetId, Instant) -> bool) -> Option<Instant> {
    while let Some(Reverse(Due(due, id))) = queue.peek() {
        if is_valid(id, *due) {
            return Some(*due);
        }
        queue.pop();
    }
    None
}

/// A host's place in the interval, 0..1: the same on every start, evenly spread over a fleet. SHA-256,
/// since the standard hasher may change with the compiler.
pub(super) fn phase(address: &str) -> f64 {
    let digest = Sha256::digest(address.as_bytes());
    let head = digest.iter().take(4).fold(0u32, |head, byte| (head << 8) | u32::from(*byte));
    f64::from(head) / (f64::from(u32::MAX) + 1.0)
}

/// The first instant of `start + (phase + k) * interval` that is not before `earliest`.
pub(super) fn next_on_grid(start: Instant, phase: f64, interval: Duration, earliest: Instant) -> Instant {
    let first = start + interval.mul_f64(phase);
    let behind = earliest.saturating_duration_since(first);
    let rounds = behind.as_secs_f64() / interval.as_secs_f64();
    first + interval.mul_f64(rounds.ceil())
}

#[cfg(test)]
mod tests;
