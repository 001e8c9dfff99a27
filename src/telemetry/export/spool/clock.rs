//! Between two clocks: ages are measured by the queue's, which nobody can set, and the disk has the wall clock's, which
//! the next process knows, too.
//!
//! The two drift apart when the wall clock is set (an agent that starts before NTP has the time) and when the machine
//! sleeps. How far they were apart is remembered for what this process wrote, so that a clock that is set makes none
//! of it old.

use super::entry::Sequence;
use std::time::{Duration, SystemTime};

/// Differences that make no new range: the clock was not set.
const SAME: i64 = 1_000;

/// How many milliseconds the wall clock is ahead of the queue's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shift(i64);

impl Shift {
    /// Of two clocks that are read at one moment.
    pub(super) fn between(wall: SystemTime, queue: SystemTime) -> Self {
        let millis = |ahead: Duration| i64::try_from(ahead.as_millis()).unwrap_or(i64::MAX);
        match wall.duration_since(queue) {
            Ok(ahead) => Self(millis(ahead)),
            Err(behind) => Self(-millis(behind.duration())),
        }
    }

    /// A time of the queue as the wall clock would have shown it.
    pub(super) fn to_wall(self, queue: SystemTime) -> SystemTime {
        moved(queue, self.0)
    }

    fn to_queue(self, wall: SystemTime) -> SystemTime {
        moved(wall, -self.0)
    }
}

/// A time that can't be told stays where it is: it is compared with ages, and must not end the agent.
fn moved(time: SystemTime, millis: i64) -> SystemTime {
    let by = Duration::from_millis(millis.unsigned_abs());
    let moved = if millis < 0 { time.checked_sub(by) } else { time.checked_add(by) };
    moved.unwrap_or(time)
}

/// Which shift holds for which entries.
#[derive(Debug)]
pub(super) struct Shifts {
    /// Of those that lie before all ranges: other processes wrote them.
    of_others: Shift,
    /// Of this process's own, each from an entry on.
    ranges: Vec<(Sequence, Shift)>,
}

impl Shifts {
    /// `of_others` holds for everything that is there.
    pub(super) fn new(of_others: Shift) -> Self {
        Self { of_others, ranges: vec![] }
    }

    /// This process's wall clock was set: by its time of now the entries of others are judged.
    pub(super) fn set_others(&mut self, shift: Shift) {
        self.of_others = shift;
    }

    /// Entries from this one on were written with this shift.
    pub(super) fn note(&mut self, from: Sequence, shift: Shift) {
        let is_same = |(_, last): &(_, Shift)| last.0.abs_diff(shift.0) <= SAME.unsigned_abs();
        if !self.ranges.last().is_some_and(is_same) {
            self.ranges.push((from, shift));
        }
    }

    /// Nothing before this entry is asked for any more.
    pub(super) fn forget_before(&mut self, entry: Sequence) {
        let begun = self.ranges.iter().take_while(|(from, _)| *from <= entry).count();
        self.ranges.drain(..begun.saturating_sub(1));
    }

    /// Whether another process wrote the entry.
    pub(super) fn is_of_others(&self, entry: Sequence) -> bool {
        self.ranges.first().is_none_or(|(from, _)| entry < *from)
    }

    /// The time of an entry, by the queue's clock.
    pub(super) fn to_queue(&self, entry: Sequence, wall: SystemTime) -> SystemTime {
        let range = self.ranges.iter().rev().find(|(from, _)| *from <= entry);
        range.map_or(self.of_others, |(_, shift)| *shift).to_queue(wall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_clock_that_is_set_makes_nothing_old_that_was_written_before() {
        let start = UNIX_EPOCH + DAY * 20_000;
        let minute = |minutes: u32| start + Duration::from_secs(60) * minutes;
        // By the wall clock: right, then a day ahead, then right again.
        let walls = [minute(0), minute(1) + DAY, minute(2)];
        let mut shifts = Shifts::new(Shift::between(start, start));
        for (entry, wall) in (0..).zip(walls) {
            let shift = Shift::between(wall, minute(u32::try_from(entry).expect("few")));
            assert_eq!(shift.to_wall(wall - Duration::from_millis(u64::try_from(shift.0).unwrap())), wall);
            shifts.note(entry, shift);
        }
        for (entry, wall) in (0..).zip(walls) {
            assert_eq!(shifts.to_queue(entry, wall), minute(u32::try_from(entry).expect("few")));
        }
        shifts.forget_before(1);
        assert_eq!(shifts.to_queue(1, walls[1]), minute(1));
        assert_eq!(shifts.ranges.len(), 2);
        shifts.forget_before(5);
        assert_eq!(shifts.to_queue(5, walls[2]), minute(2));
        assert_eq!(shifts.ranges.len(), 1);
    }

    #[test]
    fn what_others_wrote_is_judged_by_the_clock_once_it_is_right() {
        let right = UNIX_EPOCH + DAY * 20_000;
        // It began a year ahead: by its own time it is a year later than it is.
        let queue = right + DAY * 365;
        let mut shifts = Shifts::new(Shift::between(queue, queue));
        assert!(shifts.is_of_others(6));
        shifts.note(7, Shift::between(queue, queue));
        assert_eq!(queue.duration_since(shifts.to_queue(6, right)).expect("before"), DAY * 365);
        shifts.set_others(Shift::between(right, queue));
        assert_eq!(shifts.to_queue(6, right), queue, "it was collected just now");
        assert_eq!(shifts.to_queue(7, queue), queue, "its own are what they were");
        assert!(shifts.is_of_others(6) && !shifts.is_of_others(7));
    }

    #[test]
    fn small_differences_make_no_ranges() {
        let mut shifts = Shifts::new(Shift(0));
        for entry in 0..100 {
            shifts.note(entry, Shift(i64::try_from(entry).expect("few") % 7 - 3));
        }
        assert_eq!(shifts.ranges.len(), 1);
    }

    #[test]
    fn a_time_that_can_not_be_told_is_left() {
        assert_eq!(moved(UNIX_EPOCH, i64::MIN), moved(UNIX_EPOCH, i64::MIN));
        let far = Shift::between(UNIX_EPOCH + DAY * 20_000, UNIX_EPOCH);
        assert_eq!(far.to_queue(far.to_wall(UNIX_EPOCH)), UNIX_EPOCH);
    }
}
