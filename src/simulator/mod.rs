//! Simulated peers: ESXi hosts behind SSH, and the estate that they form together with vCenters and an
//! OTLP sink. For the verbs `demo` and `simulate`, for tests and for benchmarks. The agent's own modules
//! never import this one.
//!
//! What is real here and what is not:
//!
//! * The wire is real: [russh]'s server, ESXi's algorithm lists, its authentication methods.
//! * The command is real: whatever a client sends is run by a POSIX shell against stand-in init scripts
//!   ([`shell`]); nothing looks at what the command means.
//! * The state of a host (services, faults, lockout) is ours, and set through [`host::FleetHandle`].
//! * All hosts share one process, one port, and the addresses of the loopback network.

pub mod faults;
pub mod host;
mod host_listen;
mod host_plug;
mod host_session;
mod host_sshd;
mod host_state;
pub mod lab;
pub mod scenario;
pub mod scenario_vcenters;
pub mod scripts;
pub mod shell;
pub mod sink;
pub mod timeline;
pub mod vcenter;
mod vcenter_calls;
mod vcenter_condition;
mod vcenter_outage;
mod vcenter_request;
mod vcenter_server;
mod vcenter_spec;
mod vcenter_state;
mod vcenter_tree;
mod vcenter_updates;
