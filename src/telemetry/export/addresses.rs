//! Whether the Collector's name has come to mean other addresses. A connection that still works would
//! otherwise stay where it is for ever, at a machine that is to be emptied, say.

use super::peer::Peer;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(60);
/// Longest time for one.
const LIMIT: Duration = Duration::from_secs(10);

type Found = Option<BTreeSet<SocketAddr>>;

/// Looks beside the calls, never before them.
#[derive(Debug)]
pub(in crate::telemetry) struct Addresses {
    /// `None`: the peer has no name.
    name: Option<(String, u16)>,
    known: BTreeSet<SocketAddr>,
    looking: Option<JoinHandle<Found>>,
    next: Instant,
}

impl Addresses {
    pub(in crate::telemetry) fn of(peer: &Peer) -> Self {
        Self { name: peer.looked_up(), known: BTreeSet::new(), looking: None, next: Instant::now() }
    }

    /// Whether one that the name meant is gone since the last time that this said so.
    pub(in crate::telemetry) fn have_changed(&mut self) -> bool {
        use futures::FutureExt as _;
        let Some(name) = &self.name else { return false };
        if self.looking.is_none() && Instant::now() >= self.next {
            self.next = Instant::now() + LOOK;
            self.looking = Some(tokio::spawn(look_up(name.clone())));
        }
        let Some(found) = self.looking.as_mut().and_then(|looking| looking.now_or_never()) else {
            return false;
        };
        self.looking = None;
        // A failed look-up proves nothing.
        let Ok(Some(found)) = found else { return false };
        self.learn(found)
    }

    fn learn(&mut self, found: BTreeSet<SocketAddr>) -> bool {
        let is_gone = !self.known.is_subset(&found);
        if is_gone {
            self.known = found;
        } else {
            // The connection may be to any of these.
            self.known.extend(found);
        }
        is_gone
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        if let Some(looking) = &self.looking {
            looking.abort();
        }
    }
}

async fn look_up(name: (String, u16)) -> Found {
    let found = tokio::time::timeout(LIMIT, tokio::net::lookup_host(name)).await.ok()?.ok()?;
    Some(found.collect()).filter(|found: &BTreeSet<_>| !found.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(last: &[u8]) -> BTreeSet<SocketAddr> {
        last.iter().map(|last| SocketAddr::from(([192, 0, 2, *last], 4317))).collect()
    }

    #[test]
    fn a_new_address_changes_nothing_one_that_is_gone_does() {
        let next = Instant::now();
        let mut known = Addresses { name: None, known: BTreeSet::new(), looking: None, next };
        assert!(!known.learn(addresses(&[1, 2])), "the first look");
        assert!(!known.learn(addresses(&[1, 2, 3])), "one more");
        assert!(known.learn(addresses(&[2, 3])), "1 is gone");
        assert!(!known.learn(addresses(&[2, 3])), "said once");
    }
}
