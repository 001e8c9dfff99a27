//! Many ESXi hosts in one process, each at an address of its own on the loopback network and all at one
//! port. What a host does is changed at run time through its [`FleetHandle`]:
//!
//! ```no_run
//! # use esxi_otel_agent::simulator::{faults::*, host::*};
//! # async fn story() -> Result<(), FleetError> {
//! let fleet = HostFleet::start(FleetSpec { hosts: 3, ..FleetSpec::default() })?;
//! fleet.set_service(0, "vpxa", ServiceState::Stopped);
//! fleet.set_fault(1, HostFault::HangAtAuth);
//! // … visit fleet.address(0), fleet.address(1) …
//! assert_eq!(fleet.logins(0), 1);
//! fleet.shutdown().await;
//! # Ok(())
//! # }
//! ```

use super::faults::{HostFault, ServiceState};
use super::host_listen;
pub use super::host_listen::Sockets;
pub use super::host_sshd::HostKeys;
use super::host_sshd::RsaKey;
use super::host_state::Host;
use super::scripts::{self, Services};
use super::shell::{Shell, ShellSpec};
use crate::accounts::Secret;
use russh::keys::PublicKey;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Most hosts of a fleet: what the part of 127.0.0.0/8 that is used holds.
pub const MOST_HOSTS: usize = 239 * 256 * 250;

/// What a fleet looks like. The defaults are those of an ESXi 8 host on which all is well.
#[derive(Debug, Clone)]
pub struct FleetSpec {
    /// Number of hosts, at most [`MOST_HOSTS`].
    pub hosts: usize,
    /// Host keys are made from it: the same seed gives the same keys.
    pub seed: u64,
    /// Port of all hosts; 0 = the kernel picks a free one.
    pub port: u16,
    /// The account that may log in.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// Public keys of the account.
    pub authorized_keys: Vec<PublicKey>,
    /// Which services there are, and how they are at first.
    pub services: Services,
    /// Added to the start of each connection, to each answer of the authentication and to each command.
    pub latency: Duration,
    /// Offer the method `password`, which ESXi does not.
    pub password_method: bool,
    /// Follow keyboard-interactive by a request without prompts, as PAM may do.
    pub zero_prompt_round: bool,
    /// `MaxSessions` of sshd: channels of one connection at a time.
    pub max_sessions: usize,
    /// `MaxAuthTries` of sshd: failures of one connection.
    pub max_auth_tries: usize,
    /// When the account is locked.
    pub lockout: Lockout,
    /// Which host keys there are.
    pub host_keys: HostKeys,
    /// How the hosts listen; `None`: one socket each up to 256 hosts, else one for all if the system
    /// allows it.
    pub sockets: Option<Sockets>,
    /// A connection that is silent for so long is closed.
    pub inactivity: Duration,
    /// How commands are run.
    pub shell: ShellSpec,
}

impl Default for FleetSpec {
    fn default() -> Self {
        Self {
            hosts: 1,
            seed: 1,
            port: 0,
            user: "root".to_owned(),
            password: Secret::new("simulated"),
            authorized_keys: Vec::new(),
            services: scripts::healthy(),
            latency: Duration::ZERO,
            password_method: false,
            zero_prompt_round: true,
            max_sessions: 10,
            max_auth_tries: 6,
            lockout: Lockout::default(),
            host_keys: HostKeys::Ecdsa,
            sockets: None,
            inactivity: Duration::from_secs(1_800),
            shell: ShellSpec::default(),
        }
    }
}

/// After so many failures of password logins an account is locked, for so long after the last one; each
/// try in the meantime counts, even one with the right password. `Security.AccountLockFailures` and
/// `Security.AccountUnlockTime` of ESXi, with its defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lockout {
    /// Failures that lock; 0 = never.
    pub failures: u32,
    /// How long it stays locked.
    pub unlock_after: Duration,
}

impl Default for Lockout {
    fn default() -> Self {
        Self { failures: 5, unlock_after: Duration::from_secs(900) }
    }
}

/// A fleet that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// More hosts than addresses.
    #[error("at most {MOST_HOSTS} hosts can be simulated, not {0}")]
    TooMany(usize),
    /// No socket, no port or no descriptor left.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// No scratch folder for the stand-in scripts.
    #[error("make a scratch folder for init scripts: {0}")]
    Scratch(io::Error),
    /// No host key.
    #[error("make a host key: {0}")]
    HostKey(#[from] russh::keys::ssh_key::Error),
}

/// Starts fleets.
#[derive(Debug)]
pub struct HostFleet;

impl HostFleet {
    /// Starts a fleet; all its hosts are reachable on return. Has to be called within a Tokio runtime.
    pub fn start(spec: FleetSpec) -> Result<FleetHandle, FleetError> {
        if spec.hosts > MOST_HOSTS {
            return Err(FleetError::TooMany(spec.hosts));
        }
        let shell = Shell::new(spec.shell.clone()).map_err(FleetError::Scratch)?;
        let rsa = RsaKey::for_fleet(spec.host_keys, spec.seed)?;
        let services = Arc::new(spec.services.clone());
        let hosts = (0..spec.hosts).map(|index| Arc::new(Host::new(index, services.clone()))).collect();
        let stop = CancellationToken::new();
        let (sockets, port) = host_listen::bind(&spec)?;
        let fleet = Arc::new(Fleet {
            hosts,
            port,
            shared: sockets.shared(),
            shell,
            rsa,
            tasks: TaskTracker::new(),
            stop: stop.clone(),
            spec,
        });
        host_listen::accept(&fleet, sockets);
        Ok(FleetHandle(Arc::new(Owner { fleet, _stop: stop.drop_guard() })))
    }
}

/// What all hosts share.
#[derive(Debug)]
pub(super) struct Fleet {
    pub spec: FleetSpec,
    pub hosts: Vec<Arc<Host>>,
    pub port: u16,
    pub shared: bool,
    pub shell: Shell,
    pub rsa: Option<RsaKey>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

#[derive(Debug)]
struct Owner {
    fleet: Arc<Fleet>,
    _stop: DropGuard,
}

/// A running fleet. When the last clone is dropped the fleet ends. Hosts are named by their index; all
/// methods panic on one that does not exist, as a slice would.
#[derive(Debug, Clone)]
pub struct FleetHandle(Arc<Owner>);

impl FleetHandle {
    #[expect(clippy::indexing_slicing, reason = "documented: a test that names no host has to fail")]
    fn host(&self, index: usize) -> &Arc<Host> {
        &self.0.fleet.hosts[index]
    }

    /// Number of hosts.
    pub fn len(&self) -> usize {
        self.0.fleet.hosts.len()
    }

    /// Whether it is a fleet without hosts.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The port of all hosts.
    pub fn port(&self) -> u16 {
        self.0.fleet.port
    }

    /// The IP address of a host, of its own in 127.0.0.0/8.
    pub fn ip(&self, index: usize) -> Ipv4Addr {
        self.host(index).address
    }

    /// Where a host listens.
    pub fn address(&self, index: usize) -> SocketAddr {
        SocketAddr::from((self.ip(index), self.port()))
    }

    /// How the hosts listen.
    pub fn sockets(&self) -> Sockets {
        if self.0.fleet.shared { Sockets::Shared } else { Sockets::PerHost }
    }

    /// Changes the state of a service, from the next command on.
    pub fn set_service(&self, index: usize, service: &str, state: ServiceState) {
        self.host(index).lock().set_service(service, state);
    }

    /// The state of a service; one that is unknown is missing.
    pub fn service(&self, index: usize, service: &str) -> ServiceState {
        self.host(index).lock().services.get(service).copied().unwrap_or(ServiceState::Missing)
    }

    /// From now on the host has this fault, and no other. It holds for new connections, authentications,
    /// channels and commands; connections that stand are not cut (see [`Self::kill_sessions`]).
    pub fn set_fault(&self, index: usize, fault: HostFault) {
        host_listen::set_fault(&self.0.fleet, self.host(index), Some(fault));
    }

    /// From now on nothing is wrong with the host as a whole.
    pub fn clear_fault(&self, index: usize) {
        host_listen::set_fault(&self.0.fleet, self.host(index), None);
    }

    /// What is wrong with the host as a whole.
    pub fn fault(&self, index: usize) -> Option<HostFault> {
        self.host(index).lock().fault
    }

    /// Logins that succeeded.
    pub fn logins(&self, index: usize) -> u64 {
        self.host(index).counts().logins
    }

    /// Password logins that failed, for whatever reason. An attempt without any secret is none.
    pub fn failed_logins(&self, index: usize) -> u64 {
        self.host(index).counts().failed_logins
    }

    /// Whether the account is locked on this host.
    pub fn locked(&self, index: usize) -> bool {
        self.host(index).lock().locked(self.0.fleet.spec.lockout)
    }

    /// Connections that were accepted, whatever became of them.
    pub fn connections(&self, index: usize) -> u64 {
        self.host(index).counts().connections
    }

    /// Sessions that are logged in at this moment.
    pub fn sessions(&self, index: usize) -> u64 {
        self.host(index).counts().sessions
    }

    /// Commands that were received.
    pub fn commands(&self, index: usize) -> u64 {
        self.host(index).counts().commands
    }

    /// The last command that was received, byte for byte but for invalid UTF-8.
    pub fn last_command(&self, index: usize) -> Option<Arc<str>> {
        self.host(index).lock().last_command.clone()
    }

    /// Cuts every connection to the host.
    pub fn kill_sessions(&self, index: usize) {
        self.host(index).lock().kill();
    }

    /// Different commands and states that were really run (see [`super::shell`]).
    pub fn recordings(&self) -> usize {
        self.0.fleet.shell.recordings()
    }

    /// Ends the fleet: closes its sockets, cuts its connections, kills its processes and waits for all of
    /// that, at most five seconds.
    pub async fn shutdown(&self) {
        let fleet = &self.0.fleet;
        fleet.stop.cancel();
        fleet.tasks.close();
        let all = async { tokio::join!(fleet.tasks.wait(), fleet.shell.close()) };
        let _ = tokio::time::timeout(Duration::from_secs(5), all).await;
    }
}
