//! Kept sessions: one a host, between its visits.
//!
//! Ten thousand hosts that are logged in to every minute would write twenty thousand audit events a
//! minute; a kept session writes none.

use crate::ssh::Session;
use crate::target::TargetId;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// How long the end of all sessions together may take.
const CLOSE_ALL_LIMIT: Duration = Duration::from_secs(3);

/// The kept sessions. Whoever takes one owns it, so a session never has two users.
#[derive(Default)]
pub struct Pool(Mutex<Sessions>);

#[derive(Default)]
struct Sessions {
    kept: HashMap<TargetId, Session>,
    /// Nothing is kept any more.
    closed: bool,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session of a host, if there is one that is not known to have ended.
    pub fn take(&self, host: &TargetId) -> Option<Session> {
        self.lock().kept.remove(host).filter(|session| !session.is_closed())
    }

    /// Keeps a session until the next visit. Gives it back if the pool is closed; drops one that has ended.
    #[must_use = "a session that is given back has to be closed"]
    pub fn keep(&self, host: TargetId, session: Session) -> Option<Session> {
        if session.is_closed() {
            return None;
        }
        let mut sessions = self.lock();
        if sessions.closed {
            return Some(session);
        }
        sessions.kept.insert(host, session);
        None
    }

    /// Ends the session of a host that has left the inventory.
    pub fn forget(&self, host: &TargetId) {
        let session = self.lock().kept.remove(host);
        drop(session);
    }

    /// Number of kept sessions.
    pub fn len(&self) -> usize {
        self.lock().kept.len()
    }

    /// Whether no session is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends all sessions, politely as far as 3 s go. None is kept from then on.
    pub async fn close_all(&self) {
        let sessions = {
            let mut sessions = self.lock();
            sessions.closed = true;
            std::mem::take(&mut sessions.kept)
        };
        let mut closing: FuturesUnordered<_> = sessions.into_values().map(Session::close).collect();
        let _ = timeout(CLOSE_ALL_LIMIT, async { while closing.next().await.is_some() {} }).await;
    }
}
