//! Which hosts are due for a detail of a collector.

use crate::collectors::{Detail, Want};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Pause after a question that failed: it may be the question that the vCenter can't take.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// What is known of a detail, host by host.
#[derive(Debug, Default)]
pub(super) struct Plan(HashMap<Arc<str>, Asked>);

#[derive(Debug)]
struct Asked {
    want: Want,
    /// Something has happened to the host since it was asked.
    hurries: bool,
    /// When it was asked last.
    at: Option<Instant>,
    /// When it may be asked again after a failure.
    not_before: Option<Instant>,
}

impl Plan {
    /// Takes down what is wanted of a host. Whether what was known of it ends.
    pub fn note(&mut self, host: &Arc<str>, want: Want) -> bool {
        if want == Want::No {
            return self.0.remove(host).is_some_and(|asked| asked.at.is_some());
        }
        let fresh = || Asked { want: Want::Yes, hurries: false, at: None, not_before: None };
        let asked = self.0.entry(Arc::clone(host)).or_insert_with(fresh);
        asked.hurries |= want == Want::Soon && asked.want != Want::Soon;
        asked.want = want;
        false
    }

    /// Forgets the hosts that are not there any more: those of which something was known.
    pub fn keep(&mut self, present: &HashSet<&Arc<str>>) -> Vec<Arc<str>> {
        let mut ended = Vec::new();
        self.0.retain(|host, asked| {
            let stays = present.contains(host);
            if !stays && asked.at.is_some() {
                ended.push(Arc::clone(host));
            }
            stays
        });
        ended
    }

    /// The hosts of which something is known.
    pub fn known(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().filter(|(_, asked)| asked.at.is_some()).map(|(host, _)| host)
    }

    /// The hosts to be asked now: first those that something has happened to, then who waits longest.
    pub fn due(&self, detail: &Detail, now: Instant) -> Vec<Arc<str>> {
        let is_due = |asked: &Asked| {
            let may = asked.not_before.is_none_or(|at| now >= at);
            may && (asked.hurries
                || asked.at.is_none_or(|at| now.saturating_duration_since(at) >= detail.every))
        };
        let mut due: Vec<_> = self.0.iter().filter(|(_, asked)| is_due(asked)).collect();
        due.sort_by(|(a, of_a), (b, of_b)| {
            (Reverse(of_a.hurries), of_a.at, a).cmp(&(Reverse(of_b.hurries), of_b.at, b))
        });
        due.into_iter().take(detail.most_hosts).map(|(host, _)| Arc::clone(host)).collect()
    }

    /// Takes down that these were asked.
    pub fn asked(&mut self, hosts: &[Arc<str>], now: Instant) {
        for host in hosts {
            if let Some(asked) = self.0.get_mut(host) {
                (asked.at, asked.hurries, asked.not_before) = (Some(now), false, None);
            }
        }
    }

    /// Takes down that asking these failed.
    pub fn failed(&mut self, hosts: &[Arc<str>], now: Instant) {
        for host in hosts {
            if let Some(asked) = self.0.get_mut(host) {
                asked.not_before = Some(now + AFTER_FAILURE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const DETAIL: Detail =
        Detail { name: "d", properties: &[], every: Duration::from_secs(600), most_hosts: 2 };

    fn host(number: u32) -> Arc<str> {
        format!("host-{number}").into()
    }

    #[test]
    fn everybody_is_asked_in_turn_and_again_after_a_while() {
        let (mut plan, start) = (Plan::default(), Instant::now());
        for number in 1..=3 {
            assert!(!plan.note(&host(number), Want::Yes));
        }
        assert_eq!(plan.due(&DETAIL, start), [host(1), host(2)], "at most two at a time");
        plan.asked(&[host(1), host(2)], start);
        assert_eq!(plan.due(&DETAIL, start), [host(3)]);
        plan.asked(&[host(3)], start + Duration::from_secs(30));
        assert!(plan.due(&DETAIL, start + Duration::from_secs(599)).is_empty());
        assert_eq!(plan.due(&DETAIL, start + DETAIL.every), [host(1), host(2)]);
    }

    #[test]
    fn a_host_that_something_happens_to_is_asked_at_once_and_once() {
        let (mut plan, start) = (Plan::default(), Instant::now());
        for number in 1..=3 {
            plan.note(&host(number), Want::Yes);
        }
        plan.asked(&[host(2)], start);
        plan.note(&host(2), Want::Soon);
        assert_eq!(plan.due(&DETAIL, start), [host(2), host(1)], "before those that were never asked");
        plan.asked(&[host(2)], start);
        plan.note(&host(2), Want::Soon);
        assert_eq!(plan.due(&DETAIL, start), [host(1), host(3)], "it is no news any more");
        plan.note(&host(2), Want::Yes);
        plan.note(&host(2), Want::Soon);
        assert_eq!(plan.due(&DETAIL, start), [host(2), host(1)]);
    }

    #[test]
    fn a_question_that_failed_waits_and_others_go_on() {
        let (mut plan, start) = (Plan::default(), Instant::now());
        for number in 1..=3 {
            plan.note(&host(number), Want::Soon);
        }
        plan.failed(&[host(1), host(2)], start);
        assert_eq!(plan.due(&DETAIL, start), [host(3)]);
        assert_eq!(plan.due(&DETAIL, start + AFTER_FAILURE), [host(1), host(2)]);
    }

    #[test]
    fn what_is_known_of_a_host_ends_when_it_is_not_wanted_any_more_or_gone() {
        let (mut plan, start) = (Plan::default(), Instant::now());
        for number in 1..=3 {
            plan.note(&host(number), Want::Soon);
        }
        plan.asked(&[host(1), host(2)], start);
        assert!(plan.note(&host(1), Want::No));
        assert!(!plan.note(&host(1), Want::No), "its end is said once");
        assert_eq!(plan.keep(&HashSet::new()), [host(2)], "of host-3 nothing was known");
        assert!(plan.due(&DETAIL, start).is_empty());
    }
}
