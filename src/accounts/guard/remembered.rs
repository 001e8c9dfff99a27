//! What stands in the guard's journal, for people; and opening by hand.

use super::clock::Clock;
use super::credential::CredentialId;
use super::entry::Entry;
use super::journal::{Journal, JournalError, Locked};
use super::memory::Memory;
use super::rules::{Credential, Scope};
use crate::accounts::LockoutConfig;
use crate::target::TargetId;
use serde::Serialize;
use std::path::Path;
use std::time::SystemTime;

/// What the guard remembers.
#[derive(Debug, Default)]
pub struct Remembered {
    /// The credentials, by user.
    pub credentials: Vec<RememberedCredential>,
    /// The targets that are not tried now, and those that are being tried, by address.
    pub targets: Vec<RememberedTarget>,
}

/// A credential.
#[derive(Debug, Clone)]
pub struct RememberedCredential {
    /// Its identity.
    pub id: CredentialId,
    /// Its user, if one is written down.
    pub user: Option<String>,
    /// Whether it is tried.
    pub state: State,
    /// Rejections: of an unproven one in all, of a proven one among its last logins.
    pub rejected: usize,
    /// Of how many: the tries that an unproven one gets, the last logins of a proven one.
    pub of: usize,
    /// Where it was accepted last.
    pub last_success: Option<TargetId>,
}

/// Whether a credential is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It was accepted once.
    Proven,
    /// It was never accepted, and gets a few tries.
    Unproven,
    /// It was rejected too often.
    Closed,
}

impl State {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            State::Proven => "proven",
            State::Unproven => "unproven",
            State::Closed => "closed",
        }
    }
}

/// A target that waits, with the credential that it waits for.
#[derive(Debug, Clone)]
pub struct RememberedTarget {
    /// Which one.
    pub target: TargetId,
    /// Not tried with this credential.
    pub credential: CredentialId,
    /// Why.
    pub why: String,
    /// Until when; `None`: not by waiting.
    pub until: Option<SystemTime>,
}

/// Reads the journal in `state_dir`; nothing is changed. No journal is nothing to remember.
///
/// # Errors
/// When it can't be read, or is damaged.
pub fn remembered(config: &LockoutConfig, state_dir: &Path) -> Result<Remembered, JournalError> {
    let Some(mut journal) = Journal::existing(state_dir)? else { return Ok(Remembered::default()) };
    let memory = read(&mut journal.lock()?, config)?;
    Ok(show(&memory, &Clock::of_machine()))
}

/// Opens what `scope` says, by hand. With [`Scope::All`] a damaged journal is put aside and a new one begun.
/// Agents that run notice within a second.
///
/// # Errors
/// When the journal can't be read or written, or is damaged and `scope` is not all.
pub fn release(config: &LockoutConfig, state_dir: &Path, scope: Scope) -> Result<(), JournalError> {
    let mut journal = Journal::prepare(state_dir)?;
    let mut locked = journal.lock()?;
    let mut memory = read(&mut locked, config);
    // The key stays if it can: agents that run go on with it.
    for name in ["journal", "key"] {
        if scope == Scope::All && matches!(memory, Err(JournalError::Damaged { .. })) {
            locked.put_aside(name)?;
            memory = read(&mut locked, config);
        }
    }
    let memory = memory?;
    let clock = Clock::of_machine();
    let mut entries: Vec<Entry> = memory.new_boot(&clock).into_iter().collect();
    entries.push(Entry::Release { at: memory.now(&clock), what: scope });
    locked.append(&entries, true)
}

fn read(locked: &mut Locked<'_>, config: &LockoutConfig) -> Result<Memory, JournalError> {
    let mut memory = Memory::new(config.clone());
    locked.read(true)?.entries.into_iter().for_each(|entry| memory.apply(entry));
    Ok(memory)
}

fn show(memory: &Memory, clock: &Clock) -> Remembered {
    let (now, rules) = (memory.now(clock), &memory.rules);
    let credential = |(id, known): (&CredentialId, &Credential)| {
        let rejections = known.recent.iter().filter(|rejected| **rejected).count();
        let (rejected, of) = match known.proven {
            true => (rejections, known.recent.len()),
            false => (known.rejected, rules.unproven_tries()),
        };
        let state = match (rules.is_closed(known), known.proven) {
            (true, _) => State::Closed,
            (false, true) => State::Proven,
            (false, false) => State::Unproven,
        };
        let (user, last_success) = (memory.users.get(id).cloned(), known.last_success.clone());
        RememberedCredential { id: *id, user, state, rejected, of, last_success }
    };
    let mut credentials: Vec<_> = rules.credentials.iter().map(credential).collect();
    credentials.sort_by(|a, b| (&a.user, a.id).cmp(&(&b.user, b.id)));

    let mut targets = Vec::new();
    for (target, known) in &rules.targets {
        for id in known.contents.keys() {
            let Some((why, until)) = rules.target_waits(known, *id, now) else { continue };
            let until = until.map(|until| SystemTime::now() + until.since(now));
            let (target, why) = (target.clone(), why.to_string());
            targets.push(RememberedTarget { target, credential: *id, why, until });
        }
    }
    for (target, a_try) in &rules.under_way {
        let (target, why) = (target.clone(), "a login is under way".to_owned());
        targets.push(RememberedTarget { target, credential: a_try.credential, why, until: None });
    }
    targets.sort_by(|a, b| (&a.target, a.credential).cmp(&(&b.target, b.credential)));
    Remembered { credentials, targets }
}
