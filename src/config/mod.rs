//! Configuration: file + environment + flags become one [`Config`], resolved and valid.
//!
//! `file` reads the YAML into a tree; `section` puts what the environment and the flags say above it, and
//! knows which keys were asked for; the files named after sections apply the defaults and check the
//! ranges. All problems are reported at once, each with its place (`report`). Nobody else reads the
//! environment or knows a default.

mod accounts;
mod collectors;
mod credentials;
mod file;
mod inventory;
mod load;
mod otlp;
mod proxy;
mod report;
mod section;
mod values;
mod vcenter;
pub mod watch;

pub use load::{Loaded, Overrides, Sources};
pub use proxy::{ProxyAuth, ProxyConfig, ProxyUrl};
pub use report::{ConfigError, Origin, Problem, SettingOrigin};
pub use vcenter::{Thumbprint, VcenterConfig, read_roots};
// Those rooms are configured by types of their own, since this one knows them already.
pub use crate::accounts::{AccountsConfig, LockoutConfig};
pub use crate::inventory::{InventoryConfig, StaticTarget};

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The whole configuration, resolved and valid. What may change at run time is handed to its room as a
/// `watch::Receiver<Arc<Config>>`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where the targets come from.
    pub inventory: InventoryConfig,
    /// As whom to log in.
    pub accounts: AccountsConfig,
    /// `None`: the collector is switched off.
    pub overall_state: Option<OverallStateConfig>,
    /// `None`: the collector is switched off.
    pub critical_service: Option<CriticalServiceConfig>,
    /// Folder for known_hosts and what else has to survive a restart.
    pub state_dir: PathBuf,
    /// How hosts are visited.
    pub ssh: SshConfig,
    /// When a login may be tried.
    pub lockout: LockoutConfig,
    /// How vCenters are polled.
    pub vcenter: VcenterConfig,
    /// `None`: nothing is pushed.
    pub otlp: Option<OtlpConfig>,
    /// `None`: no listener.
    pub prometheus: Option<PrometheusConfig>,
}

/// The overall state collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverallStateConfig {
    /// Pause between two polls of a vCenter.
    pub interval: Duration,
    /// Age at which a reading is no longer reported.
    pub stale_after: Duration,
    /// What is reported of a host beyond its state.
    pub report: HostReport,
}

/// What is read from vCenters of their hosts, at a slow pace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostReport {
    /// The host's own services, 12 series a host.
    pub services: bool,
    /// Components of the hardware that are not well.
    pub hardware: bool,
    /// Sensors that are not well, of hosts that are not green.
    pub sensors: bool,
}

impl Default for HostReport {
    fn default() -> Self {
        Self { services: false, hardware: true, sensors: true }
    }
}

/// The critical service collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CriticalServiceConfig {
    /// Pause between two visits of a host.
    pub interval: Duration,
    /// Age at which a reading is no longer reported.
    pub stale_after: Duration,
    /// At most this many hosts are visited at a time (`max_threads` of the Python exporter sets it, too).
    pub max_in_flight: usize,
    /// The services, in the order of the file.
    pub services: Vec<Service>,
    /// What is reported for a service whose script is not on the host.
    pub not_installed: NotInstalled,
}

/// A service: its init script's name on the host, and the name it is reported as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Name of `/etc/init.d/<name>`; `[A-Za-z0-9._-]+`, not starting with `.` or `-`.
    pub name: Arc<str>,
    /// Value of the attribute `service`.
    pub reported_as: Arc<str>,
}

/// What is reported for a service that is not installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotInstalled {
    /// 0, as the Python exporter did.
    Stopped,
    /// No point.
    Absent,
}

/// How hosts are visited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshConfig {
    /// Port of addresses that name none.
    pub port: u16,
    /// OpenSSH known_hosts file.
    pub known_hosts: PathBuf,
    /// What happens with a key that is not known.
    pub host_key_policy: HostKeyPolicy,
    /// Keep sessions between visits.
    pub reuse_sessions: bool,
    /// How often a kept session is replaced by a new login; `None`: never.
    pub refresh_sessions: Option<Duration>,
    /// Limit of name look-up and TCP connect.
    pub connect_timeout: Duration,
    /// Limit of key exchange and authentication.
    pub login_timeout: Duration,
    /// Limit of the command.
    pub command_timeout: Duration,
}

/// What happens with a host key that is not known. A changed key is refused by the first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKeyPolicy {
    /// Trust on first use, and remember.
    AcceptNew,
    /// Refuse.
    Strict,
    /// Trust anything: for laboratories only.
    Insecure,
}

/// Where and how to push.
#[derive(Debug, Clone, PartialEq)]
pub struct OtlpConfig {
    /// `http://host:port` or `https://host:port`.
    pub endpoint: String,
    /// Of the same form: where everything goes while `endpoint` takes nothing, in the order of preference.
    pub failover: Vec<String>,
    /// Compression of the messages.
    pub compression: Compression,
    /// gRPC metadata; the values are secrets.
    pub headers: Vec<(String, crate::accounts::Secret)>,
    /// PEM file with the roots to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate, for mTLS.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client key, for mTLS.
    pub key_file: Option<PathBuf>,
    /// Pause between two exports of everything.
    pub interval: Duration,
    /// Limit of one export call, everything included.
    pub timeout: Duration,
    /// Most points in one message.
    pub max_points: usize,
    /// Cap of the queue in memory, encoded bytes.
    pub queue_max_bytes: usize,
    /// Cap of the age of what is queued while there is no spool.
    pub queue_max_age: Duration,
    /// `None`: what waits is in memory alone.
    pub spool: Option<SpoolConfig>,
    /// `service.name`, `service.instance.id` and the attributes of `OTEL_RESOURCE_ATTRIBUTES`, ready.
    pub resource: Vec<(String, String)>,
    /// `None`: no traces.
    pub traces: Option<TracesConfig>,
    /// Export metrics.
    pub metrics: bool,
    /// Export the agent's own log, at info and above.
    pub logs: bool,
    /// Export events.
    pub events: bool,
}

/// Where and how much of what waits for the Collector is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolConfig {
    /// A folder of its own.
    pub path: PathBuf,
    /// Cap of its size.
    pub max_bytes: u64,
    /// Cap of the age of what is in there.
    pub max_age: Duration,
}

/// Compression of OTLP messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// zstd.
    Zstd,
    /// gzip.
    Gzip,
    /// None.
    None,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::Zstd => "zstd",
            Compression::Gzip => "gzip",
            Compression::None => "none",
        })
    }
}

/// Which traces are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct TracesConfig {
    /// Keep a trace whose root took longer.
    pub slower_than: Duration,
    /// Keep a trace that holds an error.
    pub errors: bool,
    /// Keep this share (0–1) of the rest.
    pub ratio: f64,
}

impl TracesConfig {
    /// No trace is kept.
    pub const NOTHING: Self = Self { slower_than: Duration::MAX, errors: false, ratio: 0.0 };
}

/// The listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrometheusConfig {
    /// Address to listen on; port 0 picks a free one.
    pub listen: SocketAddr,
}
