//! The guard: may a login be tried? The worst thing that this agent can do is to lock an account out.
//!
//! SSH and SOAP both ask here, with the same rules ([`rules`]). A login goes like this: [`Guard::check`]
//! before the target is dialed, so that no connection is wasted on a try that would be refused;
//! [`Guard::permit`] right before the secret leaves; the [`Permit`]'s verdict afterwards. Public keys lock
//! nothing and are not asked for here.

//!
//! What is known outlives the process ([`journal`]): a try is on the disk before it is made, so neither a
//! crash loop nor several processes side by side get more tries than one process that runs for ever.

mod clock;
mod credential;
mod entry;
mod journal;
mod memory;
mod remembered;
mod rules;
mod writer;

use super::LockoutConfig;
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::outcome::{Failure, FailureReason};
use crate::stats::Stats;
use crate::target::{TargetId, TargetKind};
use clock::{Clock, Moment};
use memory::Memory;
use rules::{Decision, Instance, Outcome};
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};
use writer::{Answer, Message, Request, Verdict, Writer};

pub use credential::{CredentialId, CredentialKey};
pub use journal::JournalError;
pub use remembered::{Remembered, RememberedCredential, RememberedTarget, State, release, remembered};
pub use rules::{Scope, Why};

/// The trouble of a guard that has just begun.
const NOT_READ_YET: &str = "the guard's memory was not read yet";

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

static USABLE: MetricDef = MetricDef {
    name: "esxi.agent.guard.usable",
    kind: Kind::Gauge,
    unit: Unit::None,
    cadence: Cadence::OnChange,
    help: "1: what was tried can be read and written down. 0: it can't, and no password login is tried.",
    attributes: &[],
};

static SYNCS: MetricDef = MetricDef {
    name: "esxi.agent.guard.syncs",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "How often the guard's journal was brought to the disk; logins at the same time share one.",
    attributes: &[],
};

/// The guard's metrics.
pub static METRICS: &[&MetricDef] = &[&LOGINS, &CLOSED, &USABLE, &SYNCS];

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
    shared: Arc<Shared>,
    /// `None`: what is known ends with the process.
    writer: Option<Sender<Message>>,
}

/// What the guard and its writer share.
#[derive(Debug)]
struct Shared {
    view: Mutex<View>,
    clock: Arc<Clock>,
    /// Wakes those who wait for a verdict.
    verdict: Notify,
    key: Arc<CredentialKey>,
    stats: Arc<Stats>,
    syncs: AtomicU64,
    closed: AtomicBool,
}

#[derive(Debug)]
struct View {
    memory: Memory,
    /// Why the memory can't be used.
    trouble: Option<Arc<str>>,
}

impl Shared {
    fn new(config: LockoutConfig, clock: Clock, key: CredentialKey, stats: Arc<Stats>) -> Arc<Self> {
        let view = View { memory: Memory::new(config), trouble: None };
        Arc::new(Self {
            view: Mutex::new(view),
            clock: Arc::new(clock),
            verdict: Notify::new(),
            key: Arc::new(key),
            stats,
            syncs: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        })
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn count_syncs(&self, syncs: u64) {
        if syncs > 0 {
            self.syncs.fetch_add(syncs, Ordering::Relaxed);
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            self.stats.add(&SYNCS, Attributes::new::<&str, &str>([]), syncs as f64);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn publish(&self) {
        let view = self.view();
        let (credentials, targets) = view.memory.rules.closed();
        self.stats.set(&CLOSED, Attributes::new([("kind", "credential")]), credentials as f64);
        self.stats.set(&CLOSED, Attributes::new([("kind", "target")]), targets as f64);
        self.stats.set(
            &USABLE,
            Attributes::new::<&str, &str>([]),
            f64::from(u8::from(view.trouble.is_none())),
        );
    }
}

impl Guard {
    /// Remembers nothing yet, and everything only as long as it lives.
    pub fn new(config: LockoutConfig, stats: Arc<Stats>) -> Self {
        let shared = Shared::new(config, Clock::of_process(), CredentialKey::of_process(), stats);
        {
            let memory = &mut shared.view().memory;
            let start = memory.new_boot(&shared.clock);
            start.into_iter().for_each(|entry| memory.apply(entry));
        }
        shared.publish();
        Self { shared, writer: None }
    }

    /// Remembers what stands in `state_dir`, and writes down there what is tried. Where that is not possible
    /// no password login is tried until it is, unless the configuration says to do without
    /// (`lockout.volatile`).
    pub async fn open(config: LockoutConfig, state_dir: &Path, stats: Arc<Stats>) -> Self {
        if config.volatile {
            return Self::new(config, stats);
        }
        Self::open_with(config, state_dir, stats, Clock::of_machine()).await
    }

    async fn open_with(config: LockoutConfig, state_dir: &Path, stats: Arc<Stats>, clock: Clock) -> Self {
        let shared = Shared::new(config.clone(), clock, CredentialKey::default(), stats);
        let unread: Arc<str> = NOT_READ_YET.into();
        shared.view().trouble = Some(unread);
        let writer = match Writer::start(config, state_dir.to_owned(), Arc::clone(&shared)) {
            Ok(writer) => Some(writer),
            Err(error) => {
                shared.view().trouble = Some(format!("the guard's thread can't be started: {error}").into());
                None
            }
        };
        let guard = Self { shared, writer };
        guard.flush().await;
        // Not before: what was not tried yet is no trouble, and would be told as one.
        guard.shared.publish();
        guard
    }

    /// What makes the identities of credentials that this guard knows.
    pub fn credentials(&self) -> Arc<CredentialKey> {
        Arc::clone(&self.shared.key)
    }

    /// How often the journal was brought to the disk.
    pub fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }

    /// Waits until all verdicts that were given are written down; 10 s at most. Those that are not count as
    /// lost.
    pub async fn flush(&self) {
        let Some(writer) = &self.writer else { return };
        let (done, waiting) = oneshot::channel();
        if writer.send(Message::Flush(done)).is_ok() {
            let _ = timeout_at(Instant::now() + VERDICT_WAIT, waiting).await;
        }
    }

    /// Whether a try would be granted now, or as soon as those under way have their verdict. Reserves
    /// nothing.
    pub fn check(&self, target: &TargetId, credential: CredentialId) -> Result<(), Refusal> {
        let view = self.shared.view();
        match self.ask(&view, target, credential) {
            Decision::Granted | Decision::Pending => Ok(()),
            Decision::Refused(why, until) => Err(self.refuse(&view, target, why, until)),
        }
    }

    fn ask(&self, view: &View, target: &TargetId, credential: CredentialId) -> Decision {
        let known = match &view.trouble {
            Some(trouble) => Err(Arc::clone(trouble)),
            // Made before the key was known.
            None if self.writer.is_some() && credential == CredentialId::UNKNOWN => Err(NOT_READ_YET.into()),
            None => Ok(()),
        };
        match known {
            Ok(()) => view.memory.rules.ask(target, credential, view.memory.now(&self.shared.clock)),
            Err(trouble) => Decision::Refused(Why::Memory(trouble), None),
        }
    }

    /// Grants one try, whose verdict the caller owes. Where others' verdicts have to come first, waits for
    /// them, 10 s at most. The try is written down, and on the disk, when this returns.
    pub async fn permit(&self, target: &TargetId, credential: CredentialId) -> Result<Permit<'_>, Refusal> {
        let deadline = Instant::now() + VERDICT_WAIT;
        let late = || {
            let view = self.shared.view();
            let why = view.trouble.clone().map_or(Why::VerdictPending, Why::Memory);
            self.refuse(&view, target, why, None)
        };
        loop {
            let verdict = self.shared.verdict.notified();
            tokio::pin!(verdict);
            verdict.as_mut().enable();
            match self.decide(target, credential)? {
                Decision::Granted => {
                    let Some(writer) = &self.writer else { return Ok(self.permit_for(target, credential)) };
                    let (answer, waiting) = oneshot::channel();
                    let request = Request { target: target.clone(), credential, answer };
                    let _ = writer.send(Message::Request(request));
                    match timeout_at(deadline, waiting).await {
                        Ok(Ok(Answer::Granted(slip))) => {
                            let permit = self.permit_for(target, credential);
                            slip.take();
                            return Ok(permit);
                        }
                        // The rules have their reason: ask them again.
                        Ok(Ok(Answer::NotNow)) => {}
                        Ok(Err(_)) | Err(_) => return Err(late()),
                    }
                }
                _ if timeout_at(deadline, verdict).await.is_err() => return Err(late()),
                _ => {}
            }
        }
    }

    /// Grants it here and now, unless it has to be written down first.
    fn decide(&self, target: &TargetId, credential: CredentialId) -> Result<Decision, Refusal> {
        let mut view = self.shared.view();
        let mut decision = self.ask(&view, target, credential);
        if self.writer.is_none() && decision == Decision::Granted {
            let now = view.memory.now(&self.shared.clock);
            decision = view.memory.rules.grant(target, credential, Instance::default(), now);
        }
        match decision {
            Decision::Refused(why, until) => Err(self.refuse(&view, target, why, until)),
            decision => Ok(decision),
        }
    }

    fn permit_for(&self, target: &TargetId, credential: CredentialId) -> Permit<'_> {
        Permit { guard: self, target: target.clone(), credential, done: false }
    }

    fn refuse(&self, view: &View, target: &TargetId, why: Why, until: Option<Moment>) -> Refusal {
        self.count(target, "guarded");
        let now = view.memory.now(&self.shared.clock);
        let until = until.map(|until| SystemTime::now() + until.since(now));
        Refusal { target: target.clone(), why, until }
    }

    fn conclude(&self, target: &TargetId, credential: CredentialId, outcome: Outcome) {
        if let Some(writer) = &self.writer {
            let verdict = Verdict { target: target.clone(), credential, outcome };
            let _ = writer.send(Message::Verdict(verdict));
        } else {
            let mut view = self.shared.view();
            let now = view.memory.now(&self.shared.clock);
            view.memory.rules.conclude(target, credential, Instance::default(), outcome, now);
            drop(view);
            self.shared.publish();
            self.shared.verdict.notify_waiters();
        }
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
        let attributes = Attributes::new([("outcome", outcome), ("protocol", protocol)]);
        self.shared.stats.add(&LOGINS, attributes, 1.0);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
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
mod durable_tests;
#[cfg(test)]
mod tests;
