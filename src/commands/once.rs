//! `once`: one round over everything, printed.

use super::report::Report;
use super::{VerbError, output};
use crate::agent::Rounds;
use crate::cli::{OnceArgs, OnceFormat};
use crate::config::Config;
use crate::telemetry::catalog;
use crate::telemetry::prometheus::{Format, Page};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// Visits every host and polls every vCenter, prints what was found to standard output, and logs out.
///
/// The exit code is 0 when every visit and poll succeeded (a stopped service is a finding, no failure),
/// else 1.
///
/// # Errors
/// When the inventory can't be read or the output can't be written.
pub async fn once(
    config: Arc<Config>,
    args: &OnceArgs,
    stop: CancellationToken,
) -> Result<ExitCode, VerbError> {
    let rounds = Rounds::build(&config).await?;
    let inventory = rounds.inventory();
    let (total, pace) = (rounds.targets(), rounds.pace());
    if let Some(line) = rounds.shortage_of_files() {
        output::complain(line);
    }
    for round in 1..=args.rounds {
        let message =
            if args.rounds == 1 { "asking".to_owned() } else { format!("round {round}/{}", args.rounds) };
        let progress = super::progress_bar(total, message);
        let (started, cpu) = (Instant::now(), cpu_time());
        let asked = rounds.poller.round(&inventory, &pace, |_| progress.inc(1));
        let ended = tokio::select! {
            () = asked => true,
            () = stop.cancelled() => false,
        };
        progress.finish_and_clear();
        if args.timings {
            let (took, cpu) = (started.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64());
            let each = cpu * 1000.0 / total.max(1) as f64;
            output::complain(format_args!(
                "round {round}: {took:.3} s, {cpu:.3} s of CPU time, {each:.3} ms of CPU time for each of {total} targets"
            ));
        }
        if !ended {
            break;
        }
    }
    rounds.poller.close().await;
    rounds.guard.flush().await;
    let (hosts, vcenters) = rounds.asked();
    let report = Report::of(&rounds.inventory(), &rounds.readings, hosts, vcenters);
    let page = match args.format {
        OnceFormat::Table => report.to_table(),
        OnceFormat::Json => json(&report)?,
        OnceFormat::Prometheus => prometheus(&rounds),
    };
    let _ = output::print(page)?;
    Ok(if report.failed() == 0 && !stop.is_cancelled() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn prometheus(rounds: &Rounds) -> String {
    let page = Page::new(Format::Text, &catalog::all(), &rounds.readings, &rounds.stats);
    page.map(|chunk| String::from_utf8_lossy(&chunk).into_owned()).collect()
}

fn json(report: &Report) -> Result<String, VerbError> {
    let mut text = serde_json::to_string_pretty(report).map_err(|e| VerbError::Output(e.into()))?;
    text.push('\n');
    Ok(text)
}

/// CPU time of this process so far, user and system.
fn cpu_time() -> std::time::Duration {
    let spec = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    std::time::Duration::new(spec.tv_sec.unsigned_abs(), u32::try_from(spec.tv_nsec).unwrap_or(0))
}
