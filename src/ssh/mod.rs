//! SSH: how hosts are asked. Knows neither collectors nor readings.

mod algorithms;
mod authenticate;
mod client;
mod dial;
mod host_keys;
mod session;
mod stream;

pub use host_keys::HostKeys;
pub use session::{Connector, End, Limits, METRICS, Session, Transcript};
