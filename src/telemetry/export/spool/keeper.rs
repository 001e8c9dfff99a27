//! The one thread that touches the spool: between the queue in memory and the disk.
//!
//! Whatever the disk does, the queue goes on: while it is slow, full or read-only, memory holds what it can; and a
//! folder that is not usable is tried again later.

use super::clock::{Shift, Shifts};
use super::disk::{Loaded, Spool};
use super::folder::SpoolError;
use super::{DAMAGED, SpoolOptions};
use crate::metric::Attributes;
use crate::stats::Stats;
use crate::telemetry::export::drops::Dropped;
use crate::telemetry::export::queue::{OnDisk, Queue};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::oneshot;

/// Bytes of requests that are written at once.
const AT_ONCE: usize = 8 << 20;
/// Bytes of requests that are read before their turn.
const AHEAD: usize = 8 << 20;
/// Pause between two tries to open the folder.
const REOPEN: Duration = Duration::from_secs(30);
/// Pause between two tries to write after one has failed.
const REWRITE: Duration = Duration::from_secs(5);
/// Pause between two cursors; what is sent again after a kill.
const SETTLE: Duration = Duration::from_secs(1);
/// How long after the start nothing goes for its age that another process wrote: the wall clock may be wrong until NTP
/// has set it, and is not believed before.
const SETTLING: Duration = Duration::from_secs(600);
/// Pause between two looks at ages and caps when nothing happens.
const IDLE: Duration = Duration::from_secs(1);

/// The thread, for as long as this lives.
#[derive(Debug)]
pub struct Keeper {
    queue: Arc<Queue>,
    ended: oneshot::Receiver<()>,
}

impl Keeper {
    /// Starts it. The folder is opened by the thread; nothing is sent before that has come to a verdict, or taken too
    /// long.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(queue: &Arc<Queue>, options: SpoolOptions, stats: Arc<Stats>) -> io::Result<Self> {
        let (ends, ended) = oneshot::channel();
        let now = Instant::now();
        let mut work = Work {
            queue: Arc::clone(queue),
            options,
            stats,
            spool: None,
            shifts: Shifts::new(shift(queue)),
            complaint: None,
            takes_entries: true,
            takes_cursor: true,
            reopen: now,
            rewrite: now,
            settle: now,
            damaged: 0,
            settled: now + SETTLING,
        };
        queue.wait_for_disk();
        let subscriber = tracing::dispatcher::get_default(Clone::clone);
        let run = move || {
            tracing::dispatcher::with_default(&subscriber, || work.run());
            // The folder is free from here on.
            drop(work);
            let _ = ends.send(());
        };
        match std::thread::Builder::new().name("spool".to_owned()).spawn(run) {
            Ok(_) => Ok(Self { queue: Arc::clone(queue), ended }),
            Err(error) => {
                queue.go_without_disk();
                Err(error)
            }
        }
    }

    /// Ends the thread and waits until the folder is free. To be dropped when the disk takes too long. What is not
    /// to be lost has to be written before: [`Queue::flush`].
    pub async fn end(mut self) {
        self.queue.close();
        let _ = (&mut self.ended).await;
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.queue.close();
    }
}

struct Work {
    queue: Arc<Queue>,
    options: SpoolOptions,
    stats: Arc<Stats>,
    spool: Option<Spool>,
    /// What lies between the times on the disk and those of the queue.
    shifts: Shifts,
    /// What was said last of what is wrong.
    complaint: Option<String>,
    /// Whether entries could be written the last time, and how far they were sent. On a file system that has become
    /// read-only the one may go on for a while and the other not.
    takes_entries: bool,
    takes_cursor: bool,
    reopen: Instant,
    rewrite: Instant,
    settle: Instant,
    damaged: u64,
    /// When the wall clock is believed in.
    settled: Instant,
}

impl Work {
    fn run(&mut self) {
        loop {
            self.open();
            let flushes = self.queue.take_flushes();
            if !flushes.is_empty() {
                let is_kept = self.flush();
                for flush in flushes {
                    // Whoever waited may have gone.
                    let _ = flush.send(is_kept);
                }
            }
            let more = self.spool.is_some() && self.work();
            if self.queue.wait_for_work(if more { Duration::ZERO } else { IDLE }) {
                return;
            }
        }
    }

    fn open(&mut self) {
        let now = Instant::now();
        if self.spool.is_some() || now < self.reopen {
            return;
        }
        self.reopen = now + REOPEN;
        match Spool::open(&self.options.config.path, self.options.config.max_bytes) {
            Ok(spool) => {
                let points = spool.unread_points();
                self.spool = Some(spool);
                self.shifts = Shifts::new(shift(&self.queue));
                self.note_damage();
                if points > 0 {
                    tracing::info!("OTLP: {points} points of before wait in the spool");
                }
                (self.takes_entries, self.takes_cursor) = (true, true);
                self.is_well();
                self.queue.attach(self.on_disk());
            }
            Err(error) => {
                self.complain(&error);
                self.queue.go_without_disk();
            }
        }
    }

    /// Returns whether there is more to do at once.
    fn work(&mut self) -> bool {
        if self.is_settling() {
            self.shifts.set_others(shift(&self.queue));
        }
        let mut more = self.write(false);
        self.keep_caps();
        more |= self.load();
        if Instant::now() >= self.settle {
            self.settle();
        }
        self.note_damage();
        self.queue.note_disk(self.on_disk());
        let expired = self.queue.expire(self.queue.now());
        self.queue.drops.note(&self.stats, expired);
        more
    }

    /// Writes everything, and how far it was sent. Returns whether everything is on disk: without the other what was
    /// sent already is sent again, and nothing lost.
    fn flush(&mut self) -> bool {
        while self.write(true) {}
        self.settle();
        self.queue.load().volatile == 0
    }

    /// Writes what has to be written. Returns whether there may be more of it.
    fn write(&mut self, all: bool) -> bool {
        let Some(spool) = &mut self.spool else { return false };
        let now = Instant::now();
        if now < self.rewrite && !all {
            return false;
        }
        let entries = self.queue.to_write(AT_ONCE, self.options.patience, all);
        if entries.is_empty() {
            return false;
        }
        // What was just in memory is not read again when nothing is before it, and it is little.
        let loaded = !spool.has_unread() && self.queue.ahead().0 < AHEAD;
        let shift = shift(&self.queue);
        let entries = entries.iter().map(|(batch, collected)| (batch, shift.to_wall(*collected)));
        let appended = spool.append(entries, loaded);
        if let Ok(first) = appended {
            self.shifts.note(first, shift);
        }
        let on_disk = self.on_disk();
        match appended {
            Ok(first) => {
                self.queue.written(Some(first), loaded, on_disk);
                self.takes_entries = true;
                self.is_well();
                true
            }
            Err(error) => {
                self.queue.written(None, loaded, on_disk);
                self.rewrite = now + REWRITE;
                self.takes_entries = false;
                self.complain(&error);
                is_full(&error) && self.make_room()
            }
        }
    }

    /// On a full disk the oldest go once memory is nearly full, too. Returns whether something went.
    /// Not at the end of the agent: what would be given up then is far more than what memory still holds.
    fn make_room(&mut self) -> bool {
        let Some(spool) = self.spool.as_mut().filter(|spool| self.queue.is_crowded() && spool.bytes() > 0)
        else {
            return false;
        };
        let no_room = drop_oldest(spool, &self.queue);
        self.queue.drops.note(&self.stats, Dropped { no_room, ..Dropped::default() });
        self.rewrite = Instant::now();
        true
    }

    fn is_settling(&self) -> bool {
        Instant::now() < self.settled
    }

    fn keep_caps(&mut self) {
        let is_settling = self.is_settling();
        let Some(spool) = &mut self.spool else { return };
        let (config, now) = (&self.options.config, self.queue.now());
        let mut dropped = Dropped::default();
        while spool.bytes() > config.max_bytes {
            dropped.no_room += drop_oldest(spool, &self.queue);
        }
        let is_old = |(entry, at)| {
            let age = now.duration_since(self.shifts.to_queue(entry, at)).unwrap_or_default();
            age > config.max_age && !(is_settling && self.shifts.is_of_others(entry))
        };
        while spool.has_unread() && spool.oldest_segment().is_some_and(is_old) {
            dropped.too_old += drop_oldest(spool, &self.queue);
        }
        self.queue.drops.note(&self.stats, dropped);
    }

    /// Reads on if there is little left of what was read. Returns whether something was read.
    fn load(&mut self) -> bool {
        let is_settling = self.is_settling();
        let Some(spool) = &mut self.spool else { return false };
        let (size, _) = self.queue.ahead();
        if size > AHEAD / 2 || !spool.has_unread() {
            return false;
        }
        let Loaded { mut entries, damaged_points } = spool.load(AHEAD - size);
        let has_read = !entries.is_empty() || damaged_points > 0;
        let (mut dropped, now) =
            (Dropped { damaged: damaged_points, ..Dropped::default() }, self.queue.now());
        entries.retain_mut(|kept| {
            kept.collected = self.shifts.to_queue(kept.sequence, kept.collected);
            if is_settling && self.shifts.is_of_others(kept.sequence) {
                // In doubt it is young.
                kept.collected =
                    kept.collected.max(now.checked_sub(self.options.config.max_age / 2).unwrap_or(now));
            }
            let age = now.duration_since(kept.collected).unwrap_or_default();
            if age > self.options.config.max_age {
                dropped.too_old += kept.batch.points;
            }
            age <= self.options.config.max_age
        });
        self.queue.loaded(entries, self.on_disk());
        self.queue.drops.note(&self.stats, dropped);
        has_read
    }

    fn settle(&mut self) {
        let Some(spool) = &mut self.spool else { return };
        self.settle = Instant::now() + SETTLE;
        let oldest = self.queue.ahead().1;
        let settled = spool.settle(oldest);
        self.shifts.forget_before(oldest.unwrap_or(0));
        self.takes_cursor = settled.is_ok();
        match settled {
            Ok(()) => self.is_well(),
            Err(error) => self.complain(&error),
        }
    }

    fn on_disk(&self) -> OnDisk {
        self.spool.as_ref().map_or_else(OnDisk::default, |spool| OnDisk {
            has_unread: spool.has_unread(),
            points: spool.unread_points(),
            oldest: spool.oldest_unread().map(|(entry, at)| self.shifts.to_queue(entry, at)),
            bytes: spool.bytes(),
        })
    }

    fn note_damage(&mut self) {
        let found = self.spool.as_ref().map_or(0, Spool::damaged);
        if found > self.damaged {
            let none = Attributes::new::<&str, &str>([]);
            self.stats.add(&DAMAGED, none, (found - self.damaged) as f64);
            self.damaged = found;
        }
    }

    /// Says once what is wrong.
    fn complain(&mut self, error: &SpoolError) {
        let complaint = error.to_string();
        if self.complaint.as_ref() != Some(&complaint) {
            let memory = self.queue.caps().bytes >> 20;
            tracing::warn!("OTLP: {complaint}; meanwhile up to {memory} MiB wait in memory alone");
            self.complaint = Some(complaint);
        }
    }

    fn is_well(&mut self) {
        if self.takes_entries && self.takes_cursor && self.complaint.take().is_some() {
            tracing::info!("OTLP: the spool can be used again");
        }
    }
}

/// Gives up the oldest segment, with what was read of it. Returns the points.
fn drop_oldest(spool: &mut Spool, queue: &Queue) -> usize {
    let (unread, before) = spool.drop_oldest();
    unread + queue.drop_read(before)
}

/// Of this moment.
fn shift(queue: &Queue) -> Shift {
    Shift::between(SystemTime::now(), queue.now())
}

fn is_full(error: &SpoolError) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error, SpoolError::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge))
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
