//! Lanes: hosts that only cost time are asked more rarely, and never take the places of those that answer.

use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::outcome::{Failure, FailureReason};
use crate::stats::Stats;
use std::time::Duration;

/// How many hosts are in which lane.
pub static LANES: MetricDef = MetricDef {
    name: "esxi.agent.targets.lane",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Number of hosts by lane of the timetable: normal; slow, since their last visit timed out (they share \
           a quarter of max_in_flight); backoff, since nobody was there. The last two are asked more rarely.",
    attributes: &["lane"],
};

/// A refusal or an unknown name that took longer than this is as dear as a time-out.
const QUICK: Duration = Duration::from_secs(2);
/// The pauses stop growing here, whichever is shorter.
const MOST_INTERVALS: u32 = 10;
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How a host is treated by the timetable, by how its last visit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lane {
    /// Asked at every interval. Also those that fail at once, or that the guard holds back: they cost nothing.
    #[default]
    Normal,
    /// It takes its time and says nothing: one of a few places, and growing pauses.
    Slow,
    /// Nobody is there: growing pauses.
    Backoff,
}

impl Lane {
    /// Where a host belongs whose visit ended so, after `took`. `reached`: a session was open, so that a
    /// lost connection is an accident of this visit and not the state of the host.
    pub fn after(failure: Option<&Failure>, reached: bool, took: Duration) -> Self {
        use FailureReason as R;
        let absent = if took <= QUICK { Self::Backoff } else { Self::Slow };
        match failure.map(|failure| failure.reason) {
            Some(R::ConnectTimeout | R::LoginTimeout | R::CommandTimeout) => Self::Slow,
            Some(R::Dns | R::Unreachable | R::ConnectRefused) => absent,
            Some(R::ConnectionLost) if !reached => absent,
            _ => Self::Normal,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Slow => "slow",
            Self::Backoff => "backoff",
        }
    }
}

/// The pause after `setbacks` visits in a row that ended outside the normal lane. The first one costs
/// nothing, so that one lost packet does not make a reading stale; then 2, 4, 8 … intervals, up to ten or
/// ten minutes. `None`: the host's usual place in the next interval.
pub(super) fn pause_of(setbacks: u32, interval: Duration) -> Option<Duration> {
    let intervals = 1u32.checked_shl(setbacks.saturating_sub(1)).unwrap_or(u32::MAX).min(MOST_INTERVALS);
    let pause = interval.saturating_mul(intervals).min(LONGEST_PAUSE);
    (setbacks > 1 && pause > interval).then_some(pause)
}

/// Up to a quarter of `pause` less, by chance: what failed together is not tried together for ever.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 - 0.25 * rand::random::<f64>())
}

/// Places for visits of the slow lane, of `max_in_flight`.
pub(super) fn slow_places(max_in_flight: usize) -> usize {
    (max_in_flight / 4).max(1)
}

/// How many hosts are where.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Census {
    normal: usize,
    slow: usize,
    backoff: usize,
}

impl Census {
    fn of(&mut self, lane: Lane) -> &mut usize {
        match lane {
            Lane::Normal => &mut self.normal,
            Lane::Slow => &mut self.slow,
            Lane::Backoff => &mut self.backoff,
        }
    }

    pub(super) fn add(&mut self, lane: Lane) {
        *self.of(lane) += 1;
    }

    pub(super) fn remove(&mut self, lane: Lane) {
        let count = self.of(lane);
        *count = count.saturating_sub(1);
    }

    pub(super) fn tell(mut self, stats: &Stats) {
        for lane in [Lane::Normal, Lane::Slow, Lane::Backoff] {
            let count = *self.of(lane);
            stats.set(&LANES, Attributes::new([("lane", lane.word())]), count as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn lane(reason: FailureReason, reached: bool, took: Duration) -> Lane {
        Lane::after(Some(&Failure::new(reason, "")), reached, took)
    }

    #[test]
    fn what_costs_time_is_slow_what_is_absent_backs_off_and_what_is_cheap_goes_on() {
        use FailureReason as R;
        assert_eq!(Lane::after(None, true, S * 50), Lane::Normal);
        for reason in [R::ConnectTimeout, R::LoginTimeout, R::CommandTimeout] {
            assert_eq!(lane(reason, true, S * 20), Lane::Slow, "{reason}");
        }
        for reason in [R::Dns, R::Unreachable, R::ConnectRefused, R::ConnectionLost] {
            assert_eq!(lane(reason, false, S), Lane::Backoff, "{reason}");
            assert_eq!(
                lane(reason, false, S * 9),
                Lane::Slow,
                "{reason}: no answer is as dear as a time-out"
            );
        }
        assert_eq!(lane(R::ConnectionLost, true, S), Lane::Normal, "it was there");
        for reason in [R::AuthGuarded, R::AuthFailed, R::HostKeyChanged, R::SessionLimit, R::CommandFailed] {
            assert_eq!(lane(reason, false, S), Lane::Normal, "{reason}");
        }
    }

    #[test]
    fn pauses_grow_from_the_second_setback_on_up_to_ten_intervals_or_ten_minutes() {
        let in_intervals = |interval: Duration| {
            [0, 1, 2, 3, 4, 5, 6, 99]
                .map(|n| pause_of(n, interval).map_or(1, |p| (p.as_secs() / interval.as_secs()) as u32))
        };
        assert_eq!(in_intervals(S * 60), [1, 1, 2, 4, 8, 10, 10, 10]);
        assert_eq!(in_intervals(S * 5), [1, 1, 2, 4, 8, 10, 10, 10]);
        assert_eq!(in_intervals(S * 300), [1, 1, 2, 2, 2, 2, 2, 2]);
        assert_eq!(in_intervals(S * 3600), [1; 8], "an hour is pause enough");
    }
}
