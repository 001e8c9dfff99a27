//! `run`: the agent.

use super::VerbError;
use crate::agent::Agent;
use crate::config::Config;
use crate::telemetry::{Console, Verbosity};
use std::process::ExitCode;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Runs the agent until `stop`; then stops visiting, logs out, sends the last points, within 10 s.
///
/// # Errors
/// When a part can't be built: the inventory is unreadable, the port is in use.
pub async fn run(
    config: Arc<Config>,
    notes: Vec<String>,
    verbosity: Verbosity,
    stop: CancellationToken,
) -> Result<ExitCode, VerbError> {
    let agent = Agent::build(config, notes, Some(Console::stderr(verbosity))).await?;
    agent.run(stop).await;
    Ok(ExitCode::SUCCESS)
}
