//! How many sessions (channels) a host allows at a time on one connection: `MaxSessions` of its sshd.

use super::{CLOSE_LIMIT, Session};
use crate::outcome::Failure;
use futures::future::join_all;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Channels that are opened to find out; more are never needed.
const PROBED: usize = 3;
/// Pause before the next try where none could be opened.
const AGAIN: Duration = Duration::from_millis(50);

impl Session {
    /// For whoever wants to know the steps: takes down the fact `sessions_allowed`, `1`, `2` or `>= 3`. Opens
    /// channels and runs nothing on them; they end with the session, which has to be closed now. Takes a second
    /// at most; where it can't be found out there is no fact.
    pub(super) async fn probe_sessions(&self) {
        if self.is_closed() || !self.told.steps.are_wanted() {
            return;
        }
        let probing = async {
            let opened = timeout(CLOSE_LIMIT, async {
                loop {
                    match self.open_some().await {
                        // The host frees the command's session only when its process has ended.
                        0 => sleep(AGAIN).await,
                        opened => break opened,
                    }
                }
            });
            match opened.await {
                Ok(opened @ PROBED..) => self.told.steps.fact("sessions_allowed", format!(">= {opened}")),
                Ok(opened) => self.told.steps.fact("sessions_allowed", opened.to_string()),
                Err(_) => {}
            }
            Ok::<_, Failure>(())
        };
        let _ = self.told.steps.timed("sessions", probing).await;
    }

    /// Opens channels for as long as there are any; returns how many.
    async fn open_some(&self) -> usize {
        let openings = (0..PROBED).map(|_| self.handle.channel_open_session());
        join_all(openings).await.iter().flatten().count()
    }
}
