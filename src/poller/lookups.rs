//! What a reader wanted looked up: texts of objects beside the hosts, remembered.

use crate::collectors::Lookup;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Age at which a text is read again: somebody may have renamed the object.
const REFRESH: Duration = Duration::from_secs(900);
/// Pause after a request that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(60);
/// Most objects of one request.
const MOST: usize = 500;

/// The texts by the objects' ids.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    texts: HashMap<Arc<str>, Arc<str>>,
    asked: HashMap<Arc<str>, Instant>,
    /// What the last whole answer needed.
    wanted: Option<Lookup>,
    not_before: Option<Instant>,
}

impl Lookups {
    /// The texts that are known.
    pub fn texts(&self) -> &HashMap<Arc<str>, Arc<str>> {
        &self.texts
    }

    /// Takes down what is needed, and forgets what is not, if the answer was a whole one.
    pub fn want(&mut self, lookup: Option<Lookup>, is_whole: bool) {
        if is_whole {
            let ids = lookup.as_ref().map(|lookup| &lookup.ids);
            let is_wanted = |id: &Arc<str>| ids.is_some_and(|ids| ids.contains(id));
            self.texts.retain(|id, _| is_wanted(id));
            self.asked.retain(|id, _| is_wanted(id));
            self.wanted = lookup;
        } else if let Some(more) = lookup {
            match &mut self.wanted {
                Some(wanted) => wanted.ids.extend(more.ids),
                none => *none = Some(more),
            }
        }
    }

    /// What was never asked, unless asking has just failed.
    pub fn unknown(&self, now: Instant) -> Option<Lookup> {
        let may = self.not_before.is_none_or(|at| now >= at);
        may.then(|| self.pick(|asked| asked.is_none())).flatten()
    }

    /// What was asked long ago.
    pub fn old(&self, now: Instant) -> Option<Lookup> {
        let may = self.not_before.is_none_or(|at| now >= at);
        let is_old =
            |asked: Option<Instant>| asked.is_some_and(|at| now.saturating_duration_since(at) >= REFRESH);
        may.then(|| self.pick(is_old)).flatten()
    }

    /// Takes down that a request failed.
    pub fn failed(&mut self, now: Instant) {
        self.not_before = Some(now + AFTER_FAILURE);
    }

    fn pick(&self, is_due: impl Fn(Option<Instant>) -> bool) -> Option<Lookup> {
        let wanted = self.wanted.as_ref()?;
        let due = wanted.ids.iter().filter(|id| is_due(self.asked.get(*id).copied()));
        let ids: BTreeSet<_> = due.take(MOST).cloned().collect();
        (!ids.is_empty()).then_some(Lookup { ids, ..*wanted })
    }

    /// Takes down that an object was asked, and what came of it. What can't be read keeps its old text.
    pub fn answered(&mut self, id: &Arc<str>, text: Option<Arc<str>>, now: Instant) {
        self.asked.insert(Arc::clone(id), now);
        if let Some(text) = text {
            self.texts.insert(Arc::clone(id), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(ids: &[&str]) -> Option<Lookup> {
        let ids = ids.iter().map(|id| Arc::from(*id)).collect();
        Some(Lookup { kind: "Alarm", property: "info.name", ids })
    }

    #[test]
    fn what_is_unknown_is_asked_once_and_again_after_a_while() {
        let (mut lookups, start) = (Lookups::default(), Instant::now());
        assert_eq!(lookups.unknown(start), None);
        lookups.want(lookup(&["alarm-1", "alarm-2"]), true);
        assert_eq!(lookups.unknown(start), lookup(&["alarm-1", "alarm-2"]));
        lookups.answered(&"alarm-1".into(), Some("Host memory".into()), start);
        lookups.answered(&"alarm-2".into(), None, start);
        assert_eq!(lookups.unknown(start), None, "alarm-2 could not be read, and is not asked at each poll");
        lookups.want(lookup(&["alarm-3"]), false);
        assert_eq!(lookups.unknown(start), lookup(&["alarm-3"]));
        lookups.failed(start);
        assert_eq!(lookups.unknown(start), None);
        assert_eq!(lookups.unknown(start + AFTER_FAILURE), lookup(&["alarm-3"]));
        assert_eq!(lookups.old(start), None);
        assert_eq!(lookups.old(start + REFRESH), lookup(&["alarm-1", "alarm-2"]));
        lookups.answered(&"alarm-1".into(), None, start + REFRESH);
        assert_eq!(lookups.texts().get("alarm-1").map(|text| &**text), Some("Host memory"));
        lookups.want(lookup(&["alarm-2"]), true);
        assert!(lookups.texts().is_empty(), "what nobody wants is forgotten");
    }
}
