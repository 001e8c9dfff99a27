//! Spans and log records on their way out: one queue a signal, from which one task sends in portions. What a
//! Collector does not take for now goes back to the front and waits within the queue's cap; the oldest go
//! first then, and are counted.
//!
//! In place of the SDK's batch processors: those drop a batch whose export failed, hold up the others while
//! a Collector hangs, reserve all their room at the start, and drop in silence what does not fit.

use super::export::addresses::Addresses;
use super::export::follow::renewed;
use super::export::pauses::Pauses;
use super::export::peer::{Complaints, Presence, Signal};
use super::export::transport::Destination;
use super::{TelemetryError, signals};
use crate::metric::{Attributes, MetricDef};
use crate::stats::Stats;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

/// Items of one request.
const AT_ONCE: usize = 512;
/// Time that items have to become a full request.
const DELAY: Duration = Duration::from_secs(1);
/// Tries of a single item of which a Collector says that it is too much.
const ALONE: u32 = 3;
/// Pause while the agent ends: there is no time left for more.
const CLOSING_PAUSE: Duration = Duration::from_millis(200);
/// What the limit of a call does not cover: the wait for a connection.
const MARGIN: Duration = Duration::from_secs(1);

/// Sends the items of a signal once.
pub(super) trait Post: Sized + Send + Sync {
    /// A span, a record.
    type Item: Clone + Debug + Send;
    /// Whose items these are.
    const SIGNAL: Signal;
    /// Sends them; an error tells whether it may succeed later.
    fn post(&self, items: Vec<Self::Item>) -> impl Future<Output = OTelSdkResult> + Send;
}

/// The queue. Whoever has something to send puts it in.
#[derive(Debug)]
pub(super) struct Outbox<T>(Arc<Inner<T>>);

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<T> {
    waiting: Mutex<VecDeque<T>>,
    cap: AtomicUsize,
    first: Notify,
    full: Notify,
    counter: &'static MetricDef,
    stats: Arc<Stats>,
}

impl<T> Outbox<T> {
    /// An empty one for so many items. `counter` says what becomes of them: exported, dropped.
    pub(super) fn new(cap: usize, counter: &'static MetricDef, stats: Arc<Stats>) -> Self {
        let (waiting, first, full) = (Mutex::default(), Notify::new(), Notify::new());
        Self(Arc::new(Inner { waiting, cap: cap.into(), first, full, counter, stats }))
    }

    /// From now on so many items may wait.
    pub(super) fn set_cap(&self, cap: usize) {
        self.0.cap.store(cap, Ordering::Relaxed);
    }

    /// Puts an item behind all others.
    pub(super) fn push(&self, item: T) {
        let mut waiting = self.lock();
        waiting.push_back(item);
        let (length, dropped) = (waiting.len(), self.shrink(&mut waiting));
        drop(waiting);
        self.count("dropped", dropped);
        if length == 1 {
            self.0.first.notify_one();
        } else if length == AT_ONCE {
            self.0.full.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shrink(&self, waiting: &mut VecDeque<T>) -> usize {
        let too_many = waiting.len().saturating_sub(self.0.cap.load(Ordering::Relaxed));
        waiting.drain(..too_many);
        too_many
    }

    fn count(&self, outcome: &'static str, items: usize) {
        if items > 0 {
            self.0.stats.add(self.0.counter, Attributes::new([("outcome", outcome)]), items as f64);
        }
    }

    /// The oldest items, so many at most.
    fn take(&self, most: usize) -> Vec<T> {
        let mut waiting = self.lock();
        let portion = waiting.len().min(most);
        waiting.drain(..portion).collect()
    }

    /// Puts items back before all others.
    fn put_back(&self, items: Vec<T>) {
        let mut waiting = self.lock();
        items.into_iter().rev().for_each(|item| waiting.push_front(item));
        let dropped = self.shrink(&mut waiting);
        drop(waiting);
        self.count("dropped", dropped);
    }

    /// Waits until a request is full, or its first item has waited long enough.
    async fn filled(&self) {
        while self.lock().is_empty() {
            self.0.first.notified().await;
        }
        if self.lock().len() < AT_ONCE {
            let _ = timeout(DELAY, self.0.full.notified()).await;
        }
    }
}

/// Makes what sends to a destination.
type Build<P> = Box<dyn Fn(&Destination) -> Result<P, TelemetryError> + Send>;

/// Empties an outbox into the Collector.
pub(super) struct Postman<P: Post> {
    outbox: Outbox<P::Item>,
    destination: watch::Receiver<Destination>,
    build: Build<P>,
    post: P,
    /// Where `post` sends to.
    at: Destination,
    addresses: Addresses,
    presence: Arc<Presence>,
    pauses: Pauses,
    /// Items of one request: fewer than [`AT_ONCE`] where those were too large for the Collector.
    portion: usize,
    /// How often in a row a single item was said to be too much.
    alone: u32,
    complaints: Complaints,
}

impl<P: Post> Postman<P> {
    /// Sends to the destination of the time, by what `build` makes of it.
    ///
    /// # Errors
    /// When nothing can be made of the first one.
    pub(super) fn new(
        outbox: Outbox<P::Item>,
        mut destination: watch::Receiver<Destination>,
        build: impl Fn(&Destination) -> Result<P, TelemetryError> + Send + 'static,
        presence: Arc<Presence>,
    ) -> Result<Self, TelemetryError> {
        let at = destination.borrow_and_update().clone();
        let (post, addresses, build) = (build(&at)?, Addresses::of(&at.peer), Box::new(build));
        let (pauses, portion, alone, complaints) = (Pauses::new(), AT_ONCE, 0, Complaints::default());
        Ok(Self {
            outbox,
            destination,
            build,
            post,
            at,
            addresses,
            presence,
            pauses,
            portion,
            alone,
            complaints,
        })
    }

    /// Sends until `closing` says so and nothing waits any more. To be dropped when there is no time left.
    pub(super) async fn run(mut self, mut closing: watch::Receiver<bool>) {
        loop {
            let ends = *closing.borrow_and_update();
            // What was not taken has waited long enough.
            let is_behind = !self.pauses.are_over();
            if !ends && !is_behind {
                tokio::select! {
                    () = self.outbox.filled() => {}
                    _ = closing.changed() => continue,
                }
            }
            let portion = self.outbox.take(self.portion);
            if portion.is_empty() {
                if ends {
                    return;
                }
                self.pauses.restart();
                continue;
            }
            let Some(pause) = self.deliver(portion).await else { continue };
            let pause = if ends { pause.min(CLOSING_PAUSE) } else { pause };
            tokio::select! {
                () = sleep(pause) => {}
                // Another Collector may be there.
                Ok(()) = self.destination.changed() => self.destination.mark_changed(),
                _ = closing.changed(), if !ends => {}
            }
        }
    }

    /// Tries once. Returns the pause before the next try.
    async fn deliver(&mut self, portion: Vec<P::Item>) -> Option<Duration> {
        if let Some(new) = renewed(&mut self.destination) {
            self.addresses = Addresses::of(&new.peer);
            self.connect_anew(new);
        } else if self.addresses.have_changed() {
            self.connect_anew(self.at.clone());
        }
        let limit = self.at.peer.limit() + MARGIN;
        let items = portion.len();
        let posted = timeout(limit, self.post.post(portion.clone())).await;
        let error = match posted.unwrap_or(Err(OTelSdkError::Timeout(limit))) {
            Ok(()) => {
                self.answered();
                self.outbox.count("exported", items);
                self.portion = (self.portion + self.portion / 8 + 1).min(AT_ONCE);
                self.alone = 0;
                self.complaints.is_over();
                return None;
            }
            Err(error) => error,
        };
        let is_too_much = signals::is_too_much(&error);
        if is_too_much && items > 1 {
            self.answered();
            self.outbox.put_back(portion);
            self.portion = items / 2;
            return Some(Pauses::SHORTEST);
        }
        self.alone = if is_too_much { self.alone + 1 } else { 0 };
        // It may also be a quota: that passes, and nothing is sent meanwhile.
        if signals::is_passing(&error) || is_too_much && self.alone < ALONE {
            self.presence.is_lost(P::SIGNAL, self.at.peer.name(), &signals::explain(&error));
            self.outbox.put_back(portion);
            // A connection into a black hole would be used until TCP gives it up, after minutes.
            self.connect_anew(self.at.clone());
            return Some(self.pauses.next());
        }
        if is_too_much {
            self.alone = 0;
            self.refused(items, &error);
            return Some(self.pauses.next());
        }
        self.refused(items, &error);
        if signals::is_about_sender(&error) {
            // What waits is not to follow it at once: somebody may mend that. Metrics may well be taken there, so
            // that is no reason to go elsewhere.
            return Some(self.pauses.next());
        }
        self.answered();
        None
    }

    fn refused(&mut self, items: usize, error: &OTelSdkError) {
        self.outbox.count("dropped", items);
        let complaint = format!("{} are refused and lost: {}", P::SIGNAL.items(), signals::explain(error));
        if self.complaints.is_news(&complaint) {
            self.presence.say(|| tracing::warn!("OTLP: {complaint}"));
        }
    }

    fn connect_anew(&mut self, to: Destination) {
        match (self.build)(&to) {
            Ok(post) => (self.post, self.at) = (post, to),
            Err(error) => self.presence.say(|| tracing::warn!("{error}; the old way is used")),
        }
    }

    /// There is a Collector, whatever it says.
    fn answered(&mut self) {
        self.presence.is_there(P::SIGNAL, self.at.peer.name());
        self.pauses.restart();
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
