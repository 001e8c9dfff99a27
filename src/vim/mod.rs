//! SOAP to vCenters (vim25).
//!
//! [`xml`] reads, [`soap`] and [`property`] know the messages, `page` reads long ones while they come, none of them does I/O; [`tls`] says which
//! certificates are believed; [`transport`] is one HTTP exchange with its limits; [`client`] is the session, [`listener`] waits in
//! it for what the vCenter tells of its own accord ([`updates`]).

mod call;
pub mod client;
pub mod listener;
pub mod management;
pub mod model;
mod page;
pub mod property;
mod resolver;
pub mod soap;
pub mod tls;
pub mod transport;
pub mod updates;
pub mod xml;

pub use client::VimClient;

/// What the agent counts about its SOAP calls, for the catalogue.
pub static METRICS: &[&crate::metric::MetricDef] = transport::METRICS;
