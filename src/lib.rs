//! OpenTelemetry push agent for VMware ESXi.
//!
//! The modules in the order in which data flows through them:
//!
//! ```text
//! inventory ──► poller ──visit──► collectors ──► readings ──► telemetry ──► OTLP, /metrics
//!                 │ asks via ssh / vim, as whom and whether at all: accounts
//! ```

pub mod config;
pub mod inventory;
pub mod accounts;
pub mod ssh;
pub mod vim;
pub mod collectors;
pub mod poller;
pub mod readings;
pub mod telemetry;
pub mod web;
pub mod agent;
pub mod cli;
pub mod commands;
pub mod simulator;

pub mod file_stamp;
pub mod metric;
pub mod open_files;
pub mod outcome;
pub mod process_setup;
pub mod span;
pub mod stats;
pub mod steps;
pub mod target;
