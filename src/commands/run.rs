//! `run`: the agent.

use super::VerbError;
use crate::agent::{Agent, Reload};
use crate::config::{Loaded, Sources};
use crate::telemetry::{Console, Verbosity};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Runs the agent until `stop`; then stops visiting, logs out, sends the last points, within 10 s. Follows the
/// files that `loaded` came from; SIGHUP makes it look at them at once.
///
/// # Errors
/// When a part can't be built: the inventory is unreadable, the port is in use.
pub async fn run(
    loaded: Loaded,
    sources: Sources,
    verbosity: Verbosity,
    stop: CancellationToken,
) -> Result<ExitCode, VerbError> {
    let hangups = signal(SignalKind::hangup()).map_err(VerbError::Signals)?;
    let Loaded { config, notes, file, .. } = loaded;
    let agent = Agent::build(Arc::new(config), notes, Some(Console::stderr(verbosity))).await?;
    let agent = agent.following(sources, file.as_deref());
    let reload = agent.handle().reload;
    tokio::select! {
        () = agent.run(stop) => {}
        () = reload_at(hangups, reload) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Never ends. What is wrong with the new version stands in the agent's log.
async fn reload_at(mut hangups: Signal, reload: Reload) {
    while hangups.recv().await.is_some() {
        let _ = reload.now().await;
    }
    std::future::pending().await
}
