//! Questions that hung: left out for a while on the host on which they did.
//!
//! A script that hangs is killed on the host, but what waits for a device may stay. Asked at every visit it
//! would pile up there. So each time it hangs again it is left out for longer, and one answer ends that; and
//! when it is asked again the host is told whom it killed, and does not run the script while that stands.

use crate::collectors::Answer;
use crate::collectors::command::Former;
use crate::outcome::FailureReason;
use crate::target::TargetId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most visits in a row in which a question is left out.
const MOST: u32 = 10;

/// Most times in a row that a former script is found standing; then it is taken for a stranger who has got its
/// id, and the question is asked. At one visit a minute that is after eighteen hours.
const MOST_STANDING: u32 = 100;

/// A question, told apart among all: the collector's name and the question's `id`.
pub(super) type Key = (&'static str, Arc<str>);

/// The questions that hung, of all hosts. Bounded by inventory and configuration.
#[derive(Debug, Default)]
pub(super) struct Hung(Mutex<HashMap<TargetId, HashMap<Key, Rest>>>);

/// How long a question rests.
#[derive(Debug, Clone, Copy, Default)]
struct Rest {
    /// For how many visits more.
    left: u32,
    /// For how many in all.
    length: u32,
    /// Whom the host killed for it.
    former: Option<Former>,
    /// How often in a row it was found standing.
    standing: u32,
}

impl Hung {
    fn lock(&self) -> MutexGuard<'_, HashMap<TargetId, HashMap<Key, Rest>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the question is to be left out.
    pub(super) fn rests(&self, host: &TargetId, question: &Key) -> bool {
        self.lock().get(host).and_then(|of_host| of_host.get(question)).is_some_and(|rest| rest.left > 0)
    }

    /// A visit that the host answered has left the question out.
    pub(super) fn left_out(&self, host: &TargetId, question: &Key) {
        if let Some(rest) = self.lock().get_mut(host).and_then(|of_host| of_host.get_mut(question)) {
            rest.left = rest.left.saturating_sub(1);
        }
    }

    /// Whom the host killed for this question, if that may still stand there.
    pub(super) fn former(&self, host: &TargetId, question: &Key) -> Option<Former> {
        self.lock().get(host).and_then(|of_host| of_host.get(question)).and_then(|rest| rest.former)
    }

    /// The question was asked on a host that answered others, or said itself whom it `killed`.
    pub(super) fn asked(&self, host: &TargetId, question: Key, answer: &Answer, killed: Option<Former>) {
        let mut all = self.lock();
        match answer.result {
            Err(reason @ (FailureReason::CommandTimeout | FailureReason::SkippedHung)) => {
                let rest = all.entry(host.clone()).or_default().entry(question).or_default();
                rest.length = (rest.length * 2).clamp(1, MOST);
                rest.left = rest.length;
                if reason == FailureReason::CommandTimeout {
                    (rest.former, rest.standing) = (killed, 0);
                } else {
                    rest.standing += 1;
                    rest.former = rest.former.filter(|_| rest.standing < MOST_STANDING);
                }
            }
            _ => {
                let Some(of_host) = all.get_mut(host) else { return };
                of_host.remove(&question);
                if of_host.is_empty() {
                    all.remove(host);
                }
            }
        }
    }

    /// Somebody wants to know now: nothing is left out at the next visit.
    pub(super) fn ask_all(&self) {
        self.lock().values_mut().flat_map(HashMap::values_mut).for_each(|rest| rest.left = 0);
    }

    /// The host has left the inventory.
    pub(super) fn forget(&self, host: &TargetId) {
        self.lock().remove(host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collectors::Reply;
    use std::time::Duration;

    fn answer(result: Result<Reply, FailureReason>) -> Answer {
        Answer { question: "vpxa".into(), result, elapsed: Duration::ZERO }
    }

    /// Visits until the question is asked again.
    fn skipped(hung: &Hung, host: &TargetId, key: &Key) -> u32 {
        let mut visits = 0;
        while hung.rests(host, key) {
            hung.left_out(host, key);
            visits += 1;
        }
        visits
    }

    #[test]
    fn a_question_that_goes_on_hanging_rests_for_longer_and_one_answer_ends_that() {
        let (hung, host, key) =
            (Hung::default(), TargetId::host("esx1"), ("critical_service", "vpxa".into()));
        let mut rests = Vec::new();
        for _ in 0..6 {
            hung.asked(&host, key.clone(), &answer(Err(FailureReason::CommandTimeout)), None);
            assert!(!hung.rests(&TargetId::host("esx2"), &key), "other hosts are asked");
            rests.push(skipped(&hung, &host, &key));
        }
        assert_eq!(rests, [1, 2, 4, 8, 10, 10]);
        hung.asked(&host, key.clone(), &answer(Ok(Reply { lines: Vec::new(), exit: 0 })), None);
        assert!(hung.lock().is_empty());
        hung.asked(&host, key.clone(), &answer(Err(FailureReason::CommandTimeout)), None);
        assert_eq!(skipped(&hung, &host, &key), 1);
    }

    #[test]
    fn whoever_wants_to_know_now_gets_everything_asked() {
        let (hung, host, key) =
            (Hung::default(), TargetId::host("esx1"), ("critical_service", "vpxa".into()));
        hung.asked(&host, key.clone(), &answer(Err(FailureReason::CommandTimeout)), None);
        hung.ask_all();
        assert!(!hung.rests(&host, &key));
        hung.asked(&host, key.clone(), &answer(Err(FailureReason::CommandTimeout)), None);
        assert_eq!(skipped(&hung, &host, &key), 2, "what hangs again still rests longer");
        hung.asked(&host, key.clone(), &answer(Err(FailureReason::CommandTimeout)), None);
        hung.forget(&host);
        assert!(!hung.rests(&host, &key));
    }

    #[test]
    fn whom_the_host_killed_is_told_to_it_until_it_is_gone_or_must_be_a_stranger() {
        let (hung, host, key) =
            (Hung::default(), TargetId::host("esx1"), ("critical_service", "vpxa".into()));
        let killed = Former::parse("-4711");
        let (timeout, stands) =
            (answer(Err(FailureReason::CommandTimeout)), answer(Err(FailureReason::SkippedHung)));
        hung.asked(&host, key.clone(), &timeout, killed);
        assert_eq!(hung.former(&host, &key), killed);
        hung.ask_all();
        assert_eq!(hung.former(&host, &key), killed, "also for who wants to know now");
        hung.asked(&host, key.clone(), &stands, None);
        assert_eq!((hung.former(&host, &key), skipped(&hung, &host, &key)), (killed, 2));
        hung.asked(&host, key.clone(), &timeout, None);
        assert_eq!(hung.former(&host, &key), None, "it was gone, and nobody said whom he killed now");

        hung.asked(&host, key.clone(), &timeout, killed);
        let told = (0..1000).take_while(|_| {
            hung.asked(&host, key.clone(), &stands, None);
            hung.former(&host, &key).is_some()
        });
        assert_eq!(told.count(), 99);
    }
}
