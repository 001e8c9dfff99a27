//! A large part of the fleet that is lost at once, and comes back at once.
//!
//! What takes so many away is most often the agent's own network. Their pauses have grown meanwhile; so when
//! one of them answers the others are tried soon, too, and until then one of them is tried at every interval.
//! Who was lost alone waits as long as ever.

use crate::target::TargetId;
use std::time::Duration;
use tokio::time::Instant;

/// One in so many hosts of a fleet is a large part of it; two at least.
const LARGE_PART: usize = 10;

/// Watches who leaves the normal lane.
#[derive(Debug, Default)]
pub(super) struct Outages {
    /// Since when losses are counted, and how many there were. One interval long.
    window: Option<(Instant, usize)>,
    last: Option<Outage>,
    /// Who is tried for all of them.
    pub(super) scout: Option<TargetId>,
}

/// The last time that many were lost within an interval.
#[derive(Debug)]
struct Outage {
    began: Instant,
    /// When the last one was lost.
    until: Instant,
    /// When one of them answered.
    answered: Option<Instant>,
}

impl Outages {
    /// One of `fleet` hosts has left the normal lane.
    pub(super) fn lost(&mut self, now: Instant, fleet: usize, interval: Duration) {
        let (began, lost) = match self.window {
            Some((began, lost)) if now < began + interval => (began, lost + 1),
            _ => (now, 1),
        };
        self.window = Some((began, lost));
        // Until somebody answers it is not over: where there are few places the last ones are lost one by one.
        let goes_on = |outage: &&mut Outage| outage.answered.is_none() && now <= outage.until + interval;
        if let Some(outage) = self.last.as_mut().filter(goes_on) {
            outage.until = now;
            return;
        }
        if lost < (fleet / LARGE_PART).max(2) {
            return;
        }
        match &mut self.last {
            Some(outage) if began <= outage.until + interval => outage.until = now,
            last => *last = Some(Outage { began, until: now, answered: None }),
        }
    }

    /// Whether a host that left the normal lane at `left` was lost together with many.
    pub(super) fn includes(&self, left: Option<Instant>) -> bool {
        let Some((outage, left)) = self.last.as_ref().zip(left) else { return false };
        (outage.began..=outage.until).contains(&left)
    }

    /// Whether one of those that were lost together with who left at `left` has answered within the last
    /// interval: a visit that was under way then says nothing about now.
    pub(super) fn is_ending(&self, left: Option<Instant>, now: Instant, interval: Duration) -> bool {
        let answered = self.last.as_ref().and_then(|outage| outage.answered);
        self.includes(left) && answered.is_some_and(|at| now < at + interval)
    }

    /// A host that had left the normal lane at `left` answers. Returns whether to try the others: once an
    /// interval at most, as they may come back one part after the other.
    pub(super) fn ends(&mut self, left: Option<Instant>, now: Instant, interval: Duration) -> bool {
        let is_one = self.includes(left);
        let Some(outage) = self.last.as_mut().filter(|_| is_one) else { return false };
        if outage.answered.is_some_and(|at| now < at + interval) {
            return false;
        }
        outage.answered = Some(now);
        true
    }
}
