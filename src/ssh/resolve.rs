//! From a name to its addresses.
//!
//! The system's resolver blocks a thread, can't be cancelled, and may take half a minute when its servers
//! are away. Without a limit of its own it would take all of the runtime's blocking threads, which read
//! files as well.

use crate::outcome::{Failure, FailureReason};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// Look-ups at a time. At 20 ms each that is 1,600 new sessions a second.
const LOOK_UPS: usize = 32;

type LookUp = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Looks names up, a few at a time.
pub(super) struct Resolver {
    places: Arc<Semaphore>,
    look_up: Arc<LookUp>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new(LOOK_UPS, |host, port| Ok((host, port).to_socket_addrs()?.collect()))
    }
}

impl Resolver {
    fn new(
        places: usize,
        look_up: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), look_up: Arc::new(look_up) }
    }

    /// The addresses of `host`, at least one. An address needs no look-up.
    ///
    /// # Errors
    /// `dns`: there is none, or it was not known by `deadline`; the message tells whether the name servers
    /// were silent or earlier look-ups still hang.
    pub(super) async fn resolve(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, Failure> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let started = Instant::now();
        let failed =
            |why: &dyn std::fmt::Display| Failure::new(FailureReason::Dns, format!("look up {host}: {why}"));
        let Ok(place) = timeout_at(deadline, Arc::clone(&self.places).acquire_owned()).await else {
            let waited = started.elapsed();
            return Err(failed(&format_args!("not begun within {waited:.1?}: all earlier look-ups hang")));
        };
        match timeout_at(deadline, self.ask(host, port, place.ok())).await {
            Ok(Ok(addresses)) if addresses.is_empty() => Err(failed(&"it has no address")),
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => {
                let waited = started.elapsed();
                Err(failed(&format_args!("timed out: no answer of the name servers within {waited:.1?}")))
            }
        }
    }

    /// The place is free again when the look-up has ended, be it that nobody waits for it any more.
    async fn ask(
        &self,
        host: &str,
        port: u16,
        place: Option<OwnedSemaphorePermit>,
    ) -> io::Result<Vec<SocketAddr>> {
        let (look_up, host) = (Arc::clone(&self.look_up), host.to_owned());
        let task = tokio::task::spawn_blocking(move || {
            let addresses = look_up(&host, port);
            drop(place);
            addresses
        });
        task.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(50);

    /// With one place, and name servers that answer `slow` when they are told to, and the rest at once.
    fn resolver() -> (Resolver, Sender<()>) {
        let (answer, wait) = channel();
        let wait = Mutex::new(wait);
        let look_up = move |host: &str, port| {
            if host == "slow" {
                wait.lock().unwrap().recv().unwrap();
            }
            Ok(vec![SocketAddr::from(([10, 0, 0, 1], port))])
        };
        (Resolver::new(1, look_up), answer)
    }

    #[tokio::test]
    async fn a_look_up_that_hangs_keeps_its_place_until_it_ends_and_addresses_need_none() {
        let (resolver, answer) = resolver();
        let in_time = |limit| Instant::now() + limit;
        let silent = resolver.resolve("slow", 22, in_time(SHORT)).await.unwrap_err();
        assert_eq!(silent.reason, FailureReason::Dns);
        assert!(silent.message.contains("no answer of the name servers"), "{silent}");

        let crowded = resolver.resolve("esx1", 22, in_time(SHORT)).await.unwrap_err();
        assert_eq!(crowded.reason, FailureReason::Dns);
        assert!(crowded.message.contains("all earlier look-ups hang"), "{crowded}");
        for address in ["192.0.2.1", "2001:db8::1"] {
            let found = resolver.resolve(address, 22, in_time(SHORT)).await.unwrap();
            assert_eq!(found[0].ip().to_string(), address);
        }

        answer.send(()).unwrap();
        let found = resolver.resolve("esx1", 22, in_time(LONG)).await.unwrap();
        assert_eq!(found, [SocketAddr::from(([10, 0, 0, 1], 22))]);
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_said_to_have_none() {
        let resolver = Resolver::new(1, |_, _| Ok(Vec::new()));
        let failure = resolver.resolve("esx1", 22, Instant::now() + LONG).await.unwrap_err();
        assert_eq!(failure.to_string(), "look up esx1: it has no address");
    }
}
