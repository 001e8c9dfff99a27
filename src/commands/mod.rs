//! The verbs, one file each.

pub mod check;
pub mod demo;
pub mod guard;
pub mod host_keys;
pub mod once;
pub mod output;
pub mod report;
pub mod run;
pub mod simulate;

use crate::accounts::guard::JournalError;
use crate::agent::StartError;
use crate::outcome::Failure;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal as _;

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
    /// SIGHUP can't be listened for.
    #[error("listening for signals: {0}")]
    Signals(#[source] std::io::Error),
    /// The beginning of an id fits several.
    #[error("several credentials begin with {0}: give more of the id (`guard list --format json` shows all)")]
    Ambiguous(String),
    /// `--host` names nobody.
    #[error("--host {0}: there is no such host or vCenter in the inventory")]
    NoSuchTarget(String),
    /// A file could not be read or changed.
    #[error("{0}")]
    Failed(#[source] Failure),
    /// The simulated fleet could not be started.
    #[error("starting {0}")]
    Simulator(String),
    /// The simulated estate.
    #[error(transparent)]
    Simulate(#[from] simulate::SimulateError),
}

/// `1 host`, `2 hosts`.
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// On a terminal only: a pipe gets the result alone.
fn progress_bar(total: usize, message: String) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(total as u64), target);
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {elapsed}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(message);
    bar
}
