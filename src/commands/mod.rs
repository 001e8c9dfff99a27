//! The verbs, one file each.

pub mod check;
pub mod demo;
pub mod guard;
pub mod once;
pub mod output;
pub mod report;
pub mod run;
pub mod simulate;

use crate::accounts::guard::JournalError;
use crate::agent::StartError;

/// Why a verb could not do its work. One line; the exit code is 2.
#[derive(Debug, thiserror::Error)]
pub enum VerbError {
    /// A part could not be built.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The result could not be written.
    #[error("writing the result: {0}")]
    Output(#[source] std::io::Error),
    /// The guard's memory.
    #[error(transparent)]
    Guard(#[from] JournalError),
    /// The beginning of an id fits several.
    #[error("several credentials begin with {0}: give more of the id (`guard list --format json` shows all)")]
    Ambiguous(String),
    /// The simulated fleet could not be started.
    #[error("starting {0}")]
    Simulator(String),
    /// The simulated estate.
    #[error(transparent)]
    Simulate(#[from] simulate::SimulateError),
}
