//! The state of one simulated host, shared by its connections and its handle.

use super::faults::{HostFault, ServiceState};
use super::host::Lockout;
use super::host_listen;
use super::host_plug::Plug;
use super::scripts::Services;
use russh::server::Config;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub(super) struct Host {
    pub index: usize,
    pub address: Ipv4Addr,
    state: Mutex<State>,
    /// Where it listens if it has a socket of its own.
    pub listener: host_listen::Slot,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub connections: u64,
    pub logins: u64,
    pub failed_logins: u64,
    pub sessions: u64,
    pub commands: u64,
}

#[derive(Debug)]
pub(super) struct State {
    pub fault: Option<HostFault>,
    pub services: Arc<Services>,
    pub last_command: Option<Arc<str>>,
    pub counts: Counts,
    pub plug: Option<Plug>,
    /// Made at the first connection, as its key takes time.
    pub config: Option<Arc<Config>>,
    failures: u32,
    last_failure: Option<Instant>,
    connections: CancellationToken,
}

impl Host {
    pub fn new(index: usize, services: Arc<Services>) -> Self {
        let state = State {
            fault: None,
            services,
            last_command: None,
            counts: Counts::default(),
            plug: None,
            config: None,
            failures: 0,
            last_failure: None,
            connections: CancellationToken::new(),
        };
        let listener = host_listen::Slot::default();
        Self { index, address: host_listen::address(index), state: Mutex::new(state), listener }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    pub fn fault(&self) -> Option<HostFault> {
        self.lock().fault
    }
}

impl State {
    pub fn set_service(&mut self, service: &str, state: ServiceState) {
        Arc::make_mut(&mut self.services).insert(service.into(), state);
    }

    /// A token that ends with all connections of the host.
    pub fn connection(&mut self) -> CancellationToken {
        self.counts.connections += 1;
        self.connections.child_token()
    }

    pub fn kill(&mut self) {
        std::mem::take(&mut self.connections).cancel();
    }

    /// Whether the account is locked; forgets failures that are old enough.
    pub fn locked(&mut self, lockout: Lockout) -> bool {
        if self.last_failure.is_some_and(|last| last.elapsed() >= lockout.unlock_after) {
            self.failures = 0;
        }
        lockout.failures > 0 && self.failures >= lockout.failures
    }

    /// Notes the verdict on a password, which is not the password's alone: while the account is locked
    /// every try is a failure.
    pub fn judge(&mut self, right: bool, lockout: Lockout) -> bool {
        let accepted = right && !self.locked(lockout) && self.fault != Some(HostFault::WrongPassword);
        if accepted {
            self.failures = 0;
        } else {
            self.failures = self.failures.saturating_add(1);
            self.last_failure = Some(Instant::now());
            self.counts.failed_logins += 1;
        }
        accepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const LOCKOUT: Lockout = Lockout { failures: 3, unlock_after: Duration::from_secs(900) };

    #[tokio::test(start_paused = true)]
    async fn failures_lock_the_account_and_tries_while_locked_count() {
        let host = Host::new(0, Arc::default());
        for _ in 0..3 {
            assert!(!host.lock().locked(LOCKOUT));
            assert!(!host.lock().judge(false, LOCKOUT));
        }
        assert!(host.lock().locked(LOCKOUT));
        tokio::time::advance(Duration::from_secs(800)).await;
        assert!(!host.lock().judge(true, LOCKOUT), "locked: even the right password fails");
        tokio::time::advance(Duration::from_secs(800)).await;
        assert!(host.lock().locked(LOCKOUT), "the try while locked has made it longer");
        tokio::time::advance(Duration::from_secs(100)).await;
        assert!(!host.lock().locked(LOCKOUT));
        assert!(host.lock().judge(true, LOCKOUT));
        assert_eq!(host.counts().failed_logins, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_forgets_the_failures_before_it() {
        let host = Host::new(0, Arc::default());
        for right in [false, false, true, false, false] {
            host.lock().judge(right, LOCKOUT);
        }
        assert!(!host.lock().locked(LOCKOUT));
    }
}
