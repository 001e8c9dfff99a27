//! What a vCenter tells of its own accord hurries a read of the hosts concerned. It never takes the place
//! of a poll: a vCenter that tells nothing is found out by the next one.

use super::lane::jittered;
use crate::inventory::Vcenter;
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::stats::Stats;
use crate::vim::client::{Live, VimError};
use crate::vim::listener::{Hint, Listener};
use crate::vim::soap::FaultKind;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info};

/// Least time between the beginnings of two hurried reads of one vCenter: what comes meanwhile is read
/// together.
const PACE: Duration = Duration::from_secs(1);
/// How long the first hint waits for others: what happens to many hosts at once is told in several answers, and those
/// that come too late for a read wait for the next one.
pub(super) const GATHER: Duration = Duration::from_millis(100);
/// A vCenter has this many times as long to itself as the last hurried read took: in a storm a large one is
/// not kept busy with us.
const REST: u32 = 4;
/// So many hosts are read one by one; beyond it the whole vCenter is.
const MOST_HOSTS: usize = 200;
/// Pause after a wait that broke off, at first and at the most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Least time between the beginnings of two waits: a server that does not wait, or has something to say all the time, is
/// not asked in a tight loop.
const BREATH: Duration = Duration::from_millis(100);

/// What became of the waits for hints.
pub static HINTS: MetricDef = MetricDef {
    name: "esxi.agent.vcenter.hints",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Hints by vCenters about changes: received, read (changes were read at once, or by a poll that was due), read_failed, idle (a wait ended \
           without any), lost (a wait broke off), refused (the vCenter or the account's privileges do not allow them).",
    attributes: &["outcome"],
};

fn count(stats: &Stats, outcome: &'static str) {
    stats.add(&HINTS, Attributes::new([("outcome", outcome)]), 1.0);
}

/// Takes down how it went to read what was wished for.
pub(super) fn count_read(stats: &Stats, is_good: bool) {
    count(stats, if is_good { "read" } else { "read_failed" });
}

/// When the next hurried read may begin, after the beginning of one that took so long.
pub(super) fn pause_after(took: Duration) -> Duration {
    PACE.max(took * (1 + REST))
}

/// What is to be read at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    /// These hosts, by their ids.
    Hosts(Vec<Arc<str>>),
    /// Everything.
    Everything,
}

/// Gathers hints until somebody has time to read.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    state: Mutex<State>,
    came: Notify,
}

#[derive(Debug, Default)]
struct State {
    hosts: HashSet<Arc<str>>,
    everything: bool,
}

impl Wishes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, hint: Hint) {
        match hint {
            Hint::Nothing => return,
            Hint::Hosts(hosts) => self.lock().hosts.extend(hosts),
            Hint::Anything => self.lock().everything = true,
        }
        self.came.notify_one();
    }

    fn any(&self) -> bool {
        let state = self.lock();
        state.everything || !state.hosts.is_empty()
    }

    /// Waits until there is something to read. For one waiter.
    pub(super) async fn some(&self) {
        loop {
            if self.any() {
                return;
            }
            self.came.notified().await;
        }
    }

    /// What is to be read, if anything; from now on forgotten.
    pub(super) fn take(&self) -> Option<Wish> {
        let State { hosts, everything } = std::mem::take(&mut *self.lock());
        if everything || hosts.len() > MOST_HOSTS {
            Some(Wish::Everything)
        } else {
            (!hosts.is_empty()).then(|| Wish::Hosts(hosts.into_iter().collect()))
        }
    }
}

/// Listens in each session that there is, until `sessions` is closed; then takes apart what it has at the
/// server. Never logs in: a new session is the poll's business.
pub(super) async fn listen(
    vcenter: &Vcenter,
    mut sessions: watch::Receiver<Option<Live>>,
    wishes: &Wishes,
    stats: &Stats,
) {
    let mut ended = None;
    let mut said = None;
    loop {
        let is_new = |live: &Option<Live>| live.as_ref().is_some_and(|live| Some(live.number) != ended);
        let live = match sessions.wait_for(is_new).await {
            Ok(live) => live.clone(),
            Err(_) => return,
        };
        let Some(live) = live else { continue };
        ended = Some(live.number);
        if let Some(refused) = follow(&live, &mut sessions, wishes, stats).await {
            count(stats, "refused");
            // Once, and not once a session.
            if said.replace(refused.failure.reason) != Some(refused.failure.reason) {
                info!(vcenter = %vcenter.address, "no hints, polls alone find changes: {refused}");
            }
        }
    }
}

/// Listens in one session until that is over. Says why, if the vCenter does not allow it.
async fn follow(
    live: &Live,
    sessions: &mut watch::Receiver<Option<Live>>,
    wishes: &Wishes,
    stats: &Stats,
) -> Option<VimError> {
    let mut pause = PAUSES.0;
    loop {
        let opened = tokio::select! {
            _ = is_over(live, sessions) => return None,
            opened = Listener::open(live) => opened,
        };
        match opened {
            Ok(listener) => {
                let refused = listener.without_events().cloned();
                if let Some(refused) = &refused {
                    debug!("no events: {refused}");
                }
                if heed(listener, live, sessions, wishes, stats, &mut pause).await {
                    return refused;
                }
            }
            Err(error) if error.session_is_gone() => return None,
            Err(error) if is_refusal(&error) => return Some(error),
            Err(error) => debug!("no listener: {error}"),
        }
        count(stats, "lost");
        tokio::select! {
            _ = is_over(live, sessions) => return None,
            () = sleep(jittered(pause)) => {}
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Whether it will be answered alike next time. Whatever else a vCenter says while it starts may pass.
fn is_refusal(error: &VimError) -> bool {
    let kind = error.fault.as_ref().map(|fault| &fault.kind);
    kind.is_some_and(|kind| match kind {
        FaultKind::NoPermission
        | FaultKind::MethodNotFound
        | FaultKind::InvalidRequest
        | FaultKind::InvalidProperty => true,
        FaultKind::Other(name) => matches!(&**name, "NotSupported" | "NotImplemented"),
        _ => false,
    })
}

/// Passes the hints on. True: the session is over; false: what was made at the server has to be made anew.
async fn heed(
    mut listener: Listener,
    live: &Live,
    sessions: &mut watch::Receiver<Option<Live>>,
    wishes: &Wishes,
    stats: &Stats,
    pause: &mut Duration,
) -> bool {
    loop {
        let asked = Instant::now();
        let answer = tokio::select! {
            is_closed = is_over(live, sessions) => {
                if is_closed {
                    listener.close().await;
                }
                return true;
            }
            answer = listener.next() => answer,
        };
        match answer {
            Ok(hint) => {
                *pause = PAUSES.0;
                count(stats, if hint == Hint::Nothing { "idle" } else { "received" });
                wishes.add(hint);
                sleep_until(asked + BREATH).await;
            }
            // Whether the session or the listener alone is gone shows when it is made anew.
            Err(error) if error.session_is_gone() => return false,
            Err(error) => {
                debug!("a wait for hints broke off: {error}");
                count(stats, "lost");
                tokio::select! {
                    is_closed = is_over(live, sessions) => {
                        if is_closed {
                            listener.close().await;
                        }
                        return true;
                    }
                    () = sleep(jittered(*pause)) => {}
                }
                *pause = (*pause * 2).min(PAUSES.1);
            }
        }
    }
}

/// Waits until the session has another one in its place (false) or is to be ended by us (true).
async fn is_over(live: &Live, sessions: &mut watch::Receiver<Option<Live>>) -> bool {
    let is_another = |now: &Option<Live>| now.as_ref().is_none_or(|now| now.number != live.number);
    sessions.wait_for(is_another).await.is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    fn hosts(count: usize) -> Hint {
        Hint::Hosts((0..count).map(|host| format!("host-{host}").into()).collect())
    }

    #[tokio::test]
    async fn hints_are_gathered_until_they_are_taken() {
        let wishes = Wishes::default();
        wishes.add(Hint::Nothing);
        assert_eq!(wishes.some().now_or_never(), None);
        wishes.add(hosts(1));
        wishes.add(hosts(2));
        assert_eq!(wishes.some().now_or_never(), Some(()));
        let Some(Wish::Hosts(taken)) = wishes.take() else { panic!("not everything") };
        assert_eq!(taken.len(), 2, "each once");
        assert_eq!(wishes.some().now_or_never(), None, "they are forgotten then");
    }

    #[test]
    fn a_vcenter_that_takes_long_is_hurried_more_rarely() {
        assert_eq!(pause_after(Duration::from_millis(50)), Duration::from_secs(1));
        assert_eq!(pause_after(Duration::from_secs(4)), Duration::from_secs(20));
    }

    #[tokio::test]
    async fn many_hosts_are_read_with_all_the_others() {
        let wishes = Wishes::default();
        wishes.add(hosts(MOST_HOSTS));
        assert!(matches!(wishes.take(), Some(Wish::Hosts(_))));
        wishes.add(hosts(MOST_HOSTS + 1));
        assert_eq!(wishes.take(), Some(Wish::Everything));
        wishes.add(Hint::Anything);
        wishes.add(hosts(1));
        assert_eq!(wishes.take(), Some(Wish::Everything));
        assert_eq!(wishes.take(), None);
    }
}
