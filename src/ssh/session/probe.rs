//! How many sessions (channels) a host allows at a time on one connection: `MaxSessions` of its sshd.

use super::{CLOSE_LIMIT, Session};
use crate::outcome::Failure;
use futures::future::join_all;
use tokio::time::timeout;

/// Channels that are opened to find out; more are never needed.
const PROBED: usize = 3;

impl Session {
    /// For whoever wants to know the steps: takes down the fact `sessions_allowed`, `1`, `2` or `>= 3`. Opens
    /// channels and runs nothing on them; they end with the session, which has to be closed now. Takes a second
    /// at most; where it can't be found out there is no fact.
    pub(super) async fn probe_sessions(&self) {
        if self.is_closed() || !self.told.steps.are_wanted() {
            return;
        }
        let probing = async {
            let openings = (0..PROBED).map(|_| self.handle.channel_open_session());
            let opened = timeout(CLOSE_LIMIT, join_all(openings)).await;
            let opened = opened.map_or(0, |openings| openings.iter().flatten().count());
            match opened {
                0 => {}
                PROBED.. => self.told.steps.fact("sessions_allowed", format!(">= {opened}")),
                _ => self.told.steps.fact("sessions_allowed", opened.to_string()),
            }
            Ok::<_, Failure>(())
        };
        let _ = self.told.steps.timed("sessions", probing).await;
    }
}
