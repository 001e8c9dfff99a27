//! The task that decides when something is exported.

use super::encode::Limits;
use super::follow::changed;
use super::gather::{Gathered, Gatherer};
use super::queue::Queue;
use super::sender::{Closing, Sender};
use super::spool::{self, Keeper};
use super::transport::Transport;
use super::{Dropped, QUEUE_AGE, QUEUE_BYTES};
use crate::metric::Attributes;
use crate::readings::{Following, Readings};
use crate::stats::Stats;
use crate::telemetry::metrics::{CollectError, Instruments};
use crate::telemetry::process;
use opentelemetry_sdk::Resource;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::instrument::WithSubscriber;

/// Time that a change waits for others: what a visit or poll brings is recorded at once, and is one export.
const GATHER: Duration = Duration::from_millis(50);
/// Least time between two exports of changes: while a fleet falls ill they are few and not one a host, and each
/// change is out within a second.
const APART: Duration = Duration::from_millis(500);

/// Kept of the time for the end, for writing down what was sent of the spool.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// When, and in what portions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Pause between two exports of everything.
    pub interval: Duration,
    /// Size of a request.
    pub limits: Limits,
}

/// What is exported, and where it waits.
#[derive(Debug)]
pub struct Parts {
    /// Who exports.
    pub resource: Resource,
    /// What was found out.
    pub readings: Arc<Readings>,
    /// What the agent counts about itself.
    pub stats: Arc<Stats>,
    /// The queue that the sender empties.
    pub queue: Arc<Queue>,
    /// Keeps it on disk; `None`: it is in memory alone.
    pub keeper: Option<Keeper>,
}

/// A handle on the running exporter.
#[derive(Debug, Clone)]
pub struct Exporter {
    commands: mpsc::Sender<Command>,
}

/// The exporter has ended already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the exporter has ended")]
pub struct ExporterGone;

#[derive(Debug)]
enum Command {
    Everything(oneshot::Sender<()>),
    Finish(Instant, oneshot::Sender<()>),
}

impl Exporter {
    /// Starts the exporter and its sender on the current runtime; other `options` hold from the next export on.
    /// `cancel` ends both at once; whoever wants what is left to be sent calls [`Exporter::finish`] before.
    pub fn spawn<T: Transport + 'static>(
        options: watch::Receiver<Options>,
        parts: Parts,
        sender: Sender<T>,
        cancel: CancellationToken,
    ) -> Self {
        let (commands, receiver) = mpsc::channel(8);
        let (closing, closes) = watch::channel(Closing::No);
        let sender = AbortOnDropHandle::new(tokio::spawn(sender.run(closes).with_current_subscriber()));
        let following = Arc::new(parts.readings.follow());
        let started = SystemTime::now();
        let task = Task { options, gatherer: None, started, parts, following, closing, sender };
        let task = async move { cancel.run_until_cancelled(task.run(receiver)).await };
        tokio::spawn(task.with_current_subscriber());
        Self { commands }
    }

    /// Collects everything now and returns when it is queued.
    pub async fn export_now(&self) -> Result<(), ExporterGone> {
        self.ask(Command::Everything).await
    }

    /// Collects everything a last time, waits until the queue is empty, at most until `deadline`, and ends.
    /// What can't be sent by then stays on the disk for the next start. Where it is there already and nobody takes it,
    /// nobody is waited for.
    pub async fn finish(&self, deadline: Instant) -> Result<(), ExporterGone> {
        self.ask(|done| Command::Finish(deadline, done)).await
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) -> Result<(), ExporterGone> {
        let (done, is_done) = oneshot::channel();
        self.commands.send(command(done)).await.map_err(|_| ExporterGone)?;
        is_done.await.map_err(|_| ExporterGone)
    }
}

struct Task {
    options: watch::Receiver<Options>,
    /// `None` before the first collection and after one that panicked.
    gatherer: Option<Gatherer>,
    started: SystemTime,
    parts: Parts,
    following: Arc<Following>,
    closing: watch::Sender<Closing>,
    sender: AbortOnDropHandle<()>,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut options = self.options.clone();
        let mut every = options.borrow_and_update().interval;
        let mut ticks = ticks(Instant::now(), every);
        let following = Arc::clone(&self.following);
        let mut changes_due: Option<Instant> = None;
        let mut next_changes = Instant::now();
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Everything(done)) => {
                        self.export_everything().await;
                        changes_due = None;
                        // Whoever asked may have lost interest.
                        let _ = done.send(());
                    }
                    Some(Command::Finish(deadline, done)) => {
                        self.finish(deadline).await;
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                },
                _ = ticks.tick() => {
                    self.export_everything().await;
                    changes_due = None;
                }
                () = changed(&mut options) => {
                    let Options { interval, limits } = *options.borrow_and_update();
                    if interval != every {
                        every = interval;
                        ticks = self::ticks(Instant::now() + every, every);
                    }
                    if let Some(gatherer) = &mut self.gatherer {
                        gatherer.set_limits(limits);
                    }
                }
                () = following.changed(), if changes_due.is_none() => {
                    changes_due = Some(next_changes.max(Instant::now() + GATHER));
                }
                () = sleep_until(changes_due.unwrap_or_else(Instant::now)), if changes_due.is_some() => {
                    self.export_changes().await;
                    (changes_due, next_changes) = (None, Instant::now() + APART);
                }
            }
        }
    }

    async fn finish(&mut self, deadline: Instant) {
        let queue = Arc::clone(&self.parts.queue);
        let reserve = LAST_WORDS.min(deadline.saturating_duration_since(Instant::now()) / 4);
        let last_words = deadline.checked_sub(reserve).unwrap_or(deadline);
        // Whatever was collected before has to get to the disk, also where this takes too long.
        let _ = timeout_at(last_words, self.export_everything()).await;
        let is_kept = timeout_at(deadline, queue.flush()).await.unwrap_or(false);
        self.closing.send_replace(if is_kept { Closing::Kept } else { Closing::Volatile });
        tokio::select! {
            () = queue.wait_empty() => {}
            // Nobody takes it, and it is kept.
            _ = &mut self.sender => {}
            () = sleep_until(last_words) => {}
        }
        let ending = async {
            let is_kept = queue.flush().await;
            if let Some(keeper) = self.parts.keeper.take() {
                keeper.end().await;
            }
            is_kept
        };
        let is_kept = timeout_at(deadline, ending).await.unwrap_or(false);
        self.conclude(is_kept);
    }

    /// Says what became of the points that were not sent.
    fn conclude(&self, is_kept: bool) {
        let load = self.parts.queue.load();
        let at_end = if is_kept { 0 } else { load.volatile };
        self.parts.queue.drops.note(&self.parts.stats, Dropped { at_end, ..Dropped::default() });
        let kept = load.points - at_end;
        if kept > 0 {
            tracing::info!("OTLP: {kept} points wait in the spool for the next start");
        }
    }

    async fn export_everything(&mut self) {
        self.note_queue();
        let mut own = self.parts.stats.samples();
        own.extend(process::samples());
        // The snapshot, which is younger, holds them all.
        let _ = self.following.take();
        let snapshot = self.parts.readings.snapshot();
        self.export(move |gatherer| gatherer.everything(&snapshot, own)).await;
    }

    async fn export_changes(&mut self) {
        let changes = self.following.take();
        if !changes.is_empty() {
            self.export(move |gatherer| gatherer.changes(changes)).await;
        }
    }

    async fn export(
        &mut self,
        gather: impl FnOnce(&mut Gatherer) -> Result<Gathered, CollectError> + Send + 'static,
    ) {
        let mut gatherer = self.gatherer.take().unwrap_or_else(|| {
            let instruments = Instruments::new(self.parts.resource.clone());
            Gatherer::new(instruments, self.options.borrow().limits, self.started)
        });
        let gathered = tokio::task::spawn_blocking(move || {
            let gathered = gather(&mut gatherer);
            (gatherer, gathered)
        });
        let gathered = match gathered.await {
            Ok((gatherer, gathered)) => {
                self.gatherer = Some(gatherer);
                gathered
            }
            Err(panicked) => return tracing::error!("collecting the metrics failed: {panicked}"),
        };
        match gathered {
            Ok(Gathered { batches, .. }) => {
                let Parts { queue, stats, .. } = &self.parts;
                let now = queue.now();
                for batch in batches {
                    queue.drops.note(stats, queue.push(batch, now, now));
                }
                self.note_queue();
            }
            Err(error) => tracing::error!("{error}"),
        }
    }

    fn note_queue(&self) {
        let load = self.parts.queue.load();
        let age = load.oldest.and_then(|oldest| self.parts.queue.now().duration_since(oldest).ok());
        let set = |def, value| self.parts.stats.set(def, Attributes::new::<&str, &str>([]), value);
        set(&QUEUE_BYTES, load.bytes as f64);
        set(&QUEUE_AGE, age.unwrap_or_default().as_secs_f64());
        if self.parts.keeper.is_some() {
            set(&spool::BYTES, load.spooled as f64);
        }
    }
}

fn ticks(first: Instant, every: Duration) -> Interval {
    let mut ticks = interval_at(first, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[cfg(test)]
#[path = "exporter_tests.rs"]
mod tests;
