//! The guard: may a login be tried? The worst thing that this agent can do is to lock an account out.
//!
//! SSH and SOAP both ask here, with the same rules ([`rules`]). A login goes like this: [`Guard::check`]
//! before the target is dialed, so that no connection is wasted on a try that would be refused;
//! [`Guard::permit`] right before the secret leaves; the [`Permit`]'s verdict afterwards. Public keys lock
//! nothing and are not asked for here.

mod rules;

use super::LockoutConfig;
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::outcome::{Failure, FailureReason};
use crate::stats::Stats;
use crate::target::{TargetId, TargetKind};
use rules::{Decision, Outcome, Rules};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

pub use rules::Why;

/// Identity of a credential: a keyed hash of user and secret's content. The key lives as long as the
/// process, so the hash tells nothing to whoever reads a dump or a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CredentialId(pub [u8; 16]);

/// How long a login waits for the verdict on others with the same credential. Meanwhile its connection is
/// open, and servers give an unauthenticated one 120 s.
const VERDICT_WAIT: Duration = Duration::from_secs(10);

static LOGINS: MetricDef = MetricDef {
    name: "esxi.agent.logins",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "Password logins: accepted, rejected, lost on the way, or guarded, that is not tried to keep the account from being locked.",
    attributes: &["outcome", "protocol"],
};

static CLOSED: MetricDef = MetricDef {
    name: "esxi.agent.guard.closed",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "Credentials that are no longer tried because too many logins were rejected (kind credential), and targets whose last password login failed and which wait or are shut (kind target).",
    attributes: &["kind"],
};

/// The guard's metrics.
pub static METRICS: &[&MetricDef] = &[&LOGINS, &CLOSED];

/// Why a login is not tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Where it would have been tried.
    pub target: TargetId,
    /// Why not.
    pub why: Why,
    /// When it may be tried; `None`: not by waiting.
    pub until: Option<SystemTime>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "login at {} not tried, to keep the account from being locked: {}", self.target, self.why)?;
        let Some(until) = self.until else { return Ok(()) };
        match jiff::Timestamp::try_from(until).and_then(|t| t.round(jiff::Unit::Second)) {
            Ok(until) => write!(f, " (next try not before {until})"),
            Err(_) => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Failure::new(FailureReason::AuthGuarded, refusal)
    }
}

/// The guard. One for all logins of the process.
#[derive(Debug)]
pub struct Guard {
    rules: Mutex<Rules>,
    /// Wakes those who wait for a verdict.
    verdict: Notify,
    stats: Arc<Stats>,
}

impl Guard {
    /// Remembers nothing yet.
    pub fn new(config: LockoutConfig, stats: Arc<Stats>) -> Self {
        let guard = Self { rules: Mutex::new(Rules::new(config)), verdict: Notify::new(), stats };
        guard.publish(&guard.lock());
        guard
    }

    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a try would be granted now, or as soon as those under way have their verdict. Reserves
    /// nothing.
    pub fn check(&self, target: &TargetId, credential: CredentialId) -> Result<(), Refusal> {
        let now = Instant::now();
        match self.lock().ask(target, credential, now) {
            Decision::Granted | Decision::Pending => Ok(()),
            Decision::Refused(why, until) => Err(self.refuse(target, why, until, now)),
        }
    }

    /// Grants one try, whose verdict the caller owes. Where others' verdicts have to come first, waits for
    /// them, 10 s at most.
    pub async fn permit(&self, target: &TargetId, credential: CredentialId) -> Result<Permit<'_>, Refusal> {
        let deadline = Instant::now() + VERDICT_WAIT;
        loop {
            let verdict = self.verdict.notified();
            tokio::pin!(verdict);
            verdict.as_mut().enable();
            let now = Instant::now();
            let decision = self.lock().grant(target, credential, now);
            match decision {
                Decision::Granted => {
                    return Ok(Permit { guard: self, target: target.clone(), credential, done: false });
                }
                Decision::Refused(why, until) => return Err(self.refuse(target, why, until, now)),
                Decision::Pending => {}
            }
            if timeout_at(deadline, verdict).await.is_err() {
                return Err(self.refuse(target, Why::VerdictPending, None, now));
            }
        }
    }

    fn refuse(&self, target: &TargetId, why: Why, until: Option<Instant>, now: Instant) -> Refusal {
        self.count(target, "guarded");
        let until = until.map(|until| SystemTime::now() + until.saturating_duration_since(now));
        Refusal { target: target.clone(), why, until }
    }

    fn conclude(&self, target: &TargetId, credential: CredentialId, outcome: Outcome) {
        let mut rules = self.lock();
        rules.conclude(target, credential, outcome, Instant::now());
        self.publish(&rules);
        drop(rules);
        self.verdict.notify_waiters();
        self.count(
            target,
            match outcome {
                Outcome::Accepted => "accepted",
                Outcome::Rejected => "rejected",
                Outcome::LostBeforeSecret | Outcome::LostAfterSecret => "lost",
            },
        );
    }

    fn count(&self, target: &TargetId, outcome: &'static str) {
        let protocol = match target.kind {
            TargetKind::Host => "ssh",
            TargetKind::Vcenter => "soap",
        };
        self.stats.add(&LOGINS, Attributes::new([("outcome", outcome), ("protocol", protocol)]), 1.0);
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn publish(&self, rules: &Rules) {
        let (credentials, targets) = rules.closed();
        self.stats.set(&CLOSED, Attributes::new([("kind", "credential")]), credentials as f64);
        self.stats.set(&CLOSED, Attributes::new([("kind", "target")]), targets as f64);
    }
}

/// Leave for one try. Its verdict has to be given; dropped without one, as by a time-out or a
/// cancellation, it counts as lost after the secret was sent.
#[derive(Debug)]
#[must_use = "a permit that is dropped counts as a failed try"]
pub struct Permit<'g> {
    guard: &'g Guard,
    target: TargetId,
    credential: CredentialId,
    done: bool,
}

impl Permit<'_> {
    /// The target accepted the secret.
    pub fn accepted(self) {
        self.end(Outcome::Accepted);
    }

    /// The target rejected the secret.
    pub fn rejected(self) {
        self.end(Outcome::Rejected);
    }

    /// The connection was lost before anything that a lockout could count was sent.
    pub fn lost_before_secret(self) {
        self.end(Outcome::LostBeforeSecret);
    }

    /// The connection was lost afterwards: nobody knows whether the target counted a failure.
    pub fn lost_after_secret(self) {
        self.end(Outcome::LostAfterSecret);
    }

    fn end(mut self, outcome: Outcome) {
        self.done = true;
        self.guard.conclude(&self.target, self.credential, outcome);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.guard.conclude(&self.target, self.credential, Outcome::LostAfterSecret);
        }
    }
}

#[cfg(test)]
mod tests;
