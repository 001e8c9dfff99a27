//! What follows from the entries of a journal, in their order.

use super::clock::{Clock, Moment};
use super::credential::CredentialId;
use super::entry::Entry;
use super::rules::{Instance, Outcome, Rules, Try};
use crate::accounts::LockoutConfig;
use crate::target::TargetId;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The state of the guard. Two processes that read the same entries have the same.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) rules: Rules,
    pub(super) users: HashMap<CredentialId, String>,
    /// Of each boot: by how much the guard's time is ahead.
    offsets: BTreeMap<String, i64>,
    last: Moment,
}

impl Memory {
    pub(super) fn new(config: LockoutConfig) -> Self {
        let (users, offsets) = (HashMap::new(), BTreeMap::new());
        Self { rules: Rules::new(config), users, offsets, last: Moment::default() }
    }

    /// The guard's time. Never goes back, whatever the clock says.
    pub(super) fn now(&self, clock: &Clock) -> Moment {
        let offset = self.offsets.get(&clock.boot).copied().unwrap_or_else(|| clock.offset(self.last));
        clock.now(offset).max(self.last)
    }

    /// The entry that has to be written if this boot is not known yet.
    pub(super) fn new_boot(&self, clock: &Clock) -> Option<Entry> {
        if self.offsets.contains_key(&clock.boot) {
            return None;
        }
        let offset = clock.offset(self.last);
        Some(Entry::Clock { boot: clock.boot.clone(), offset, at: clock.now(offset).max(self.last) })
    }

    pub(super) fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Journal { .. } => {}
            Entry::Clock { boot, offset, at } => {
                self.offsets.insert(boot, offset);
                self.pass(at);
            }
            Entry::Try { at, by, target, credential, user, probe } => {
                self.pass(at);
                self.users.extend(user.map(|user| (credential, user)));
                self.rules.begin(&target, Try { by, credential, probe });
            }
            Entry::End { at, by, target, credential, outcome } => {
                self.pass(at);
                self.rules.conclude(&target, credential, by, outcome, at);
            }
            Entry::Release { at, what } => {
                self.pass(at);
                self.rules.release(&what);
            }
            Entry::Credential { id, user, state } => {
                self.users.extend(user.map(|user| (id, user)));
                self.rules.restore_credential(id, state);
            }
            Entry::Target { target, state } => self.rules.restore_target(target, state),
        }
    }

    fn pass(&mut self, at: Moment) {
        self.last = self.last.max(at);
    }

    /// The verdicts on the tries of processes that have ended without one: nobody knows whether the target
    /// counted a failure.
    pub(super) fn verdicts_on(&self, ended: &HashSet<Instance>, at: Moment) -> Vec<Entry> {
        let tries = self.rules.under_way.iter().filter(|(_, a_try)| ended.contains(&a_try.by));
        let lost = |(target, a_try): (&TargetId, &Try)| Entry::End {
            at,
            by: a_try.by,
            target: target.clone(),
            credential: a_try.credential,
            outcome: Outcome::LostAfterSecret,
        };
        tries.map(lost).collect()
    }

    /// Entries from which the same state follows; the journal's first line is not among them.
    pub(super) fn entries(&self, clock: &Clock) -> Vec<Entry> {
        let at = self.last;
        let mut entries = Vec::new();
        let offset = self.offsets.get(&clock.boot).copied().unwrap_or_else(|| clock.offset(at));
        entries.push(Entry::Clock { boot: clock.boot.clone(), offset, at });
        for (id, state) in &self.rules.credentials {
            let user = self.users.get(id).cloned();
            entries.push(Entry::Credential { id: *id, user, state: state.clone() });
        }
        for (target, state) in &self.rules.targets {
            entries.push(Entry::Target { target: target.clone(), state: state.clone() });
        }
        for (target, a_try) in &self.rules.under_way {
            let Try { by, credential, probe } = *a_try;
            entries.push(Entry::Try { at, by, target: target.clone(), credential, user: None, probe });
        }
        entries
    }
}
