//! Polls wrapped: one task a vCenter, what becomes of the answers and of the outcome.

use super::callers::Callers;
use super::poll::{PollSetup, VcenterPoller};
use super::{Concluded, count, series};
use crate::inventory::{Inventory, Vcenter};
use crate::outcome::Failure;
use crate::readings::Readings;
use crate::stats::Stats;
use crate::target::{TargetId, TargetKind};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;

/// The polls of all vCenters.
pub struct VcenterPolls {
    setup: watch::Receiver<Arc<PollSetup>>,
    /// The pollers with their sessions; each is polled by one task at a time.
    pollers: Mutex<HashMap<TargetId, Arc<AsyncMutex<VcenterPoller>>>>,
    callers: Arc<Callers>,
    readings: Arc<Readings>,
    stats: Arc<Stats>,
    first_result: watch::Sender<bool>,
}

impl VcenterPolls {
    /// Polls as `setup` says: each poll by the one of its time. `first_result` becomes true with the first poll
    /// that ended.
    pub fn new(
        setup: watch::Receiver<Arc<PollSetup>>,
        readings: Arc<Readings>,
        stats: Arc<Stats>,
        first_result: watch::Sender<bool>,
    ) -> Self {
        let (pollers, callers) = (Mutex::default(), Arc::default());
        Self { setup, pollers, callers, readings, stats, first_result }
    }

    /// The hosts that a vCenter has found again.
    pub(super) fn callers(&self) -> Arc<Callers> {
        Arc::clone(&self.callers)
    }

    /// Polls until cancelled, then logs out everywhere.
    pub(super) async fn run(
        self: Arc<Self>,
        mut inventory: watch::Receiver<Arc<Inventory>>,
        now: Arc<Notify>,
        cancel: CancellationToken,
    ) {
        let mut tasks = JoinSet::new();
        let mut known: HashMap<TargetId, (Arc<Vcenter>, CancellationToken, Arc<Notify>)> = HashMap::new();
        loop {
            let present = Arc::clone(&inventory.borrow_and_update());
            known.retain(|_, (vcenter, stop, _)| {
                let stays = present.vcenters.contains(vcenter);
                if !stays {
                    stop.cancel();
                }
                stays
            });
            for vcenter in &present.vcenters {
                known.entry(vcenter.id()).or_insert_with(|| {
                    let (stop, poll_now) = (cancel.child_token(), Arc::new(Notify::new()));
                    let rounds = Arc::clone(&self).rounds(
                        Arc::clone(vcenter),
                        inventory.clone(),
                        Arc::clone(&poll_now),
                        stop.clone(),
                    );
                    tasks.spawn(rounds.with_current_subscriber());
                    (Arc::clone(vcenter), stop, poll_now)
                });
            }
            tokio::select! {
                () = cancel.cancelled() => break,
                changed = inventory.changed() => if changed.is_err() { cancel.cancelled().await },
                () = now.notified() => known.values().for_each(|(_, _, poll_now)| poll_now.notify_one()),
                Some(_) = tasks.join_next() => {}
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Polls every vCenter once, all at the same time.
    pub(super) async fn round(&self, inventory: &Inventory, concluded: &(impl Fn(Concluded) + Sync)) {
        let polls = inventory.vcenters.iter().map(|vcenter| async move {
            let failure = self.poll(vcenter, inventory).await;
            concluded(Concluded { target: vcenter.id(), failure });
        });
        futures::future::join_all(polls).await;
    }

    /// Logs out of every vCenter. Bounded by the client.
    pub(super) async fn logout_all(&self) {
        let pollers = std::mem::take(&mut *self.lock());
        futures::future::join_all(
            pollers.values().map(|poller| async { poller.lock().await.logout().await }),
        )
        .await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TargetId, Arc<AsyncMutex<VcenterPoller>>>> {
        self.pollers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of one vCenter's task: polls, and logs out when it is stopped.
    async fn rounds(
        self: Arc<Self>,
        vcenter: Arc<Vcenter>,
        inventory: watch::Receiver<Arc<Inventory>>,
        now: Arc<Notify>,
        stop: CancellationToken,
    ) {
        let mut setup = self.setup.clone();
        let mut due = Instant::now();
        while !stop.is_cancelled() {
            let interval = setup.borrow_and_update().interval;
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep_until(due) => {}
                () = now.notified() => {}
                Ok(()) = setup.changed() => {
                    // A shorter interval counts from the last poll on.
                    due = (due + setup.borrow().interval).checked_sub(interval).unwrap_or(due);
                    continue;
                }
            }
            // A poll that takes longer than its interval does not make the next ones crowd.
            due = Instant::now() + interval;
            let inventory = Arc::clone(&inventory.borrow());
            // A poll that is dropped half-way leaves a session that is still known, and logged out below.
            tokio::select! {
                () = stop.cancelled() => break,
                _ = self.poll(&vcenter, &inventory) => {}
            }
        }
        let poller = self.lock().remove(&vcenter.id());
        if let Some(poller) = poller {
            poller.lock().await.logout().await;
        }
        if !inventory.borrow().vcenters.iter().any(|other| other.id() == vcenter.id()) {
            self.readings.forget(&vcenter.id());
            self.callers.forget(&vcenter.id());
        }
    }

    /// One poll, its samples and its outcome stored, its end counted.
    async fn poll(&self, vcenter: &Arc<Vcenter>, inventory: &Inventory) -> Option<Failure> {
        let setup = Arc::clone(&self.setup.borrow());
        let make = || {
            let (vcenter, stats) = (Arc::clone(vcenter), Arc::clone(&self.stats));
            let PollSetup { config, collectors, access, .. } = (*setup).clone();
            Arc::new(AsyncMutex::new(VcenterPoller::new(vcenter, config, collectors, access, stats)))
        };
        let poller = Arc::clone(self.lock().entry(vcenter.id()).or_insert_with(make));
        let started = Instant::now();
        let polled = {
            let mut poller = poller.lock().await;
            poller.adapt(&setup).await;
            poller.poll(inventory).await
        };
        if started.elapsed() >= setup.interval {
            let kind = crate::metric::Attributes::new([("kind", "vcenter")]);
            self.stats.add(&super::schedule::OVERRUNS, kind, 1.0);
        }
        if polled.outcome.is_ok() {
            self.callers.look_at(&vcenter.id(), &polled.reports);
        }
        // What changed was seen by this poll.
        let _seen_by = polled.span.entered();
        for report in polled.reports {
            self.readings.record(report);
        }
        let failure = polled.outcome.err();
        count(&self.stats, TargetKind::Vcenter, failure.as_ref());
        series::conclude_poll(&self.readings, vcenter, failure.clone(), polled.duration);
        self.first_result.send_if_modified(|first| !std::mem::replace(first, true));
        failure
    }
}
