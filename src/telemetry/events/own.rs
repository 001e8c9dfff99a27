//! What happens to the agent itself, told from what it counts.

use super::Event;
use super::catalog::{EVENTS_LOST, GUARD_CLOSED, GUARD_OPENED, GUARD_UNUSABLE, GUARD_USABLE, POINTS_DROPPED};
use crate::metric::Sample;
use std::time::Duration;
use tokio::time::Instant;

const CLOSED: &str = "esxi.agent.guard.closed";
const USABLE: &str = "esxi.agent.guard.usable";
const POINTS: &str = "esxi.agent.export.points";

/// All of them.
#[cfg(test)]
pub(super) const METRICS: &[&str] = &[CLOSED, USABLE, POINTS];

/// Shortest pause between two lines about points that are lost in one way: while a Collector is away they are dropped
/// all the time.
const DROPS: Duration = Duration::from_secs(600);

/// What was counted the last time.
#[derive(Debug, Default)]
pub(super) struct Own {
    closed: f64,
    unusable: bool,
    dropped: Losses,
    rejected: Losses,
}

/// Points that were lost in one way.
#[derive(Debug, Default)]
struct Losses {
    known: f64,
    told: Option<Instant>,
}

impl Losses {
    /// How many there are to be told, of so many in all.
    fn news(&mut self, points: f64, now: Instant) -> Option<f64> {
        let may_tell = self.told.is_none_or(|told| now >= told + DROPS);
        let more = points - self.known;
        (more > 0.0 && may_tell).then(|| {
            (self.known, self.told) = (points, Some(now));
            more
        })
    }
}

impl Own {
    /// What has happened since the last look; `lost`: so many changes could not be told.
    pub(super) fn look(&mut self, counted: &[Sample], lost: u64, now: Instant) -> Vec<Event> {
        let value = |name: &str, attribute: Option<(&str, &str)>| {
            let is_it = |sample: &&Sample| {
                let has = attribute.is_none_or(|(key, value)| sample.attributes.get(key) == Some(value));
                sample.def.name == name && has
            };
            counted.iter().find(is_it).map(|sample| sample.value)
        };
        let mut events = Vec::new();
        let mut tell = |def, is_good, body: String, attribute: Option<(&'static str, String)>| {
            events.push(Event::own(def, is_good, body, attribute));
        };

        let closed = value(CLOSED, Some(("kind", "credential"))).unwrap_or_default();
        if closed > self.closed {
            let body = format!(
                "{closed} credentials are no longer tried, to keep accounts from being locked: see `guard list`"
            );
            tell(&GUARD_CLOSED, false, body, None);
        } else if closed < self.closed {
            let body = format!("{} credentials are tried again, {closed} are not", self.closed - closed);
            tell(&GUARD_OPENED, true, body, None);
        }
        self.closed = closed;

        let unusable = value(USABLE, None) == Some(0.0);
        if unusable && !self.unusable {
            let body = "what logins were tried can't be read or written down: no password login is tried";
            tell(&GUARD_UNUSABLE, false, body.to_owned(), None);
        } else if !unusable && self.unusable {
            tell(&GUARD_USABLE, true, "what logins were tried can be written down again".to_owned(), None);
        }
        self.unusable = unusable;

        for (losses, outcome, how) in [
            (&mut self.dropped, "dropped", "were dropped; esxi.agent.export.drops says why"),
            (&mut self.rejected, "rejected", "were lost, since the Collector refused them"),
        ] {
            let all = value(POINTS, Some(("outcome", outcome))).unwrap_or_default();
            if let Some(points) = losses.news(all, now) {
                let body = format!("{points} points {how}");
                tell(&POINTS_DROPPED, false, body, Some(("points", points.to_string())));
            }
        }
        if lost > 0 {
            let body = format!("{lost} changes could not be told, since too many happened at once");
            tell(&EVENTS_LOST, false, body, Some(("events", lost.to_string())));
        }
        events
    }
}
