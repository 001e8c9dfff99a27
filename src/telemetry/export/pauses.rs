//! The pauses between tries of something that the Collector does not take for now.

use std::time::Duration;

/// Grow from try to try: a second, doubled up to half a minute, each shortened by up to a half by chance, so
/// that many agents do not come back to a Collector at one moment.
#[derive(Debug)]
pub(in crate::telemetry) struct Pauses(Duration);

impl Pauses {
    /// What the first one is, before it is shortened.
    pub(in crate::telemetry) const SHORTEST: Duration = Duration::from_secs(1);
    /// What none exceeds.
    pub(in crate::telemetry) const LONGEST: Duration = Duration::from_secs(30);

    /// No try has failed yet.
    pub(in crate::telemetry) const fn new() -> Self {
        Self(Self::SHORTEST)
    }

    /// The one after another failure.
    pub(in crate::telemetry) fn next(&mut self) -> Duration {
        let pause = self.0.mul_f64(rand::random_range(0.5..1.0));
        self.0 = (self.0 * 2).min(Self::LONGEST);
        pause
    }

    /// There was an answer: the next one is short again.
    pub(in crate::telemetry) const fn restart(&mut self) {
        *self = Self::new();
    }

    /// Whether the last try, as far as is known, did not fail.
    pub(in crate::telemetry) fn are_over(&self) -> bool {
        self.0 == Self::SHORTEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_double_up_to_half_a_minute_and_begin_short_after_an_answer() {
        let mut pauses = Pauses::new();
        for whole in [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
            let pause = pauses.next().as_secs_f64();
            assert!((whole / 2.0..=whole).contains(&pause), "{pause} of {whole}");
            assert!(!pauses.are_over());
        }
        pauses.restart();
        assert!(pauses.are_over() && pauses.next() <= Pauses::SHORTEST);
    }
}
