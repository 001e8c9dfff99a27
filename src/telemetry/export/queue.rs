//! What waits to be sent, oldest first. The newest is in memory; a [`Keeper`](super::spool::Keeper) moves what has
//! to wait for longer to disk and brings it back when its turn comes, so that nobody here ever waits for
//! a disk.
//!
//! ```text
//! sender ◄── ahead (on disk, too; read again already) ◄── on disk alone ◄── memory ◄── exporter
//! ```
//!
//! All caps drop the oldest first: what is new is worth more.

use super::drops::{Dropped, Drops};
use super::encode::Batch;
use super::spool::{Kept, Sequence};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, oneshot};

/// How long opening the folder of the spool may keep what is in memory from being sent.
const OPENING: Duration = Duration::from_secs(10);
/// Pause between two looks whether that was too long.
const LOOK: Duration = Duration::from_secs(1);

/// How much may wait in memory, and how long anything may wait.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// Most bytes in memory, as encoded.
    pub bytes: usize,
    /// Longest time since the collection.
    pub age: Duration,
}

/// Which entry, for [`Queue::acknowledge`]: it may have been dropped meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// How much waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Bytes in memory, as encoded.
    pub bytes: usize,
    /// Bytes on the disk.
    pub spooled: u64,
    /// Points, wherever they are.
    pub points: usize,
    /// Points that are in memory alone.
    pub volatile: usize,
    /// When the oldest was collected.
    pub oldest: Option<SystemTime>,
}

/// What is on the disk and nowhere else.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OnDisk {
    pub(super) has_unread: bool,
    pub(super) points: usize,
    pub(super) oldest: Option<SystemTime>,
    pub(super) bytes: u64,
}

#[derive(Debug)]
struct Entry {
    ticket: Ticket,
    /// Its first ticket: the parts of one that was split have the same.
    origin: u64,
    batch: Batch,
    collected: SystemTime,
    arrived: Instant,
    /// Where it is on the disk.
    sequence: Option<Sequence>,
}

/// The queue. One sends, one collects, and one may keep it on disk.
#[derive(Debug)]
pub struct Queue {
    caps: Caps,
    clock: (SystemTime, Instant),
    inner: Mutex<Inner>,
    pushed: Notify,
    emptied: Notify,
    /// For the keeper.
    work: Condvar,
    /// What had to go.
    pub drops: Drops,
}

#[derive(Debug, Default)]
struct Inner {
    ahead: VecDeque<Entry>,
    /// `None`: no disk is there.
    disk: Option<OnDisk>,
    memory: VecDeque<Entry>,
    /// Those of memory that are being written, by their origin: dropping them now would be counted, and they
    /// would be sent all the same.
    pinned: Vec<u64>,
    /// Bytes of `memory`.
    bytes: usize,
    next: u64,
    /// Nothing may be sent before it is known what waits on the disk, or before this.
    opening: Option<Instant>,
    /// Something has happened that the keeper does not know.
    news: bool,
    flushes: Vec<oneshot::Sender<bool>>,
    closed: bool,
}

impl Queue {
    /// An empty one.
    pub fn new(caps: Caps) -> Self {
        Self::started(caps, SystemTime::now())
    }

    /// One whose wall clock shows this.
    pub(super) fn started(caps: Caps, at: SystemTime) -> Self {
        let clock = (at, Instant::now());
        let (pushed, emptied, work) = (Notify::new(), Notify::new(), Condvar::new());
        Self { caps, clock, inner: Mutex::default(), pushed, emptied, work, drops: Drops::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time by which ages are measured: that of the wall clock at the start, and from then on as much later
    /// as has passed. A clock that is set makes nothing old.
    pub fn now(&self) -> SystemTime {
        self.clock.0 + self.clock.1.elapsed()
    }

    /// Adds a batch behind all others. Returns what had to go for it, or by age.
    pub fn push(&self, batch: Batch, collected: SystemTime, now: SystemTime) -> Dropped {
        let mut inner = self.lock();
        inner.bytes += batch.bytes.len();
        let (ticket, arrived) = (inner.ticket(), Instant::now());
        let origin = ticket.0;
        inner.memory.push_back(Entry { ticket, origin, batch, collected, arrived, sequence: None });
        let mut dropped = inner.drop_aged(self.caps.age, now);
        while inner.bytes > self.caps.bytes
            && let Some(points) = inner.drop_from_memory()
        {
            dropped.no_room += points;
        }
        self.tell(&inner);
        self.wake_keeper(&mut inner);
        dropped
    }

    /// Drops what is too old of what is in memory.
    pub fn expire(&self, now: SystemTime) -> Dropped {
        let mut inner = self.lock();
        let dropped = inner.drop_aged(self.caps.age, now);
        self.tell(&inner);
        dropped
    }

    /// The oldest entry, which stays until it is acknowledged. `None` also while it has to be read first.
    pub fn front(&self) -> Option<(Ticket, Batch)> {
        let inner = self.lock();
        inner.front().map(|entry| (entry.ticket, entry.batch.clone()))
    }

    /// Waits for an oldest entry. For one waiter: the sender.
    pub async fn wait_front(&self) -> (Ticket, Batch) {
        loop {
            let pushed = self.pushed.notified();
            if let Some(front) = self.front() {
                return front;
            }
            if self.lock().is_opening() {
                // Nobody says so when that has taken too long.
                let _ = tokio::time::timeout(LOOK, pushed).await;
            } else {
                pushed.await;
            }
        }
    }

    /// Waits until nothing waits, neither here nor on the disk. For one waiter: the exporter.
    pub async fn wait_empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.lock().is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Waits until everything is on the disk, and how far it was sent. `false`: it could not be written, or there is
    /// no disk.
    pub async fn flush(&self) -> bool {
        let (done, is_done) = oneshot::channel();
        {
            let mut inner = self.lock();
            if inner.disk.is_none() && !inner.is_opening() {
                return false;
            }
            inner.flushes.push(done);
            self.wake_keeper(&mut inner);
        }
        is_done.await.unwrap_or(false)
    }

    /// Takes an entry out. Returns whether it was still there.
    pub fn acknowledge(&self, ticket: Ticket) -> bool {
        self.replace(ticket, [])
    }

    /// Puts others at the place of the oldest entry. Returns whether it was still there.
    pub fn replace(
        &self,
        ticket: Ticket,
        batches: impl IntoIterator<Item = Batch, IntoIter: DoubleEndedIterator>,
    ) -> bool {
        let mut inner = self.lock();
        let is_front =
            |entries: &VecDeque<Entry>| entries.front().is_some_and(|front| front.ticket == ticket);
        let in_memory = is_front(&inner.memory);
        let taken = match in_memory {
            true => inner.take_from_memory(0),
            false if is_front(&inner.ahead) => inner.ahead.pop_front(),
            false => None,
        };
        let Some(Entry { origin, collected, arrived, sequence, .. }) = taken else { return false };
        for batch in batches.into_iter().rev() {
            let (ticket, size) = (inner.ticket(), batch.bytes.len());
            let entry = Entry { ticket, origin, batch, collected, arrived, sequence };
            if in_memory {
                inner.bytes += size;
                inner.memory.push_front(entry);
            } else {
                inner.ahead.push_front(entry);
            }
        }
        self.tell(&inner);
        self.wake_keeper(&mut inner);
        true
    }

    /// How much waits.
    pub fn load(&self) -> Load {
        let inner = self.lock();
        let size =
            |entries: &VecDeque<Entry>| entries.iter().map(|entry| entry.batch.bytes.len()).sum::<usize>();
        let points =
            |entries: &VecDeque<Entry>| entries.iter().map(|entry| entry.batch.points).sum::<usize>();
        let disk = inner.disk.unwrap_or_default();
        let volatile = points(&inner.memory);
        let fronts =
            [inner.ahead.front(), inner.memory.front()].map(|front| front.map(|entry| entry.collected));
        let [ahead, memory] = fronts;
        Load {
            bytes: inner.bytes + size(&inner.ahead),
            spooled: disk.bytes,
            points: points(&inner.ahead) + disk.points + volatile,
            volatile,
            oldest: ahead.or(disk.oldest).or(memory),
        }
    }

    fn tell(&self, inner: &Inner) {
        if inner.is_empty() {
            self.emptied.notify_one();
        } else {
            self.pushed.notify_one();
        }
    }

    /// Something has happened that the keeper may have to act on.
    fn wake_keeper(&self, inner: &mut Inner) {
        inner.news = true;
        self.work.notify_one();
    }
}

/// What the keeper does with it.
impl Queue {
    /// Nothing is sent until the verdict: [`Queue::attach`] or [`Queue::go_without_disk`].
    pub(super) fn wait_for_disk(&self) {
        self.lock().opening = Some(Instant::now() + OPENING);
    }

    /// There is a disk, on which this waits: it goes before everything in memory.
    pub(super) fn attach(&self, disk: OnDisk) {
        let mut inner = self.lock();
        inner.opening = None;
        inner.disk = Some(disk);
        self.tell(&inner);
    }

    /// What is in memory is all that there is.
    pub(super) fn go_without_disk(&self) {
        let mut inner = self.lock();
        inner.opening = None;
        self.tell(&inner);
    }

    /// What is on disk has changed.
    pub(super) fn note_disk(&self, disk: OnDisk) {
        let mut inner = self.lock();
        inner.disk = Some(disk);
        self.tell(&inner);
    }

    /// The oldest of what is in memory alone, about so many bytes, if it has waited for so long, something waits
    /// on the disk, or it has to be `all`. It stays here until [`Queue::written`].
    pub(super) fn to_write(&self, bytes: usize, patience: Duration, all: bool) -> Vec<(Batch, SystemTime)> {
        let mut inner = self.lock();
        let must = all || !inner.ahead.is_empty() || !inner.disk_is_empty();
        let mut size = 0;
        let chosen = inner.memory.iter().take_while(|entry| {
            let is_chosen = size < bytes && (must || entry.arrived.elapsed() >= patience);
            size += entry.batch.bytes.len();
            is_chosen
        });
        let chosen: Vec<_> = chosen.map(|entry| (entry.batch.clone(), entry.collected)).collect();
        inner.pinned = inner.memory.iter().take(chosen.len()).map(|entry| entry.origin).collect();
        chosen
    }

    /// What was to be written is on disk from `first` on, and counts as read if `loaded`. `None`: it is not.
    pub(super) fn written(&self, first: Option<Sequence>, loaded: bool, disk: OnDisk) {
        let mut inner = self.lock();
        let pinned = std::mem::take(&mut inner.pinned);
        inner.disk = Some(disk);
        for (sequence, origin) in first.into_iter().flat_map(|first| first..).zip(pinned) {
            // It may have been sent meanwhile, or stand here in parts.
            while inner.memory.front().is_some_and(|entry| entry.origin == origin) {
                if let Some(entry) = inner.take_from_memory(0).filter(|_| loaded) {
                    inner.ahead.push_back(Entry { sequence: Some(sequence), ..entry });
                }
            }
        }
        self.tell(&inner);
    }

    /// These were read.
    pub(super) fn loaded(&self, entries: Vec<Kept>, disk: OnDisk) {
        let mut inner = self.lock();
        for Kept { sequence, batch, collected } in entries {
            let ticket = inner.ticket();
            let (origin, arrived, sequence) = (ticket.0, Instant::now(), Some(sequence));
            inner.ahead.push_back(Entry { ticket, origin, batch, collected, arrived, sequence });
        }
        inner.disk = Some(disk);
        self.tell(&inner);
    }

    /// Drops what was read of the entries before this one: on the disk they are not any more, and whatever waits
    /// outside memory has to survive a kill. Returns its points.
    pub(super) fn drop_read(&self, before: Sequence) -> usize {
        let mut inner = self.lock();
        let is_gone = |entry: &Entry| entry.sequence.is_some_and(|sequence| sequence < before);
        let mut points = 0;
        while inner.ahead.front().is_some_and(is_gone) {
            points += inner.ahead.pop_front().map_or(0, |entry| entry.batch.points);
        }
        self.tell(&inner);
        points
    }

    /// Bytes that were read and wait, and the place of the oldest of them.
    pub(super) fn ahead(&self) -> (usize, Option<Sequence>) {
        let inner = self.lock();
        let size = inner.ahead.iter().map(|entry| entry.batch.bytes.len()).sum();
        (size, inner.ahead.front().and_then(|entry| entry.sequence))
    }

    /// Whether memory is nearly full.
    pub(super) fn is_crowded(&self) -> bool {
        self.lock().bytes > self.caps.bytes / 4 * 3
    }

    /// Those that wait until everything is on the disk.
    pub(super) fn take_flushes(&self) -> Vec<oneshot::Sender<bool>> {
        std::mem::take(&mut self.lock().flushes)
    }

    /// Waits until something has happened, or for so long. Returns whether the queue is closed.
    pub(super) fn wait_for_work(&self, longest: Duration) -> bool {
        let inner = self.lock();
        let waiting = self.work.wait_timeout_while(inner, longest, |inner| !inner.news && !inner.closed);
        let (mut inner, _) = waiting.unwrap_or_else(PoisonError::into_inner);
        inner.news = false;
        inner.closed && inner.flushes.is_empty()
    }

    /// The keeper has to end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_one();
    }

    pub(super) fn caps(&self) -> Caps {
        self.caps
    }
}

impl Inner {
    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
    }

    fn disk_is_empty(&self) -> bool {
        self.disk.is_none_or(|disk| !disk.has_unread)
    }

    fn is_opening(&self) -> bool {
        self.opening.is_some_and(|until| Instant::now() < until)
    }

    fn front(&self) -> Option<&Entry> {
        match self.ahead.front() {
            _ if self.is_opening() => None,
            None if self.disk_is_empty() => self.memory.front(),
            front => front,
        }
    }

    fn is_empty(&self) -> bool {
        !self.is_opening() && self.ahead.is_empty() && self.disk_is_empty() && self.memory.is_empty()
    }

    fn take_from_memory(&mut self, at: usize) -> Option<Entry> {
        let entry = self.memory.remove(at)?;
        self.bytes -= entry.batch.bytes.len();
        Some(entry)
    }

    /// Drops the oldest that is not being written. Returns its points.
    fn drop_from_memory(&mut self) -> Option<usize> {
        let at =
            self.pinned.last().map_or(0, |last| self.memory.partition_point(|entry| entry.origin <= *last));
        self.take_from_memory(at).map(|entry| entry.batch.points)
    }

    fn drop_aged(&mut self, age: Duration, now: SystemTime) -> Dropped {
        let mut dropped = Dropped::default();
        // A clock that was set back makes nothing old.
        let is_old = |entry: &Entry| now.duration_since(entry.collected).is_ok_and(|since| since > age);
        while self.ahead.front().is_some_and(is_old) {
            dropped.too_old += self.ahead.pop_front().map_or(0, |entry| entry.batch.points);
        }
        while self.pinned.is_empty() && self.memory.front().is_some_and(is_old) {
            dropped.too_old += self.take_from_memory(0).map_or(0, |entry| entry.batch.points);
        }
        dropped
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
