//! Host keys: the known_hosts file in OpenSSH's format (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).
//!
//! Loaded once into a table and read again when the file changes: at ten thousand hosts, reading it for
//! every login would cost more than the login. A key is refused only after one more look at the file, so
//! that what somebody has just changed by hand counts at once.
//!
//! Plain, hashed and wildcard names, `[host]:port`, `@revoked` and `@cert-authority` are understood. A host is
//! asked for a certificate where there is an authority that could have signed it.

mod certificate;
mod edit;
mod file;
mod table;

pub use edit::{Forgotten, KnownKey, KnownKeys, forget, list};

use crate::config::{HostKeyPolicy, SshConfig};
use crate::file_stamp::FileStamp;
use crate::metric::{Attributes, Cadence, Kind, MetricDef, Unit};
use crate::outcome::{Failure, FailureReason, chain};
use crate::stats::Stats;
use russh::keys::{Algorithm, Certificate, PublicKey};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use table::{Judgement, Names, Table, describe};
use tokio::sync::Semaphore;

/// Broken lines that are told by number; most that are remembered as told.
const MAX_TOLD: usize = 1_000;

pub(super) static HOST_KEYS: MetricDef = MetricDef {
    name: "esxi.agent.host_keys",
    kind: Kind::Counter,
    unit: Unit::None,
    cadence: Cadence::Periodic,
    help: "SSH host keys that were not simply known, by outcome: accepted_new (recorded), changed, revoked or unknown (all refused).",
    attributes: &["outcome"],
};

/// Why a host key may be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is the recorded one.
    Known,
    /// A recorded authority vouches for it.
    Certified,
    /// Nothing was recorded for the host, and the policy is to accept that.
    New,
    /// The policy is to trust any.
    Unverified,
}

impl Standing {
    /// For reports.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Certified => "certified",
            Self::New => "new",
            Self::Unverified => "unverified",
        }
    }
}

/// What is recorded for a host.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The kinds of its keys.
    pub(super) algorithms: Vec<Algorithm>,
    /// Whether there is an authority for it, so that its certificate can be verified.
    pub(super) has_authority: bool,
}

/// The keys that hosts are known by. Cheap to share; its calls read files and block for a moment.
#[derive(Debug)]
pub struct HostKeys {
    path: PathBuf,
    policy: HostKeyPolicy,
    /// Whether a new key is recorded.
    record: bool,
    stats: Arc<Stats>,
    /// For calls that block. They wait for each other anyway: not each on a thread of its own.
    turns: Semaphore,
    state: Mutex<State>,
}

/// Calls that block at a time.
const TURNS: usize = 4;

#[derive(Debug, Default)]
struct State {
    /// What the file was when it was read; `None`: there was none, or it was not read yet.
    stamp: Option<FileStamp>,
    table: Table,
    /// Broken lines that have been told.
    told: HashSet<String>,
}

impl HostKeys {
    /// Reads the file of `config`, which need not exist yet.
    ///
    /// # Errors
    /// When it is there but can't be read.
    pub fn load(config: &SshConfig, stats: Arc<Stats>) -> Result<Self, Failure> {
        let keys = Self::new(config.known_hosts.clone(), config.host_key_policy, stats);
        if keys.policy != HostKeyPolicy::Insecure {
            drop(keys.current()?);
        }
        Ok(keys)
    }

    /// Of the file at `path`, read when first needed.
    pub fn new(path: PathBuf, policy: HostKeyPolicy, stats: Arc<Stats>) -> Self {
        let (turns, state) = (Semaphore::new(TURNS), Mutex::default());
        Self { path, policy, record: true, stats, turns, state }
    }

    /// The same, but a new key is never recorded: it stays [`Standing::New`].
    #[must_use]
    pub fn without_recording(mut self) -> Self {
        self.record = false;
        self
    }

    /// The kinds of keys that are recorded for a host.
    pub(super) async fn algorithms(self: &Arc<Self>, host: &str, port: u16) -> Result<Known, Failure> {
        if self.policy == HostKeyPolicy::Insecure {
            return Ok(Known::default());
        }
        let names = Names::new(host, port);
        self.blocking(move |keys| {
            let mut state = keys.current()?;
            let has_authority = state.table.has_authority(&names);
            let algorithms = state.table.keys(&names).into_iter().map(PublicKey::algorithm).collect();
            Ok(Known { algorithms, has_authority })
        })
        .await
    }

    /// Whether `key` may be trusted to be that of the host. A new one is recorded if the policy says so.
    ///
    /// # Errors
    /// `host_key_changed`, `host_key_unknown` (strict, or it can't be recorded), `host_key_revoked`.
    pub(super) async fn verify(
        self: &Arc<Self>,
        host: &str,
        port: u16,
        key: PublicKey,
    ) -> Result<Standing, Failure> {
        if self.policy == HostKeyPolicy::Insecure {
            return Ok(Standing::Unverified);
        }
        let names = Names::new(host, port);
        let result = self.blocking(move |keys| keys.verify_blocking(&names, &key)).await;
        self.counted(result)
    }

    /// Whether the key in `certificate` may be trusted to be that of the host: an authority that is recorded for
    /// the host has signed it, for this name and this time, and neither is revoked. Or the key itself is recorded.
    ///
    /// # Errors
    /// As of [`HostKeys::verify`]. A certificate is never recorded.
    pub(super) async fn verify_certificate(
        self: &Arc<Self>,
        host: &str,
        port: u16,
        certificate: Certificate,
    ) -> Result<Standing, Failure> {
        let names = Names::new(host, port);
        let verify = move |keys: &Self| keys.verify_certificate_blocking(&names, &certificate);
        self.counted(self.blocking(verify).await)
    }

    fn counted(&self, result: Result<Standing, Failure>) -> Result<Standing, Failure> {
        let outcome = match &result {
            Ok(Standing::Known | Standing::Certified | Standing::Unverified) => return result,
            Ok(Standing::New) if !self.record => return result,
            Ok(Standing::New) => "accepted_new",
            Err(Failure { reason: FailureReason::HostKeyChanged, .. }) => "changed",
            Err(Failure { reason: FailureReason::HostKeyRevoked, .. }) => "revoked",
            Err(_) => "unknown",
        };
        self.stats.add(&HOST_KEYS, Attributes::new([("outcome", outcome)]), 1.0);
        result
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        // Never closed.
        let _turn = self.turns.acquire().await.ok();
        let keys = Arc::clone(self);
        let (span, dispatch) = (tracing::Span::current(), tracing::dispatcher::get_default(Clone::clone));
        let work = move || tracing::dispatcher::with_default(&dispatch, || span.in_scope(|| work(&keys)));
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => {
                Err(Failure::new(FailureReason::HostKeyUnknown, format!("check host key: {error}")))
            }
        }
    }

    fn verify_blocking(&self, names: &Names, key: &PublicKey) -> Result<Standing, Failure> {
        let mut state = self.current()?;
        match state.table.judge(names, key) {
            Judgement::Known => return Ok(Standing::Known),
            // Looks again under the file's lock. Not closely: whoever adds a line makes the file longer, and a
            // new fleet's hosts, of which each adds one, would each read it as a whole.
            Judgement::Unknown if self.policy == HostKeyPolicy::AcceptNew && self.record => {
                return self.record(&mut state, names, key);
            }
            _ => {}
        }
        // Before anybody is refused, what the file says at this moment.
        self.refresh(&mut state, Look::Close).map_err(|error| self.unreadable(&error))?;
        match state.table.judge(names, key) {
            Judgement::Unknown if self.policy == HostKeyPolicy::AcceptNew && !self.record => {
                Ok(Standing::New)
            }
            Judgement::Unknown if self.policy == HostKeyPolicy::AcceptNew => {
                self.record(&mut state, names, key)
            }
            judgement => self.conclude(judgement, names, key),
        }
    }

    fn verify_certificate_blocking(
        &self,
        names: &Names,
        certificate: &Certificate,
    ) -> Result<Standing, Failure> {
        let (key, authority) = (certificate::subject(certificate), certificate::authority(certificate));
        let mut state = self.current()?;
        if !state.table.is_authority(names, &authority) {
            self.refresh(&mut state, Look::Close).map_err(|error| self.unreadable(&error))?;
        }
        if let Some(revoked) = [&key, &authority].into_iter().find(|key| state.table.is_revoked(names, key)) {
            return self.conclude(Judgement::Revoked, names, revoked);
        }
        if !state.table.is_authority(names, &authority) {
            let judgement = state.table.judge(names, &key);
            return self.conclude(judgement, names, &key);
        }
        certificate::check(certificate, names.host(), SystemTime::now()).map_err(|why| {
            let (host, by) = (&names.own, describe(&authority));
            let message = format!("host certificate of {host}, signed by {by}: {why}");
            Failure::new(FailureReason::HostKeyUnknown, message)
        })?;
        Ok(Standing::Certified)
    }

    /// Appends one line, under the file's lock, since another agent may record the same host now.
    fn record(&self, state: &mut State, names: &Names, key: &PublicKey) -> Result<Standing, Failure> {
        let failed = |error: io::Error| {
            let (host, path) = (&names.own, self.path.display());
            let why = format!("host key of {host} is new and can't be recorded in {path}: {}", chain(&error));
            Failure::new(FailureReason::HostKeyUnknown, why)
        };
        let mut file = file::open_to_append(&self.path).map_err(failed)?;
        self.refresh(state, Look::Quick).map_err(failed)?;
        let judgement = state.table.judge(names, key);
        if judgement != Judgement::Unknown {
            return self.conclude(judgement, names, key);
        }
        let line = key.to_openssh().map_err(io::Error::other).map_err(failed)?;
        file::append(&mut file, &format!("{} {line}", names.own)).map_err(failed)?;
        state.table.record(names, key);
        state.stamp = Some(FileStamp::of(&file.metadata().map_err(failed)?));
        tracing::info!("host key of {} is new and was recorded: {}", names.own, describe(key));
        Ok(Standing::New)
    }

    fn conclude(&self, judgement: Judgement, names: &Names, key: &PublicKey) -> Result<Standing, Failure> {
        let (host, path, offered) = (&names.own, self.path.display(), describe(key));
        let (reason, message) = match judgement {
            Judgement::Known => return Ok(Standing::Known),
            Judgement::Changed(known) => (
                FailureReason::HostKeyChanged,
                format!(
                    "host key of {host} has changed: known is {}, offered was {offered}",
                    known.join(" or ")
                ),
            ),
            Judgement::Revoked => {
                (FailureReason::HostKeyRevoked, format!("host key of {host} is revoked: {offered}"))
            }
            Judgement::Unknown => {
                (FailureReason::HostKeyUnknown, format!("host key of {host} is not in {path}: {offered}"))
            }
            Judgement::OnlyAuthority => (
                FailureReason::HostKeyUnknown,
                format!(
                    "host key of {host} is not in {path}, and no @cert-authority there has certified it: {offered}"
                ),
            ),
        };
        Err(Failure::new(reason, message))
    }

    /// The table, read again if the file has changed.
    fn current(&self) -> Result<MutexGuard<'_, State>, Failure> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut state, Look::Quick).map_err(|error| self.unreadable(&error))?;
        Ok(state)
    }

    fn unreadable(&self, error: &io::Error) -> Failure {
        let message = format!("read known hosts {}: {error}", self.path.display());
        Failure::new(FailureReason::HostKeyUnknown, message)
    }

    fn refresh(&self, state: &mut State, look: Look) -> io::Result<()> {
        let metadata = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (state.stamp, state.table) = (None, Table::default());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let unchanged = state.stamp.as_ref().is_some_and(|stamp| match look {
            Look::Quick => stamp.resembles(&metadata),
            Look::Close => stamp.is_still(&metadata),
        });
        if !unchanged {
            let mut file = File::open(&self.path)?;
            let stamp = FileStamp::of(&file.metadata()?);
            state.table = Table::read(&file::read(&mut file)?);
            state.stamp = Some(stamp);
            self.tell_broken_lines(state);
        }
        Ok(())
    }

    /// Each broken line is told once, with its number of that time.
    fn tell_broken_lines(&self, state: &mut State) {
        let State { table, told, .. } = state;
        let mut new = Vec::new();
        for (number, text) in std::mem::take(&mut table.broken) {
            if told.len() < MAX_TOLD && told.insert(text) {
                new.push(number.to_string());
            }
        }
        if !new.is_empty() {
            let (path, lines) = (self.path.display(), new.join(", "));
            tracing::warn!("known hosts {path}: passed over as no valid entries: line {lines}");
        }
    }
}

/// How sure one has to be that the file has not changed.
#[derive(Debug, Clone, Copy)]
enum Look {
    /// Its meta-data are the same.
    Quick,
    /// And so old that a change would show in them.
    Close,
}

#[cfg(test)]
mod tests;
