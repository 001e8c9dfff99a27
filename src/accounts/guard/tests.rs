use super::rules::Rules;
use super::*;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use tokio::time::advance;

pub(super) const WAIT: Duration = Duration::from_secs(1000);

pub(super) fn config() -> LockoutConfig {
    LockoutConfig { wait: WAIT, max_wait: Duration::from_secs(86_400), unproven_tries: 3, volatile: false }
}

fn guard() -> (Guard, Arc<Stats>) {
    let stats = Stats::new();
    (Guard::new(config(), stats.clone()), stats)
}

pub(super) fn host(number: usize) -> TargetId {
    TargetId::host(format!("esx{number}"))
}

pub(super) const RIGHT: CredentialId = CredentialId([1; 16]);
pub(super) const NEW: CredentialId = CredentialId([2; 16]);

async fn log_in(guard: &Guard, target: &TargetId, credential: CredentialId) {
    guard.permit(target, credential).await.unwrap().accepted();
}

async fn be_rejected(guard: &Guard, target: &TargetId, credential: CredentialId) {
    guard.permit(target, credential).await.unwrap().rejected();
}

async fn refusal(guard: &Guard, target: &TargetId, credential: CredentialId) -> Why {
    assert!(guard.check(target, credential).is_err(), "refused before anybody is dialed");
    guard.permit(target, credential).await.unwrap_err().why
}

fn value(stats: &Stats, name: &str, pair: (&str, &str)) -> Option<f64> {
    let found = |s: &crate::metric::Sample| s.def.name == name && s.attributes.get(pair.0) == Some(pair.1);
    stats.samples().iter().find(|s| found(s)).map(|s| s.value)
}

#[tokio::test(start_paused = true)]
async fn a_wrong_password_is_tried_three_times_in_a_fleet_of_a_thousand() {
    let (guard, stats) = guard();
    let guard = Arc::new(guard);
    let logins: Vec<_> = (0..1000)
        .map(|number| {
            let guard = guard.clone();
            tokio::spawn(async move {
                match guard.permit(&host(number), RIGHT).await {
                    Ok(permit) => {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        permit.rejected();
                        true
                    }
                    Err(refusal) => {
                        assert_eq!(refusal.why, Why::Unproven);
                        false
                    }
                }
            })
        })
        .collect();
    let mut tried = 0;
    for login in logins {
        tried += usize::from(login.await.unwrap());
    }
    assert_eq!(tried, 3);
    advance(Duration::from_secs(1_000_000)).await;
    assert_eq!(refusal(&guard, &host(7), RIGHT).await, Why::Unproven, "waiting does not make it right");
    assert_eq!(value(&stats, "esxi.agent.guard.closed", ("kind", "credential")), Some(1.0));
    assert_eq!(value(&stats, "esxi.agent.guard.closed", ("kind", "target")), Some(3.0));
    assert_eq!(value(&stats, "esxi.agent.logins", ("outcome", "rejected")), Some(3.0));
}

#[tokio::test(start_paused = true)]
async fn the_fleet_waits_for_the_first_verdict_and_then_goes_in() {
    let (guard, _) = guard();
    let first: Vec<_> = [guard.permit(&host(0), RIGHT).await, guard.permit(&host(1), RIGHT).await].into();
    let third = guard.permit(&host(2), RIGHT).await.unwrap();
    let fourth = host(3);
    assert!(guard.check(&fourth, RIGHT).is_ok(), "worth dialing: the verdict may come meanwhile");
    let mut waiting = Box::pin(guard.permit(&fourth, RIGHT));
    assert!(futures::poll!(&mut waiting).is_pending());
    third.accepted();
    waiting.await.unwrap().accepted();
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_verdict_for_ever() {
    let (guard, _) = guard();
    let _tries = [
        guard.permit(&host(0), RIGHT).await,
        guard.permit(&host(1), RIGHT).await,
        guard.permit(&host(2), RIGHT).await,
    ];
    let before = Instant::now();
    assert_eq!(guard.permit(&host(3), RIGHT).await.unwrap_err().why, Why::VerdictPending);
    assert_eq!(before.elapsed(), VERDICT_WAIT);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_rejects_is_tried_once_more_after_the_wait_and_never_again() {
    let (guard, stats) = guard();
    log_in(&guard, &host(0), RIGHT).await;
    be_rejected(&guard, &host(1), RIGHT).await;
    assert_eq!(refusal(&guard, &host(1), RIGHT).await, Why::TargetRejected);
    log_in(&guard, &host(2), RIGHT).await;
    advance(WAIT).await;
    be_rejected(&guard, &host(1), RIGHT).await;
    advance(Duration::from_secs(1_000_000)).await;
    assert_eq!(refusal(&guard, &host(1), RIGHT).await, Why::TargetShut);
    log_in(&guard, &host(1), NEW).await;
    assert_eq!(value(&stats, "esxi.agent.guard.closed", ("kind", "target")), Some(0.0));
}

#[tokio::test(start_paused = true)]
async fn new_content_gets_one_try_but_never_a_third_within_the_wait() {
    let (guard, _) = guard();
    be_rejected(&guard, &host(1), RIGHT).await;
    be_rejected(&guard, &host(1), NEW).await;
    let third = CredentialId([3; 16]);
    assert_eq!(refusal(&guard, &host(1), third).await, Why::TargetTries);
    assert!(guard.check(&host(2), third).is_ok());
    advance(WAIT).await;
    assert!(guard.check(&host(1), third).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_loss_after_the_secret_counts_for_the_target_with_growing_waits() {
    let (guard, _) = guard();
    log_in(&guard, &host(0), RIGHT).await;
    for pause in [WAIT, WAIT * 2, WAIT * 4] {
        guard.permit(&host(1), RIGHT).await.unwrap().lost_after_secret();
        advance(pause - Duration::from_secs(1)).await;
        assert_eq!(refusal(&guard, &host(1), RIGHT).await, Why::TargetWaits);
        assert!(guard.check(&host(2), RIGHT).is_ok(), "not for the fleet");
        advance(Duration::from_secs(1)).await;
    }
    drop(guard.permit(&host(1), RIGHT).await.unwrap());
    assert_eq!(refusal(&guard, &host(1), RIGHT).await, Why::TargetWaits, "a dropped permit is a loss");
}

#[tokio::test(start_paused = true)]
async fn a_loss_before_the_secret_counts_for_nobody() {
    let (guard, _) = guard();
    for _ in 0..10 {
        guard.permit(&host(1), RIGHT).await.unwrap().lost_before_secret();
    }
    log_in(&guard, &host(1), RIGHT).await;
}

#[tokio::test(start_paused = true)]
async fn an_unproven_password_whose_tries_get_lost_pauses() {
    let (guard, _) = guard();
    for number in 0..3 {
        guard.permit(&host(number), RIGHT).await.unwrap().lost_after_secret();
    }
    assert_eq!(refusal(&guard, &host(9), RIGHT).await, Why::UnprovenWaits);
    advance(WAIT).await;
    log_in(&guard, &host(9), RIGHT).await;
}

#[tokio::test(start_paused = true)]
async fn a_proven_credential_closes_at_ten_rejections_and_opens_by_its_probe() {
    let (guard, stats) = guard();
    log_in(&guard, &host(0), RIGHT).await;
    for number in 1..=10 {
        be_rejected(&guard, &host(number), RIGHT).await;
    }
    assert_eq!(value(&stats, "esxi.agent.guard.closed", ("kind", "credential")), Some(1.0));
    assert_eq!(refusal(&guard, &host(50), RIGHT).await, Why::Closed(Some(host(0))));
    assert_eq!(refusal(&guard, &host(0), RIGHT).await, Why::Closed(Some(host(0))), "not at once");
    advance(WAIT).await;
    assert_eq!(refusal(&guard, &host(50), RIGHT).await, Why::Closed(Some(host(0))));
    log_in(&guard, &host(0), RIGHT).await;
    log_in(&guard, &host(50), RIGHT).await;
    assert_eq!(value(&stats, "esxi.agent.guard.closed", ("kind", "credential")), Some(0.0));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_one_line_that_says_why_and_until_when() {
    let (guard, stats) = guard();
    be_rejected(&guard, &host(1), RIGHT).await;
    let failure = Failure::from(guard.check(&host(1), RIGHT).unwrap_err());
    assert_eq!(failure.reason, FailureReason::AuthGuarded);
    let start = "login at host esx1 not tried, to keep the account from being locked: this password was rejected there, \
                 it is tried once more (next try not before 2";
    assert!(failure.message.starts_with(start) && failure.message.ends_with("Z)"), "{}", failure.message);
    assert_eq!(value(&stats, "esxi.agent.logins", ("outcome", "guarded")), Some(1.0));
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Begin(usize, u8),
    End(usize, Outcome),
    Pass(u64),
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        2 => Just(Outcome::Accepted), 4 => Just(Outcome::Rejected),
        1 => Just(Outcome::LostBeforeSecret), 2 => Just(Outcome::LostAfterSecret)
    ];
    prop_oneof![
        5 => (0..14_usize, 0..3_u8).prop_map(|(target, credential)| Step::Begin(target, credential)),
        5 => (0..14_usize, outcome).prop_map(|(which, outcome)| Step::End(which, outcome)),
        1 => (1..3000_u64).prop_map(Step::Pass)
    ]
}

/// What a lockout could count, kept apart from the rules: every grant and verdict.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) in_flight: Vec<(TargetId, CredentialId, Moment)>,
    proven: HashSet<CredentialId>,
    rejections: HashMap<CredentialId, usize>,
    lost: HashMap<CredentialId, Vec<Moment>>,
    /// Since the last success: rejections of a credential at a target.
    at_target: HashMap<(TargetId, CredentialId), usize>,
    /// When tries failed, and with what, since the target's last success.
    failed: HashMap<TargetId, Vec<(Moment, CredentialId)>>,
}

impl Ledger {
    pub(super) fn check_grant(&self, target: &TargetId, credential: CredentialId, now: Moment) {
        let under_way = self.in_flight.iter().filter(|(_, c, _)| *c == credential).count();
        if !self.proven.contains(&credential) {
            let rejections = self.rejections.get(&credential).copied().unwrap_or_default();
            let lost = self.lost.get(&credential).map_or(&[][..], Vec::as_slice);
            let lost = lost.iter().filter(|at| now < **at + WAIT).count();
            assert!(rejections + under_way + lost < 3, "an unproven credential gets three tries");
        }
        assert!(
            self.at_target.get(&(target.clone(), credential)).is_none_or(|n| *n < 2),
            "two rejections shut"
        );
        let failed = self.failed.get(target).map_or(&[][..], Vec::as_slice);
        let recent: Vec<_> = failed.iter().filter(|(at, _)| now < *at + WAIT).collect();
        assert!(recent.len() < 2, "at most two failed tries per wait");
        assert!(recent.iter().all(|(_, with)| *with != credential), "the same content waits");
        assert!(self.in_flight.iter().all(|(at, _, _)| at != target), "one at a time");
    }

    pub(super) fn end(&mut self, which: usize, outcome: Outcome, now: Moment) -> (TargetId, CredentialId) {
        let (target, credential, _) = self.in_flight.remove(which);
        match outcome {
            Outcome::LostBeforeSecret => {}
            Outcome::Accepted => {
                self.proven.insert(credential);
                self.failed.remove(&target);
                self.at_target.remove(&(target.clone(), credential));
            }
            Outcome::Rejected | Outcome::LostAfterSecret => {
                self.failed.entry(target.clone()).or_default().push((now, credential));
                if outcome == Outcome::LostAfterSecret {
                    self.lost.entry(credential).or_default().push(now);
                } else {
                    *self.rejections.entry(credential).or_default() += 1;
                    *self.at_target.entry((target.clone(), credential)).or_default() += 1;
                }
            }
        }
        (target, credential)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn no_sequence_of_outcomes_breaks_a_bound(steps in proptest::collection::vec(step(), 1..200)) {
        let mut rules = Rules::new(config());
        let mut ledger = Ledger::default();
        let mut now = Moment(1_800_000_000_000);
        for step in steps {
            match step {
                Step::Begin(number, credential) => {
                    let (target, credential) = (host(number), CredentialId([credential; 16]));
                    if rules.grant(&target, credential, Instance(1), now) == Decision::Granted {
                        ledger.check_grant(&target, credential, now);
                        ledger.in_flight.push((target, credential, now));
                    }
                }
                Step::End(which, outcome) if !ledger.in_flight.is_empty() => {
                    let which = which % ledger.in_flight.len();
                    let (target, credential) = ledger.end(which, outcome, now);
                    rules.conclude(&target, credential, Instance(1), outcome, now);
                }
                Step::End(..) => {}
                Step::Pass(seconds) => now = now + Duration::from_secs(seconds),
            }
        }
        let failing = ledger.failed.values().filter(|failed| !failed.is_empty()).count();
        prop_assert_eq!(rules.closed().1, failing);
    }
}
