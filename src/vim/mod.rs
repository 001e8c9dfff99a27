//! SOAP to vCenters (vim25).
//!
//! [`xml`] reads, [`soap`] and [`property`] know the messages, none of them does I/O; [`tls`] says which
//! certificates are believed; [`transport`] is one HTTP exchange with its limits; [`client`] is the session.

pub mod client;
pub mod model;
pub mod property;
mod resolver;
pub mod soap;
pub mod tls;
pub mod transport;
pub mod xml;

pub use client::VimClient;

/// What the agent counts about its SOAP calls, for the catalogue.
pub static METRICS: &[&crate::metric::MetricDef] = transport::METRICS;
