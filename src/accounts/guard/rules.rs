//! The guard's rules, without locks, clocks or waiting.
//!
//! * A credential is **unproven** until its first success. Rejected tries and those under way together are
//!   never more than `unproven_tries`; others wait for the verdict. Tries that got lost after the secret
//!   was sent count for the time of `wait`, so that a network that cuts logins can't use a domain account
//!   up either.
//! * A proven credential **closes** when 10 of its last 20 logins were rejected. Then it is probed on the
//!   target that last accepted it, after `wait`, and opens when accepted there.
//! * A target is logged in to by one at a time. After a rejection or a loss the target is not tried with
//!   that credential for `wait`, doubled with each further failure up to `max_wait`. Two rejections of one
//!   credential shut the target for it. Another credential (new content) may be tried at once, but never
//!   are there more than two failed tries per `wait` and target.

use super::CredentialId;
use super::clock::Moment;
use crate::accounts::LockoutConfig;
use crate::target::TargetId;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// So many of the last logins are looked at...
const RECENT: usize = 20;
/// ...and so many rejections among them close a credential.
const TOO_MANY: usize = 10;
/// So many rejections of one credential shut a target for it. ESXi hardened by its STIG locks at 3.
const SHUT: u32 = 2;
/// So many failed tries a target gets per `wait`, whatever the credentials.
const TRIES: usize = 2;

/// Why a login is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// It rejected this credential once, a short time ago.
    TargetRejected,
    /// Whether it accepted this credential is not known, since an answer was lost a short time ago.
    TargetWaits,
    /// As many logins there failed a short time ago as are allowed, whatever the credentials.
    TargetTries,
    /// It rejected this credential twice.
    TargetShut,
    /// Never accepted anywhere, and rejected as often as is allowed.
    Unproven,
    /// Never accepted anywhere, and too many tries got lost a short time ago.
    UnprovenWaits,
    /// Accepted once, but rejected too often lately. Probed at this target only.
    Closed(Option<TargetId>),
    /// The verdict on other tries did not come in time.
    VerdictPending,
    /// What was tried before can't be read or written down.
    Memory(Arc<str>),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::TargetRejected => f.write_str("this password was rejected there, it is tried once more"),
            Why::TargetWaits => f.write_str("the answer to the last login there was lost"),
            Why::TargetTries => {
                write!(f, "{TRIES} logins there failed a short time ago, whatever the password")
            }
            Why::TargetShut => {
                f.write_str("this password was rejected there twice, only another one is tried")
            }
            Why::Unproven => f.write_str(
                "this password was rejected elsewhere and never accepted, only another one is tried",
            ),
            Why::UnprovenWaits => {
                f.write_str("other logins with this password, which never succeeded, got lost")
            }
            Why::Closed(None) => {
                write!(f, "{TOO_MANY} of the last {RECENT} logins of this account were rejected")
            }
            Why::Closed(Some(probe)) => write!(
                f,
                "{TOO_MANY} of the last {RECENT} logins of this account were rejected, it is only probed at {probe}"
            ),
            Why::VerdictPending => f.write_str("other logins with this password are still under way"),
            Why::Memory(why) => f.write_str(why),
        }
    }
}

/// Whether a login may be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Yes.
    Granted,
    /// Not before others' verdict.
    Pending,
    /// No, at least until then.
    Refused(Why, Option<Moment>),
}

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Accepted,
    Rejected,
    LostBeforeSecret,
    LostAfterSecret,
}

/// Who tries: one process, from its start to its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Instance(pub(super) u64);

/// A try that has no verdict yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Try {
    pub(super) by: Instance,
    pub(super) credential: CredentialId,
    /// It probes a closed credential.
    pub(super) probe: bool,
}

/// What is opened by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everything.
    All,
    /// The host or vCenter at this address.
    Host(String),
    /// A credential, everywhere.
    Credential(CredentialId),
}

/// What is remembered of all logins.
#[derive(Debug)]
pub(super) struct Rules {
    config: LockoutConfig,
    pub(super) credentials: HashMap<CredentialId, Credential>,
    pub(super) targets: HashMap<TargetId, Target>,
    pub(super) under_way: HashMap<TargetId, Try>,
    /// Number of targets whose last login failed.
    failed_targets: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Credential {
    pub(super) proven: bool,
    /// Number of its tries under way.
    #[serde(skip)]
    in_flight: usize,
    /// While unproven: rejections in all.
    pub(super) rejected: usize,
    /// While unproven: when tries got lost after the secret was sent.
    lost: VecDeque<Moment>,
    /// Since it is proven: the last verdicts, `true` = rejected.
    pub(super) recent: VecDeque<bool>,
    #[serde(with = "super::entry::target_or_none")]
    pub(super) last_success: Option<TargetId>,
    /// `Some`: closed, and not probed before then.
    pub(super) closed: Option<Moment>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Target {
    /// When tries failed, as far back as `wait`.
    failed: VecDeque<Moment>,
    last_failed: bool,
    pub(super) contents: HashMap<CredentialId, Content>,
}

/// What is known of a credential on a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    rejections: u32,
    failures: u32,
    not_before: Moment,
}

impl Rules {
    pub(super) fn new(config: LockoutConfig) -> Self {
        Self {
            config,
            credentials: HashMap::new(),
            targets: HashMap::new(),
            under_way: HashMap::new(),
            failed_targets: 0,
        }
    }

    /// Number of closed credentials, and of targets whose last login failed.
    pub(super) fn closed(&self) -> (usize, usize) {
        let closed = self.credentials.values().filter(|credential| self.is_closed(credential));
        (closed.count(), self.failed_targets)
    }

    /// Whether it gets no tries any more, but for a probe.
    pub(super) fn is_closed(&self, credential: &Credential) -> bool {
        credential.closed.is_some() || (!credential.proven && credential.rejected >= self.unproven_tries())
    }

    pub(super) fn unproven_tries(&self) -> usize {
        self.config.unproven_tries.max(1) as usize
    }

    /// Whether a login may be tried now.
    pub(super) fn ask(&self, target: &TargetId, credential: CredentialId, now: Moment) -> Decision {
        if let Some(known) = self.targets.get(target)
            && let Some((why, until)) = self.target_waits(known, credential, now)
        {
            return Decision::Refused(why, until);
        }
        if self.under_way.contains_key(target) {
            return Decision::Pending;
        }
        match self.credentials.get(&credential) {
            Some(known) if known.proven => self.ask_proven(known, target, now),
            Some(known) => self.ask_unproven(known, now),
            None => Decision::Granted,
        }
    }

    /// Why a target is not tried with that credential now, and until when.
    pub(super) fn target_waits(
        &self,
        target: &Target,
        credential: CredentialId,
        now: Moment,
    ) -> Option<(Why, Option<Moment>)> {
        if let Some(content) = target.contents.get(&credential) {
            if content.rejections >= SHUT {
                return Some((Why::TargetShut, None));
            }
            if now < content.not_before {
                let why = if content.rejections > 0 { Why::TargetRejected } else { Why::TargetWaits };
                return Some((why, Some(content.not_before)));
            }
        }
        let mut recent =
            target.failed.iter().rev().map(|at| *at + self.config.wait).filter(|until| now < *until);
        recent.nth(TRIES - 1).map(|until| (Why::TargetTries, Some(until)))
    }

    fn ask_proven(&self, credential: &Credential, target: &TargetId, now: Moment) -> Decision {
        match credential.closed {
            Some(probe) if credential.last_success.as_ref() != Some(target) || now < probe => {
                Decision::Refused(Why::Closed(credential.last_success.clone()), Some(probe.max(now)))
            }
            _ => Decision::Granted,
        }
    }

    fn ask_unproven(&self, credential: &Credential, now: Moment) -> Decision {
        let tries = self.unproven_tries();
        let lost: Vec<_> =
            credential.lost.iter().map(|at| *at + self.config.wait).filter(|u| now < *u).collect();
        if credential.rejected >= tries {
            Decision::Refused(Why::Unproven, None)
        } else if credential.rejected + credential.in_flight + lost.len() < tries {
            Decision::Granted
        } else if credential.in_flight > 0 {
            Decision::Pending
        } else {
            Decision::Refused(Why::UnprovenWaits, lost.first().copied())
        }
    }

    /// Asks, and if granted counts the try as under way until [`Rules::conclude`].
    pub(super) fn grant(
        &mut self,
        target: &TargetId,
        credential: CredentialId,
        by: Instance,
        now: Moment,
    ) -> Decision {
        let decision = self.ask(target, credential, now);
        if decision == Decision::Granted {
            let probe = self.credentials.get(&credential).is_some_and(|known| known.closed.is_some());
            self.begin(target, Try { by, credential, probe });
        }
        decision
    }

    /// A try that was granted, here or by another process.
    pub(super) fn begin(&mut self, target: &TargetId, a_try: Try) {
        self.credentials.entry(a_try.credential).or_default().in_flight += 1;
        if let Some(before) = self.under_way.insert(target.clone(), a_try) {
            self.landed(before.credential);
        }
    }

    fn landed(&mut self, credential: CredentialId) {
        if let Some(known) = self.credentials.get_mut(&credential) {
            known.in_flight = known.in_flight.saturating_sub(1);
        }
    }

    /// Takes the verdict on a try. Of a try that is not known to be under way (any more) only a rejection
    /// counts.
    pub(super) fn conclude(
        &mut self,
        target: &TargetId,
        id: CredentialId,
        by: Instance,
        outcome: Outcome,
        now: Moment,
    ) {
        let ended = self.under_way.get(target).filter(|known| known.by == by && known.credential == id);
        let probe = match ended.copied() {
            Some(ended) => {
                self.under_way.remove(target);
                self.landed(id);
                ended.probe
            }
            None if outcome == Outcome::Rejected => false,
            None => return,
        };
        let wait = self.config.wait;
        let at = self.targets.entry(target.clone()).or_default();
        let before = at.last_failed;
        let credential = self.credentials.entry(id).or_default();
        match outcome {
            Outcome::LostBeforeSecret => {}
            Outcome::Accepted => {
                credential.accepted(target, probe);
                at.contents.remove(&id);
                at.failed.clear();
                at.last_failed = false;
            }
            Outcome::Rejected | Outcome::LostAfterSecret => {
                let rejected = outcome == Outcome::Rejected;
                if rejected {
                    credential.rejected(now + wait);
                } else if !credential.proven {
                    credential.lost.retain(|lost| now < *lost + wait);
                    credential.lost.push_back(now);
                }
                let new = || Content { rejections: 0, failures: 0, not_before: now };
                let content = at.contents.entry(id).or_insert_with(new);
                content.failures = content.failures.saturating_add(1);
                content.rejections += u32::from(rejected);
                content.not_before = now + backoff(&self.config, content.failures);
                at.failed.retain(|failed| now < *failed + wait);
                at.failed.push_back(now);
                at.last_failed = true;
            }
        }
        self.failed_targets =
            (self.failed_targets + usize::from(at.last_failed)).saturating_sub(before.into());
        if at.contents.is_empty() && at.failed.is_empty() {
            self.targets.remove(target);
        }
    }

    /// Opens by hand. Tries that are under way stay so.
    pub(super) fn release(&mut self, what: &Scope) {
        match what {
            Scope::All => {
                self.targets.clear();
                self.credentials.clear();
                for a_try in self.under_way.values() {
                    self.credentials.entry(a_try.credential).or_default().in_flight += 1;
                }
            }
            Scope::Host(address) => self.targets.retain(|target, _| *target.address != **address),
            Scope::Credential(id) => {
                if let Some(known) = self.credentials.get_mut(id) {
                    known.rejected = 0;
                    known.lost.clear();
                    known.recent.clear();
                    known.closed = None;
                }
                // What failed there lately still counts: never more than two tries per wait.
                for target in self.targets.values_mut() {
                    target.contents.remove(id);
                }
            }
        }
        self.recount();
    }

    /// Takes back what a compacted journal kept.
    pub(super) fn restore_credential(&mut self, id: CredentialId, state: Credential) {
        let in_flight = self.credentials.get(&id).map_or(0, |known| known.in_flight);
        self.credentials.insert(id, Credential { in_flight, ..state });
    }

    /// Takes back what a compacted journal kept.
    pub(super) fn restore_target(&mut self, target: TargetId, state: Target) {
        self.failed_targets += usize::from(state.last_failed);
        if let Some(before) = self.targets.insert(target, state) {
            self.failed_targets = self.failed_targets.saturating_sub(before.last_failed.into());
        }
    }

    fn recount(&mut self) {
        self.failed_targets = self.targets.values().filter(|target| target.last_failed).count();
    }
}

impl Credential {
    fn accepted(&mut self, target: &TargetId, probe: bool) {
        self.proven = true;
        self.last_success = Some(target.clone());
        if probe {
            self.closed = None;
            self.recent.clear();
        }
        self.note(false);
    }

    fn rejected(&mut self, probe_at: Moment) {
        if !self.proven {
            self.rejected += 1;
            return;
        }
        self.note(true);
        if self.recent.iter().filter(|rejected| **rejected).count() >= TOO_MANY && self.closed.is_none() {
            self.closed = Some(probe_at);
        }
    }

    fn note(&mut self, rejected: bool) {
        self.recent.push_back(rejected);
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }
}

/// The pause after that many failures in a row.
fn backoff(config: &LockoutConfig, failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    config.wait.saturating_mul(factor).min(config.max_wait.max(config.wait))
}
