//! What changes again and again is told to be flapping, once, and then nothing until it is stable.

use super::Event;
use crate::metric::Attributes;
use crate::target::TargetId;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Within this time.
pub(super) const WINDOW: Duration = Duration::from_secs(600);
/// So many changes are told; one more is flapping.
pub(super) const CHANGES: usize = 5;
/// Subjects that are remembered: those that are bad, and those that changed within the window. Beyond that
/// nothing is damped.
const REMEMBERED: usize = 200_000;

/// What can flap: a kind of state, and whose.
pub(super) type Subject = (&'static str, Attributes);

/// What is to be done with an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Tell it.
    Tell,
    /// Tell that it is flapping.
    Flapping,
    /// Nothing.
    Suppressed,
    /// It is no news: the good state of something that was never told to be bad, or what was told before and is
    /// not over.
    Nothing,
}

#[derive(Debug, Default)]
struct State {
    /// When it changed lately.
    changes: VecDeque<Instant>,
    is_bad: bool,
    /// How bad it is, in the words that were told last.
    told: Option<String>,
    /// While it flaps: the last event, and how many were suppressed.
    flaps: Option<(Event, u64)>,
}

/// The state of what was told.
#[derive(Debug, Default)]
pub(super) struct Damping {
    subjects: HashMap<TargetId, HashMap<Subject, State>>,
    remembered: usize,
}

impl Damping {
    /// What is to be done with this event of a target.
    pub(super) fn judge(
        &mut self,
        target: &TargetId,
        subject: Subject,
        event: &Event,
        now: Instant,
    ) -> Verdict {
        let known = self.subjects.get(target).is_some_and(|subjects| subjects.contains_key(&subject));
        if !known && event.is_return {
            return Verdict::Nothing;
        }
        if !known {
            if self.remembered >= REMEMBERED {
                return Verdict::Tell;
            }
            self.remembered += 1;
        }
        let state = self.subjects.entry(target.clone()).or_default().entry(subject).or_default();
        if event.is_return && !state.is_bad {
            return Verdict::Nothing;
        }
        if !event.is_good && state.is_bad && state.told.as_ref() == Some(&event.body) {
            return Verdict::Nothing;
        }
        state.is_bad = !event.is_good;
        state.told = state.is_bad.then(|| event.body.clone());
        state.forget_before(now);
        state.changes.push_back(now);
        if let Some((last, suppressed)) = &mut state.flaps {
            *last = event.clone();
            *suppressed += 1;
            // No more than one has to know that it goes on.
            state.changes.drain(..state.changes.len().saturating_sub(CHANGES + 1));
            return Verdict::Suppressed;
        }
        if state.changes.len() > CHANGES {
            state.flaps = Some((event.clone(), 0));
            return Verdict::Flapping;
        }
        Verdict::Tell
    }

    /// What has become stable: the last event of each, and how many were suppressed. Forgets what is good and has
    /// not changed lately.
    pub(super) fn settle(&mut self, now: Instant) -> Vec<(Event, u64)> {
        let mut stable = Vec::new();
        let mut remembered = 0;
        self.subjects.retain(|_, subjects| {
            subjects.retain(|_, state| {
                state.forget_before(now);
                if state.changes.is_empty() {
                    stable.extend(state.flaps.take());
                }
                state.is_bad || !state.changes.is_empty()
            });
            remembered += subjects.len();
            !subjects.is_empty()
        });
        self.remembered = remembered;
        stable
    }

    /// A target has left.
    pub(super) fn forget(&mut self, target: &TargetId) {
        self.remembered -= self.subjects.remove(target).map_or(0, |subjects| subjects.len());
    }
}

impl State {
    fn forget_before(&mut self, now: Instant) {
        while self.changes.front().is_some_and(|at| now.duration_since(*at) > WINDOW) {
            self.changes.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalog::{HOST_REACHABLE, HOST_UNREACHABLE};
    use super::*;

    fn event(is_good: bool, is_return: bool) -> Event {
        let def = if is_good { &HOST_REACHABLE } else { &HOST_UNREACHABLE };
        let attributes = Attributes::new([("hostsystem", "esx1")]);
        Event {
            def, severity: def.severity, is_good, is_return, body: "…".into(), attributes, seen_by: None
        }
    }

    fn subject() -> Subject {
        ("esxi.host.ssh.up", Attributes::new([("hostsystem", "esx1")]))
    }

    #[tokio::test(start_paused = true)]
    async fn what_flaps_is_told_to_flap_once_and_what_it_is_when_it_is_stable() {
        let (mut damping, host) = (Damping::default(), TargetId::host("esx1"));
        let mut judge = |is_good| damping.judge(&host, subject(), &event(is_good, false), Instant::now());
        for change in 0..CHANGES {
            assert_eq!(judge(change % 2 == 1), Verdict::Tell);
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        assert_eq!(judge(true), Verdict::Flapping);
        for change in 0..1_000 {
            assert_eq!(judge(change % 2 == 1), Verdict::Suppressed);
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        assert_eq!(damping.settle(Instant::now()), []);
        tokio::time::advance(WINDOW).await;
        assert_eq!(damping.settle(Instant::now()), [(event(true, false), 1_000)]);
        assert_eq!(damping.remembered, 0, "it is good, and has not changed for long");
        assert_eq!(damping.judge(&host, subject(), &event(false, false), Instant::now()), Verdict::Tell);
    }

    #[tokio::test(start_paused = true)]
    async fn seldom_changes_are_all_told() {
        let (mut damping, host) = (Damping::default(), TargetId::host("esx1"));
        for change in 0..100 {
            let event = event(change % 2 == 1, false);
            assert_eq!(damping.judge(&host, subject(), &event, Instant::now()), Verdict::Tell);
            tokio::time::advance(WINDOW / 4).await;
            damping.settle(Instant::now());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_state_that_turns_up_is_news_only_where_a_bad_one_was_told() {
        let (mut damping, host) = (Damping::default(), TargetId::host("esx1"));
        let mut judge = |event: &Event| damping.judge(&host, subject(), event, Instant::now());
        assert_eq!(judge(&event(true, true)), Verdict::Nothing);
        assert_eq!(judge(&event(false, false)), Verdict::Tell);
        tokio::time::advance(WINDOW * 10).await;
        assert_eq!(damping.settle(Instant::now()), []);
        let mut judge = |event: &Event| damping.judge(&host, subject(), event, Instant::now());
        assert_eq!(judge(&event(true, true)), Verdict::Tell, "however long ago");
        assert_eq!(judge(&event(true, true)), Verdict::Nothing);
        damping.forget(&host);
        assert_eq!(damping.remembered, 0);
    }
}
