//! Polls wrapped: one task a vCenter, what becomes of the answers and of the outcome.

use super::callers::Callers;
use super::each::{Signals, keep_one_each};
use super::hints::{self, Wish, Wishes};
use super::host_lists::HostList;
use super::poll::{PollSetup, Polled, VcenterPoller};
use super::schedule::{next_on_grid, phase};
use super::{Concluded, count, series};
use crate::inventory::{Inventory, Vcenter};
use crate::outcome::Failure;
use crate::readings::Readings;
use crate::stats::Stats;
use crate::target::{TargetId, TargetKind};
use crate::vim::client::Live;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Least time between two polls that are due.
const APART: Duration = Duration::from_millis(100);

/// The polls of all vCenters.
pub struct VcenterPolls {
    setup: watch::Receiver<Arc<PollSetup>>,
    /// The pollers of single rounds with their sessions; each is polled by one task at a time.
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

    /// Polls until cancelled, then logs out everywhere. Whoever notifies `now` has everybody polled at once.
    pub async fn run(
        self: Arc<Self>,
        inventory: watch::Receiver<Arc<Inventory>>,
        now: Arc<Notify>,
        cancel: CancellationToken,
    ) {
        let setup = self.setup.clone();
        let signals = Signals { inventory: inventory.clone(), setup, now, cancel };
        keep_one_each(
            signals,
            |present| present.vcenters.clone(),
            |vcenter, now, stop| Arc::clone(&self).rounds(vcenter, inventory.clone(), now, stop),
        )
        .await;
    }

    /// Polls every vCenter once, all at the same time.
    pub(super) async fn round(&self, inventory: &Inventory, concluded: &(impl Fn(Concluded) + Sync)) {
        let polls = inventory.vcenters.iter().map(|vcenter| async move {
            let poller = Arc::clone(
                self.lock()
                    .entry(vcenter.id())
                    .or_insert_with(|| Arc::new(AsyncMutex::new(self.poller(vcenter)))),
            );
            let failure = self.poll(&mut *poller.lock().await, inventory).await;
            concluded(Concluded { target: vcenter.id(), failure });
        });
        futures::future::join_all(polls).await;
    }

    /// Logs out of every vCenter that [`VcenterPolls::round`] polled. Bounded by the client.
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

    /// The life of one vCenter's task: polls, listens in the session meanwhile, and logs out when it is
    /// stopped.
    async fn rounds(
        self: Arc<Self>,
        vcenter: Arc<Vcenter>,
        inventory: watch::Receiver<Arc<Inventory>>,
        now: Arc<Notify>,
        stop: CancellationToken,
    ) {
        let mut poller = self.poller(&vcenter);
        let (session, sessions) = watch::channel(None);
        let wishes = Wishes::default();
        let asking = async {
            // Closed when the last poll is over: who listens takes down its tents then, before the logout.
            let session = session;
            self.ask(&mut poller, &inventory, &now, &stop, &session, &wishes).await;
        };
        let listening = async {
            hints::listen(&vcenter, sessions, &wishes, &self.stats).await;
        };
        tokio::join!(asking, listening);
        poller.logout().await;
        if !inventory.borrow().vcenters.iter().any(|other| other.id() == vcenter.id()) {
            self.readings.forget(&vcenter.id());
            self.callers.forget(&vcenter.id());
        }
    }

    /// Polls whenever it is time, somebody asks for it, or the vCenter says that something has changed.
    /// A poll that is dropped half-way leaves a session that is still known.
    async fn ask(
        &self,
        poller: &mut VcenterPoller,
        inventory: &watch::Receiver<Arc<Inventory>>,
        now: &Notify,
        stop: &CancellationToken,
        session: &watch::Sender<Option<Live>>,
        wishes: &Wishes,
    ) {
        let started = Instant::now();
        // Many vCenters are not asked all at the same moment, but for the first time.
        let phase = phase(&poller.vcenter().address);
        let mut setup = self.setup.clone();
        let mut due = started;
        let mut may_hurry = started;
        loop {
            // Not marked as seen: what changes during a poll is taken over right after it.
            let interval = setup.borrow().interval;
            let hurried = async {
                wishes.some().await;
                sleep_until(may_hurry.max(Instant::now() + hints::GATHER)).await;
            };
            let is_hurried = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = setup.changed() => {
                    let setup = Arc::clone(&setup.borrow());
                    poller.adapt(&setup).await;
                    listen_in(poller, session);
                    // A shorter interval counts at once.
                    due = due.min(next_on_grid(started, phase, setup.interval, Instant::now()));
                    continue;
                }
                () = sleep_until(due) => false,
                () = now.notified() => false,
                () = hurried => true,
            };
            let wish = wishes.take();
            let began = Instant::now();
            let inventory = Arc::clone(&inventory.borrow());
            let polling = async {
                match wish {
                    Some(wish) if is_hurried => self.hurry(poller, wish, &inventory).await,
                    // A poll that is due anyway reads what was wished for, too.
                    wish => {
                        let failure = self.poll(poller, &inventory).await;
                        if wish.is_some() {
                            hints::count_read(&self.stats, failure.is_none());
                        }
                        true
                    }
                }
            };
            let was_poll = tokio::select! {
                () = stop.cancelled() => return,
                was_poll = polling => was_poll,
            };
            listen_in(poller, session);
            let now = Instant::now();
            if is_hurried {
                may_hurry = now.max(began + hints::pause_after(now - began));
            }
            // The read of some hosts that took until then is none: the poll comes next.
            if was_poll && now >= due {
                // The second poll comes by the timetable, and not later than an interval after the first: a change
                // must not wait longer for it than for any other.
                let earliest = now.max(due + APART);
                due = next_on_grid(started, phase, interval, earliest);
            }
        }
    }

    /// A poller for the setup of now.
    fn poller(&self, vcenter: &Arc<Vcenter>) -> VcenterPoller {
        let (vcenter, stats) = (Arc::clone(vcenter), Arc::clone(&self.stats));
        let PollSetup { config, files, collectors, access, discovery, .. } = (**self.setup.borrow()).clone();
        let poller = VcenterPoller::new(vcenter, config, collectors, access, stats).with_files(files);
        match discovery {
            Some(discovery) => poller.listing(HostList::new(discovery)),
            None => poller,
        }
    }

    /// One poll, its samples and its outcome stored, its end counted and, if it is news, told.
    async fn poll(&self, poller: &mut VcenterPoller, inventory: &Inventory) -> Option<Failure> {
        let started = Instant::now();
        let polled = poller.poll(inventory).await;
        if started.elapsed() >= self.setup.borrow().interval {
            let kind = crate::metric::Attributes::new([("kind", "vcenter")]);
            self.stats.add(&super::schedule::OVERRUNS, kind, 1.0);
        }
        let failure = self.conclude(poller, polled);
        if failure.is_none() {
            self.details(poller, inventory).await;
        }
        failure
    }

    /// The news is out: now for what is large and slow to change, as far as it is due.
    async fn details(&self, poller: &mut VcenterPoller, inventory: &Inventory) {
        for report in poller.poll_details(inventory).await {
            self.readings.record(report);
        }
    }

    /// Reads what there was a hint about. Unless that turned out to be everything, it is no poll: what
    /// fails is read by the next one, and told by that.
    /// Returns whether it was a poll.
    async fn hurry(&self, poller: &mut VcenterPoller, wish: Wish, inventory: &Inventory) -> bool {
        let polled = match &wish {
            Wish::Everything => poller.poll(inventory).await,
            Wish::Hosts(hosts) => poller.poll_hosts(hosts, inventory).await,
        };
        hints::count_read(&self.stats, polled.outcome.is_ok());
        if polled.is_whole {
            self.conclude(poller, polled);
            self.details(poller, inventory).await;
            return true;
        }
        if let Err(failure) = &polled.outcome {
            tracing::debug!("a hint could not be followed: {failure}");
            return false;
        }
        self.callers.look_at(&poller.vcenter().id(), &polled.reports, false);
        polled.span.in_scope(|| polled.reports.into_iter().for_each(|report| self.readings.record(report)));
        // Why a host has just turned red is one of them.
        self.details(poller, inventory).await;
        false
    }

    fn conclude(&self, poller: &VcenterPoller, polled: Polled) -> Option<Failure> {
        let vcenter = poller.vcenter();
        if polled.outcome.is_ok() {
            self.callers.look_at(&vcenter.id(), &polled.reports, true);
        }
        // What changed was seen by this poll.
        let _seen_by = polled.span.entered();
        for report in polled.reports {
            self.readings.record(report);
        }
        let failure = polled.outcome.err();
        count(&self.stats, TargetKind::Vcenter, failure.as_ref());
        let expires = poller.certificate().and_then(|certificate| certificate.expires);
        series::conclude_poll(&self.readings, vcenter, failure.clone(), polled.duration, expires);
        self.first_result.send_if_modified(|first| !std::mem::replace(first, true));
        failure
    }
}

/// Lets those who listen know in which session, if hints are wanted.
fn listen_in(poller: &VcenterPoller, session: &watch::Sender<Option<Live>>) {
    let live = poller.hints().then(|| poller.live()).flatten();
    let number = |live: &Option<Live>| live.as_ref().map(|live| live.number);
    session.send_if_modified(|before| {
        let is_new = number(before) != number(&live);
        *before = live;
        is_new
    });
}
