//! Which of several Collectors everything goes to: the first one of the list that there is. One at a time, so that
//! points stay in their order.
//!
//! A Collector is left when something that was sent to it failed for a reason that may pass, and another one takes
//! connections. Those that are preferred are looked for once a minute, and gone back to. Each time that one is lost
//! soon after everything went there, the next change takes twice as long.

use super::export::COLLECTOR;
use super::export::peer::{Peer, Presence};
use super::export::transport::Destination;
use crate::metric::Attributes;
use crate::stats::Stats;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// Pause before a look for a Collector that is preferred.
const LOOK: Duration = Duration::from_secs(60);
/// Least time that everything stays at one, and pause between two looks while all are away.
const STAY: Duration = Duration::from_secs(5);
/// Whoever is lost within this time, since everything went there, takes connections and nothing else.
const SOON: Duration = Duration::from_secs(120);
/// Both pauses are doubled this often at most.
const MOST_SETBACKS: u32 = 5;

/// The Collectors, the preferred one first. Never empty.
pub(super) type Collectors = Arc<[Destination]>;

/// Finds out whether a Collector is there. A trait so that the rules can be tested without a network.
pub(super) trait Probe: Send + Sync {
    /// Returns within the limit of one call.
    fn is_there(&self, peer: &Peer) -> impl Future<Output = bool> + Send;
}

/// Connects to it.
#[derive(Debug)]
pub(super) struct Connect;

impl Probe for Connect {
    async fn is_there(&self, peer: &Peer) -> bool {
        peer.takes_connections().await
    }
}

/// Sees to it that what is sent goes where it is taken.
#[derive(Debug)]
pub(super) struct Failover<P> {
    probe: P,
    destination: watch::Sender<Destination>,
    presence: Arc<Presence>,
    stats: Arc<Stats>,
    /// Index of the one that everything goes to.
    current: usize,
    /// When it was changed to the current one; `None`: it has been that from the start.
    moved: Option<Instant>,
    /// How often in a row one was lost soon.
    setbacks: u32,
}

impl<P: Probe> Failover<P> {
    /// Begins with everything at the first one, which `destination` and `presence` are made with.
    pub(super) fn new(
        probe: P,
        destination: watch::Sender<Destination>,
        presence: Arc<Presence>,
        stats: Arc<Stats>,
    ) -> Self {
        Self { probe, destination, presence, stats, current: 0, moved: None, setbacks: 0 }
    }

    /// Follows the list for ever, or until nobody can name another one any more.
    pub(super) async fn run(mut self, mut collectors: watch::Receiver<Collectors>) {
        let mut all = Arc::clone(&collectors.borrow());
        self.count(&all);
        loop {
            tokio::select! {
                changed = collectors.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let new = Arc::clone(&collectors.borrow_and_update());
                    let is_same = names(&all).eq(names(&new));
                    all = new;
                    match all.get(self.current).filter(|_| is_same) {
                        // Who is there, and who fails, is known. How to reach them may be new.
                        Some(destination) => drop(self.destination.send_replace(destination.clone())),
                        None => {
                            self.move_to(0, &all);
                            self.setbacks = 0;
                        }
                    }
                }
                better = self.find(&all) => {
                    if self.presence.is_away() {
                        let is_soon = self.moved.is_some_and(|at| at.elapsed() < SOON + self.patience(STAY));
                        self.setbacks = if is_soon { (self.setbacks + 1).min(MOST_SETBACKS) } else { 0 };
                    }
                    self.move_to(better, &all);
                    tell(better, &all);
                }
            }
        }
    }

    /// Waits until there is one that is better than the current one.
    async fn find(&self, all: &[Destination]) -> usize {
        loop {
            tokio::select! {
                () = self.presence.away(), if all.len() > 1 => {
                    if let Some(at) = self.moved {
                        sleep_until(at + self.patience(STAY)).await;
                    }
                }
                () = sleep(self.patience(LOOK)), if self.current > 0 => {}
                // There is only one.
                else => std::future::pending().await,
            }
            for (index, Destination { peer, .. }) in all.iter().enumerate() {
                let is_better = || index < self.current || index > self.current && self.presence.is_away();
                // The current one may be back by the time that another one has answered.
                if is_better() && self.probe.is_there(peer).await && is_better() {
                    return index;
                }
            }
            sleep(STAY).await;
        }
    }

    fn patience(&self, pause: Duration) -> Duration {
        pause * 2_u32.pow(self.setbacks)
    }

    fn move_to(&mut self, index: usize, all: &[Destination]) {
        let Some(destination) = all.get(index) else { return };
        (self.current, self.moved) = (index, Some(Instant::now()));
        // Before anything can be sent there.
        self.presence.moves_to(destination.peer.name());
        self.destination.send_replace(destination.clone());
        self.count(all);
    }

    fn count(&self, all: &[Destination]) {
        let none = Attributes::new::<&str, &str>([]);
        match all {
            [_] => self.stats.unset(&COLLECTOR, &none),
            _ => self.stats.set(&COLLECTOR, none, self.current as f64),
        }
    }
}

fn names(all: &[Destination]) -> impl Iterator<Item = &str> {
    all.iter().map(|destination| destination.peer.name())
}

fn tell(index: usize, all: &[Destination]) {
    let name = |index: usize| all.get(index).map_or("", |destination| destination.peer.name());
    match index {
        0 => tracing::info!("OTLP: everything goes to {} again", name(0)),
        _ => tracing::warn!("OTLP: everything goes to {}, until {} is back", name(index), name(0)),
    }
}

#[cfg(test)]
#[path = "failover_tests.rs"]
mod tests;
