//! SSH: how hosts are asked. Knows neither collectors nor readings.

mod algorithms;
mod authenticate;
mod client;
mod dial;
mod host_keys;
mod resolve;
mod session;
mod stream;
mod transcript;

pub use host_keys::HostKeys;
pub use session::{Connector, Limits, METRICS, Session};
pub use transcript::{End, Transcript};
