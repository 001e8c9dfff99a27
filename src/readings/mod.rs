//! The store between those who find out and those who report: the latest samples of every (target,
//! collector, part) with their age, and how each target's last visit or poll ended.
//!
//! Knows neither SSH, nor SOAP, nor OpenTelemetry. One lock, held for memory operations only; readers
//! get an immutable [`Snapshot`].

mod transitions;

pub use transitions::{Hearing, News, Transition, Wanted};

use crate::metric::{Attributes, Cadence, MetricDef, Sample};
use crate::outcome::Failure;
use crate::target::TargetId;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;
use tokio::time::Instant;
use transitions::{Listener, Seen};

/// Time for which a reading that is stale is still known to have been, so that whoever comes back from an outage is
/// told to be different, and not to be new.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// What a collector found out about one part of a target (a service, say). It replaces what was known
/// of that part; parts that a report does not name stand until they are stale.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Name of the part, unique within target and collector.
    pub part: Arc<str>,
    /// Its samples; empty = there is nothing to report now.
    pub samples: Vec<Sample>,
}

/// What one visit or poll brought.
#[derive(Debug)]
pub struct Report {
    /// Of whom.
    pub target: TargetId,
    /// By which collector.
    pub collector: &'static str,
    /// The parts that were answered.
    pub readings: Vec<Reading>,
    /// Age at which these readings are no longer reported; `None`: as long as the target exists.
    pub stale_after: Option<Duration>,
}

/// How the last visit or poll of a target ended.
#[derive(Debug, Clone)]
pub struct TargetStatus {
    /// `None`: it succeeded.
    pub failure: Option<Failure>,
    /// How long it took.
    pub duration: Duration,
    /// When it ended.
    pub at: SystemTime,
    /// When one last succeeded.
    pub last_success: Option<SystemTime>,
}

/// One series: a metric and its attributes.
pub type SeriesKey = (&'static MetricDef, Attributes);

/// The readings of one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The samples, in chunks as they were reported.
    pub parts: Vec<Arc<[Sample]>>,
}

impl Snapshot {
    /// Every sample.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.is_empty())
    }
}

/// What changed since the last time somebody took the changes: series of [`Cadence::OnChange`] with
/// their new values, and those that ended.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// New series and new values.
    pub updated: Vec<Sample>,
    /// Series that ended (of any cadence: a part that goes takes its measurements along).
    pub ended: Vec<SeriesKey>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.updated.is_empty() && self.ended.is_empty()
    }
}

/// The store.
#[derive(Debug, Default)]
pub struct Readings {
    inner: Mutex<Inner>,
    changed: Notify,
}

/// Takes the changes of the readings.
#[derive(Debug)]
pub struct Following(Arc<Readings>);

#[derive(Debug, Default)]
struct Inner {
    targets: HashMap<TargetId, Target>,
    changes: Pending,
    listener: Option<Listener>,
}

/// The changes that wait for whoever takes them.
#[derive(Debug, Default)]
struct Pending {
    /// Whether there is anybody who does.
    is_followed: bool,
    /// The last word on each changed series: its value, or that it ended. Capped by the number of series.
    series: HashMap<SeriesKey, Option<f64>>,
}

#[derive(Debug, Default)]
struct Target {
    status: Option<TargetStatus>,
    /// Collectors that have reported, however long ago.
    heard_of: HashSet<&'static str>,
    parts: HashMap<(&'static str, Arc<str>), Part>,
}

#[derive(Debug)]
struct Part {
    samples: Arc<[Sample]>,
    stale_at: Option<Instant>,
}

impl Readings {
    /// An empty store.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The lock is never held across anything that can panic half-way, so a poisoned one is whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores what a visit or poll brought, whose span is the current one. Each reading replaces what was known of
    /// its part.
    pub fn record(&self, report: Report) {
        let stale_at = report.stale_after.map(|age| Instant::now() + age);
        let mut inner = self.lock();
        let Inner { targets, changes, listener } = &mut *inner;
        let id = report.target;
        let target = targets.entry(id.clone()).or_default();
        let is_first = target.heard_of.insert(report.collector);
        let seen = Seen { target: &id, is_first };
        let (now, before) = (Instant::now(), changes.series.len());
        let (mut reported, mut ended) = (Vec::new(), Vec::new());
        for reading in report.readings {
            let key = (report.collector, reading.part);
            let known = target.parts.get(&key);
            let last = known.map_or(&[][..], |part| &part.samples);
            // What is stale has ended, for those who are sent the series; for people it has been the last word.
            let old = if known.is_some_and(|part| part.is_fresh(now)) { last } else { &[] };
            let mut new = reading.samples;
            keep_identities(last, &mut new);
            let new: Arc<[Sample]> = new.into();
            changes.note_updates(old, &new);
            if changes.is_followed {
                ended.extend(ends(old, &new));
                reported.push(Arc::clone(&new));
            }
            if let Some(listener) = listener {
                listener.compare(&seen, last, &new);
            }
            if new.is_empty() {
                target.parts.remove(&key);
            } else {
                target.parts.insert(key, Part { samples: new, stale_at });
            }
        }
        // One that is in another part now goes on, whichever of both comes first.
        if !ended.is_empty() {
            let live: HashSet<_> = reported.iter().flat_map(|part| part.iter()).map(Sample::series).collect();
            ended.retain(|(def, attributes)| !live.contains(&(*def, attributes)));
        }
        changes.note_ends(ended);
        if changes.series.len() > before {
            self.changed.notify_one();
        }
    }

    /// Changes from now on, one by one. For one listener: the one before hears nothing more.
    pub fn listen(&self, wanted: Wanted) -> Hearing {
        let (listener, hearing) = Listener::new(wanted);
        self.lock().listener = Some(listener);
        hearing
    }

    /// Stores how a visit or poll ended. Keeps the time of the last success when it failed.
    pub fn conclude(&self, id: &TargetId, failure: Option<Failure>, duration: Duration, at: SystemTime) {
        let mut inner = self.lock();
        let target = inner.targets.entry(id.clone()).or_default();
        let last_success = match failure {
            None => Some(at),
            Some(_) => target.status.as_ref().and_then(|status| status.last_success),
        };
        target.status = Some(TargetStatus { failure, duration, at, last_success });
    }

    /// How the last visit or poll of a target ended; `None` while the first one is pending.
    pub fn status(&self, id: &TargetId) -> Option<TargetStatus> {
        self.lock().targets.get(id).and_then(|target| target.status.clone())
    }

    /// The samples of one target that are not stale, for tables and pages.
    pub fn of_target(&self, id: &TargetId) -> Vec<Sample> {
        let now = Instant::now();
        let inner = self.lock();
        let parts = inner.targets.get(id).into_iter().flat_map(|target| target.parts.values());
        parts.filter(|part| part.is_fresh(now)).flat_map(|part| part.samples.iter().cloned()).collect()
    }

    /// Forgets a target that has left the inventory: all its series end.
    pub fn forget(&self, id: &TargetId) {
        let mut inner = self.lock();
        let Inner { targets, changes, listener } = &mut *inner;
        if let Some(listener) = listener {
            listener.left(id);
        }
        for part in targets.remove(id).iter().flat_map(|target| target.parts.values()) {
            changes.note_ends(ends(&part.samples, &[]));
        }
        if !changes.series.is_empty() {
            self.changed.notify_one();
        }
    }

    /// Forgets those parts of a collector that are not asked for any more, of all targets: their series end.
    pub fn keep_parts(&self, collector: &str, is_asked: impl Fn(&str) -> bool) {
        let mut inner = self.lock();
        let Inner { targets, changes, .. } = &mut *inner;
        for target in targets.values_mut() {
            let gone = target.parts.extract_if(|(of, part), _| *of == collector && !is_asked(part));
            gone.for_each(|(_, part)| changes.note_ends(ends(&part.samples, &[])));
        }
        if !changes.series.is_empty() {
            self.changed.notify_one();
        }
    }

    /// Everything that is not stale.
    pub fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let mut inner = self.lock();
        let mut parts = Vec::new();
        for target in inner.targets.values_mut() {
            let known = target.parts.len();
            target.parts.retain(|_, part| part.is_remembered(now));
            if target.parts.len() < known {
                // Whoever comes back after that is as good as new.
                let Target { heard_of, parts, .. } = target;
                heard_of.retain(|collector| parts.keys().any(|(of, _)| of == collector));
            }
            let fresh = target.parts.values().filter(|part| part.is_fresh(now));
            parts.extend(fresh.map(|part| Arc::clone(&part.samples)));
        }
        Snapshot { parts }
    }

    /// Changes from now on, the last word on each series. For one follower, the exporter: without any, none is noted.
    pub fn follow(self: &Arc<Self>) -> Following {
        self.lock().changes.is_followed = true;
        Following(Arc::clone(self))
    }
}

impl Following {
    /// Waits until something of [`Cadence::OnChange`] changed since the changes were last taken.
    pub async fn changed(&self) {
        loop {
            let notified = self.0.changed.notified();
            if !self.0.lock().changes.series.is_empty() {
                return;
            }
            notified.await;
        }
    }

    /// Takes the changes that have piled up.
    pub fn take(&self) -> Changes {
        let taken = std::mem::take(&mut self.0.lock().changes.series);
        let mut changes = Changes::default();
        for ((def, attributes), value) in taken {
            match value {
                Some(value) => changes.updated.push(Sample { def, attributes, value }),
                None => changes.ended.push((def, attributes)),
            }
        }
        changes
    }
}

impl Pending {
    fn note_updates(&mut self, old: &[Sample], new: &[Sample]) {
        if !self.is_followed {
            return;
        }
        for (i, sample) in new.iter().enumerate().filter(|(_, s)| s.def.cadence == Cadence::OnChange) {
            // A collector reports a part in one order, so the old sample is nearly always at the same place.
            let previous = match old.get(i) {
                Some(candidate) if same_series(candidate, sample) => Some(candidate),
                _ => old.iter().find(|candidate| same_series(candidate, sample)),
            };
            if previous.is_none_or(|previous| previous.value != sample.value) {
                self.series.insert((sample.def, sample.attributes.clone()), Some(sample.value));
            }
        }
    }

    fn note_ends(&mut self, ended: impl IntoIterator<Item = SeriesKey>) {
        if self.is_followed {
            self.series.extend(ended.into_iter().map(|series| (series, None)));
        }
    }
}

/// The series of a part that it does not have any more.
fn ends(old: &[Sample], new: &[Sample]) -> Vec<SeriesKey> {
    // Nearly every report has the series of the one before at the same places: no need for the set then.
    let moved = |(i, sample): &(usize, &Sample)| !new.get(*i).is_some_and(|at| same_series(at, sample));
    let mut moved = old.iter().enumerate().filter(moved).map(|(_, sample)| sample).peekable();
    if moved.peek().is_none() {
        return Vec::new();
    }
    let still_there: HashSet<_> = new.iter().map(Sample::series).collect();
    moved
        .filter(|sample| !still_there.contains(&sample.series()))
        .map(|sample| (sample.def, sample.attributes.clone()))
        .collect()
}

impl Part {
    fn is_fresh(&self, now: Instant) -> bool {
        self.stale_at.is_none_or(|at| now < at)
    }

    fn is_remembered(&self, now: Instant) -> bool {
        self.stale_at.is_none_or(|at| now < at + REMEMBERED)
    }
}

/// Equal pointers decide nearly always, see [`keep_identities`].
fn same_series(a: &Sample, b: &Sample) -> bool {
    let is_same = |a: &Attributes, b: &Attributes| a.identity() == b.identity() || a == b;
    a.def == b.def && is_same(&a.attributes, &b.attributes)
}

/// Gives a series that goes on the attributes that it had, which a collector builds anew each time. So its
/// [`Attributes::identity`] stays for as long as it is reported, and whoever compares two collections needs
/// not read the texts of a whole fleet.
fn keep_identities(old: &[Sample], new: &mut [Sample]) {
    for (old, new) in old.iter().zip(new).filter(|(old, new)| same_series(old, new)) {
        new.attributes = old.attributes.clone();
    }
}

#[cfg(test)]
mod tests;
