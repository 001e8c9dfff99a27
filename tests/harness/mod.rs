//! What the stories in `tests/` share: simulated peers, and waiting for conditions. Each story starts its
//! own peers, so that all run at once.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod estate;
pub mod proxy;

use esxi_otel_agent::simulator::host::{FleetHandle, FleetSpec, HostFleet};
use std::fmt::Debug;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// No story waits longer for anything: generous, as machines are slow at times, and never reached when
/// all is well.
pub const LIMIT: Duration = Duration::from_secs(30);
/// Pause between two looks at a condition.
const LOOK: Duration = Duration::from_millis(10);

/// So many healthy simulated hosts.
pub fn hosts(hosts: usize) -> FleetHandle {
    fleet(FleetSpec { hosts, ..FleetSpec::default() })
}

/// Simulated hosts of one's own making.
pub fn fleet(spec: FleetSpec) -> FleetHandle {
    HostFleet::start(spec).expect("simulated hosts")
}

/// Waits until `look` finds something, at most [`LIMIT`]; `what` says in the failure what was awaited.
pub async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "waited {LIMIT:?} in vain for {what}");
        sleep(LOOK).await;
    }
}

/// Waits until `look` gives `wanted`, at most [`LIMIT`].
pub async fn until_equal<T: PartialEq + Debug>(what: &str, wanted: T, mut look: impl FnMut() -> T) {
    let started = Instant::now();
    loop {
        let is = look();
        if is == wanted {
            return;
        }
        assert!(started.elapsed() < LIMIT, "waited {LIMIT:?} for {what} to be {wanted:?}, it is {is:?}");
        sleep(LOOK).await;
    }
}

/// Measures the time that a busy machine does not give to whoever is due.
pub struct Metronome {
    withheld: Arc<Mutex<Duration>>,
    ticking: tokio::task::JoinHandle<()>,
}

impl Metronome {
    /// Ticks until dropped.
    pub fn start() -> Self {
        let withheld = Arc::new(Mutex::new(Duration::ZERO));
        let total = Arc::clone(&withheld);
        let ticking = tokio::spawn(async move {
            loop {
                let due = Instant::now() + LOOK;
                tokio::time::sleep_until(due).await;
                let late = due.elapsed();
                // Less is a timer's own grain.
                if late > LOOK {
                    *total.lock().unwrap() += late;
                }
            }
        });
        Self { withheld, ticking }
    }

    /// In all so far.
    pub fn withheld(&self) -> Duration {
        *self.withheld.lock().unwrap()
    }
}

impl Drop for Metronome {
    fn drop(&mut self) {
        self.ticking.abort();
    }
}

/// The result of `future`, which has to come within [`LIMIT`].
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what} took longer than {LIMIT:?}"))
}
