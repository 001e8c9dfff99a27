//! The one thread of the process that writes the journal: whatever came while it was busy goes into the
//! next batch, which takes the lock once and is synced once.

use super::Shared;
use super::clock::Clock;
use super::credential::CredentialId;
use super::entry::Entry;
use super::journal::{Alive, Journal, JournalError, Locked};
use super::memory::Memory;
use super::rules::{Decision, Instance, Outcome};
use crate::accounts::LockoutConfig;
use crate::target::TargetId;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

/// Pause between two looks whether another process has written something, such as a release by hand.
const LOOK: Duration = Duration::from_secs(1);
/// The same, while another process's tries are under way, for whose verdict somebody may wait.
const LOOK_CLOSELY: Duration = Duration::from_millis(100);

/// What is wanted of the writer.
pub(super) enum Message {
    Request(Request),
    Verdict(Verdict),
    /// Answered once everything before it is written.
    Flush(oneshot::Sender<()>),
    /// Ends as a killed process does, for tests.
    #[cfg(test)]
    Crash,
}

/// Somebody wants to try.
pub(super) struct Request {
    pub(super) target: TargetId,
    pub(super) credential: CredentialId,
    pub(super) answer: oneshot::Sender<Answer>,
}

pub(super) enum Answer {
    /// Written and synced.
    Granted(Slip),
    /// Not granted, as the rules now say.
    NotNow,
}

/// How a granted try ended.
pub(super) struct Verdict {
    pub(super) target: TargetId,
    pub(super) credential: CredentialId,
    pub(super) outcome: Outcome,
}

/// A try that was granted. If nobody takes it any more, nothing was sent.
pub(super) struct Slip {
    verdict: Option<(TargetId, CredentialId)>,
    back: Sender<Message>,
}

impl Slip {
    /// From here on its verdict is the taker's.
    pub(super) fn take(mut self) {
        self.verdict = None;
    }
}

impl Drop for Slip {
    fn drop(&mut self) {
        if let Some((target, credential)) = self.verdict.take() {
            let verdict = Verdict { target, credential, outcome: Outcome::LostBeforeSecret };
            let _ = self.back.send(Message::Verdict(verdict));
        }
    }
}

pub(super) struct Writer {
    config: LockoutConfig,
    state_dir: PathBuf,
    clock: Arc<Clock>,
    shared: Arc<Shared>,
    back: Sender<Message>,
    journal: Option<Journal>,
    me: Instance,
    alive: Option<Alive>,
    /// A journal was there.
    seen: bool,
    /// Verdicts that are not written yet.
    pub(super) owed: Vec<Verdict>,
}

impl Writer {
    /// Starts the thread, which ends when all senders are dropped. `Err`: the system gives no thread.
    pub(super) fn start(
        config: LockoutConfig,
        state_dir: PathBuf,
        shared: Arc<Shared>,
    ) -> std::io::Result<Sender<Message>> {
        let (sender, receiver) = channel();
        let writer = Self::new(config, state_dir, shared, sender.clone());
        let subscriber = tracing::dispatcher::get_default(Clone::clone);
        let work = move || tracing::dispatcher::with_default(&subscriber, || writer.run(&receiver));
        std::thread::Builder::new().name("guard".to_owned()).spawn(work)?;
        Ok(sender)
    }

    pub(super) fn new(
        config: LockoutConfig,
        state_dir: PathBuf,
        shared: Arc<Shared>,
        back: Sender<Message>,
    ) -> Self {
        // Other programs that read JSON have 53 bits for a number.
        let me = Instance(rand::random::<u64>() >> 11);
        let clock = Arc::clone(&shared.clock);
        let (journal, alive, owed) = (None, None, Vec::new());
        Self { config, state_dir, clock, shared, back, journal, me, alive, seen: false, owed }
    }

    fn run(mut self, receiver: &Receiver<Message>) {
        loop {
            let foreign = self.shared.view().memory.rules.under_way.values().any(|a_try| a_try.by != self.me);
            let first = match receiver.recv_timeout(if foreign { LOOK_CLOSELY } else { LOOK }) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) if self.shared.is_closed() => return,
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let looked = first.is_none();
            let (mut requests, mut flushes) = (Vec::new(), Vec::new());
            for message in first.into_iter().chain(receiver.try_iter()) {
                match message {
                    Message::Request(request) => requests.push(request),
                    Message::Verdict(verdict) => self.owed.push(verdict),
                    Message::Flush(done) => flushes.push(done),
                    #[cfg(test)]
                    Message::Crash => return,
                }
            }
            let nothing_new = looked
                && !foreign
                && self.owed.is_empty()
                && self.shared.view().trouble.is_none()
                && self.journal.as_ref().is_some_and(|journal| !journal.has_changed());
            if !nothing_new {
                self.batch(requests);
            }
            for done in flushes {
                let _ = done.send(());
            }
        }
    }

    fn batch(&mut self, requests: Vec<Request>) {
        let done = self.write(&requests);
        let trouble = done.as_ref().err().map(|error| Arc::<str>::from(error.to_string()));
        let before = std::mem::replace(&mut self.shared.view().trouble, trouble.clone());
        match (&trouble, before) {
            (Some(now), before) if before.as_ref() != Some(now) => {
                warn!("no password login is tried: {now}");
            }
            (None, Some(then)) if &*then != super::NOT_READ_YET => {
                info!("the guard's memory can be used again");
            }
            _ => {}
        }
        let granted = done.unwrap_or_else(|_| {
            // What was read and decided may be more than what is written: read again.
            self.journal = None;
            vec![false; requests.len()]
        });
        self.shared.publish();
        for (request, granted) in requests.into_iter().zip(granted) {
            let answer = if granted {
                let verdict = Some((request.target, request.credential));
                Answer::Granted(Slip { verdict, back: self.back.clone() })
            } else {
                Answer::NotNow
            };
            // If nobody waits for it, the slip comes back.
            let _ = request.answer.send(answer);
        }
        self.shared.verdict.notify_waiters();
    }

    /// Says which of the requests were granted. On an error none is, and nothing was tried.
    pub(super) fn write(&mut self, requests: &[Request]) -> Result<Vec<bool>, JournalError> {
        let mut journal = match self.journal.take() {
            Some(journal) => journal,
            None => Journal::prepare(&self.state_dir)?,
        };
        let mut locked = journal.lock()?;
        let granted = self.write_locked(&mut locked, requests);
        drop(locked);
        self.shared.count_syncs(std::mem::take(&mut journal.syncs));
        self.journal = Some(journal);
        granted
    }

    fn write_locked(
        &mut self,
        locked: &mut Locked<'_>,
        requests: &[Request],
    ) -> Result<Vec<bool>, JournalError> {
        self.read(locked)?;
        if self.alive.is_none() {
            locked.sweep();
            self.alive = Some(locked.live(self.me)?);
        }
        let mut view = self.shared.view();
        let memory = &mut view.memory;
        let mut entries: Vec<Entry> = memory.new_boot(&self.clock).into_iter().collect();
        let clock = entries.clone();
        clock.into_iter().for_each(|entry| memory.apply(entry));
        let at = memory.now(&self.clock);

        let mut sync = !entries.is_empty();
        for Verdict { target, credential, outcome } in &self.owed {
            let (target, by, outcome) = (target.clone(), self.me, *outcome);
            // A lost success makes us more careful, a lost rejection less.
            sync |= outcome != Outcome::Accepted;
            entries.push(Entry::End { at, by, target, credential: *credential, outcome });
        }
        let others: HashSet<Instance> = memory.rules.under_way.values().map(|a_try| a_try.by).collect();
        let ended = others.into_iter().filter(|by| *by != self.me && locked.has_ended(*by)).collect();
        entries.extend(memory.verdicts_on(&ended, at));
        let verdicts = entries.iter().filter(|entry| matches!(entry, Entry::End { .. })).cloned();
        verdicts.collect::<Vec<_>>().into_iter().for_each(|entry| memory.apply(entry));

        let mut granted = Vec::with_capacity(requests.len());
        for Request { target, credential, .. } in requests {
            let decision = memory.rules.grant(target, *credential, self.me, at);
            granted.push(decision == Decision::Granted);
            let Some(a_try) = memory.rules.under_way.get(target).filter(|_| decision == Decision::Granted)
            else {
                continue;
            };
            let probe = a_try.probe;
            let user = match memory.users.contains_key(credential) {
                true => None,
                false => self.shared.key.user(*credential).map(|user| user.to_string()),
            };
            memory.users.extend(user.clone().map(|user| (*credential, user)));
            let (target, by) = (target.clone(), self.me);
            entries.push(Entry::Try { at, by, target, credential: *credential, user, probe });
            sync = true;
        }
        drop(view);
        // Also to find out whether it can be written again.
        if entries.is_empty() && self.shared.view().trouble.is_some() {
            let view = self.shared.view();
            entries = view.memory.entries(&self.clock).into_iter().take(1).collect();
            sync = true;
        }
        if !entries.is_empty()
            && let Err(error) = locked.append(&entries, sync)
        {
            // If it was written nevertheless, these tries have to end, too.
            let never = requests.iter().zip(&granted).filter(|(_, granted)| **granted);
            self.owed.extend(never.map(|(request, _)| Verdict {
                target: request.target.clone(),
                credential: request.credential,
                outcome: Outcome::LostBeforeSecret,
            }));
            return Err(error);
        }
        self.owed.clear();
        if locked.is_large() {
            let entries = self.shared.view().memory.entries(&self.clock);
            if let Err(error) = locked.compact(&entries) {
                debug!("the guard's journal stays large: {error}");
            }
        }
        Ok(granted)
    }

    /// Takes note of what others have written.
    fn read(&mut self, locked: &mut Locked<'_>) -> Result<(), JournalError> {
        let news = locked.read(!self.seen)?;
        self.seen = true;
        if let Some(key) = locked.key()
            && !self.shared.key.set(key)
        {
            return Err(JournalError::OtherKey(locked.folder()));
        }
        if news.anew {
            let mut memory = Memory::new(self.config.clone());
            news.entries.into_iter().for_each(|entry| memory.apply(entry));
            self.shared.view().memory = memory;
        } else {
            let mut view = self.shared.view();
            news.entries.into_iter().for_each(|entry| view.memory.apply(entry));
        }
        Ok(())
    }
}
