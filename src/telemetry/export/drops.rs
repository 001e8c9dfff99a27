//! Points that had to go: counted with the reason, and said, but not each time.

use super::{DROPS, Outcome, count};
use crate::metric::Attributes;
use crate::stats::Stats;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shortest pause between two lines in the log.
const PAUSE: Duration = Duration::from_secs(600);

/// Points that had to go, by the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct Dropped {
    /// They were older than the cap.
    pub too_old: usize,
    /// There was no room for them.
    pub no_room: usize,
    /// The disk has lost them.
    pub damaged: usize,
    /// The agent ended, and they were in memory alone.
    pub at_end: usize,
}

impl Dropped {
    /// All of them.
    pub fn points(&self) -> usize {
        self.by_reason().iter().map(|(_, _, points)| points).sum()
    }

    /// The word for the metric, that for the log, and how many.
    fn by_reason(&self) -> [(&'static str, &'static str, usize); 4] {
        let Self { too_old, no_room, damaged, at_end } = *self;
        [
            ("too_old", "too old", too_old),
            ("no_room", "no room", no_room),
            ("damaged", "damaged on disk", damaged),
            ("at_end", "the agent ended", at_end),
        ]
    }

    fn add(&mut self, other: Self) {
        self.too_old += other.too_old;
        self.no_room += other.no_room;
        self.damaged += other.damaged;
        self.at_end += other.at_end;
    }
}

/// What was dropped, and what of it was said.
#[derive(Debug, Default)]
pub struct Drops(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    untold: Dropped,
    last: Option<Instant>,
}

impl Drops {
    /// Counts them, and says so the first time, and every ten minutes while it goes on.
    pub fn note(&self, stats: &Stats, dropped: Dropped) {
        if dropped.points() == 0 {
            return;
        }
        count(stats, Outcome::Dropped, dropped.points());
        for (reason, _, points) in dropped.by_reason() {
            if points > 0 {
                stats.add(&DROPS, Attributes::new([("reason", reason)]), points as f64);
            }
        }
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.untold.add(dropped);
        if told.last.is_none_or(|last| last.elapsed() >= PAUSE) {
            let untold = std::mem::take(&mut told.untold);
            told.last = Some(Instant::now());
            drop(told);
            let reasons = untold.by_reason().into_iter().filter(|(_, _, points)| *points > 0);
            let reasons: Vec<_> = reasons.map(|(_, words, points)| format!("{words}: {points}")).collect();
            tracing::warn!("OTLP: {} points were given up ({})", untold.points(), reasons.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_counted_in_all_and_by_their_reason() {
        let (drops, stats) = (Drops::default(), Stats::default());
        drops.note(&stats, Dropped::default());
        assert_eq!(stats.samples().len(), 0);
        drops.note(&stats, Dropped { too_old: 2, no_room: 3, ..Dropped::default() });
        drops.note(&stats, Dropped { no_room: 4, ..Dropped::default() });
        let value = |name: &str, word: &str| {
            let samples = stats.samples();
            let found = samples
                .iter()
                .find(|s| s.def.name == name && s.attributes.iter().any(|(_, value)| &**value == word));
            found.map(|sample| sample.value)
        };
        assert_eq!(value("esxi.agent.export.points", "dropped"), Some(9.0));
        assert_eq!(value("esxi.agent.export.drops", "no_room"), Some(7.0));
        assert_eq!(value("esxi.agent.export.drops", "too_old"), Some(2.0));
        assert_eq!(value("esxi.agent.export.drops", "damaged"), None);
        assert_eq!(drops.0.lock().expect("no panic").untold.no_room, 4, "not said yet");
    }
}
