//! SSH: how hosts are asked. Knows neither collectors nor readings.

mod algorithms;
mod authenticate;
mod client;
mod dial;
pub mod host_keys;
mod resolve;
mod session;
mod stream;
mod transcript;

pub use host_keys::HostKeys;
pub use session::{Connector, Limits, Session};
pub use transcript::{End, Transcript};

/// This room's metrics.
pub static METRICS: &[&crate::metric::MetricDef] = &[&session::SESSIONS, &host_keys::HOST_KEYS];
