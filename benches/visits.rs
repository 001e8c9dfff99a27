//! What visits over kept sessions cost the agent, spans and parsing included: `cargo bench --bench visits`,
//! or with other sizes `HOSTS=3000 ROUNDS=10 cargo bench --bench visits`.
//!
//! Method. Simulated hosts and a Collector for the traces run in a process of their own (`esxi-otel-agent
//! simulate`). This process is the agent without metrics: what it counts is the CPU time of all its threads
//! (`CLOCK_PROCESS_CPUTIME_ID`).
//!
//! * **many at once**: rounds over the whole fleet, everybody at the same time. The first one logs in.
//! * **spread**: the agent's timetable at work with an interval of [`INTERVAL`], counted after its first one.
//!
//! Each is done twice, without and with spans, so that the ratio of the two is one of the same run. At the
//! end the memory that is resident, and what of it a session takes.

#[path = "common/lab.rs"]
mod lab;
#[path = "common/measure.rs"]
mod measure;

use esxi_otel_agent::agent::Rounds;
use esxi_otel_agent::config::Config;
use esxi_otel_agent::poller::Now;
use esxi_otel_agent::readings::Readings;
use esxi_otel_agent::span::PastSpans;
use esxi_otel_agent::stats::Stats;
use esxi_otel_agent::telemetry::Telemetry;
use lab::Simulator;
use measure::{cpu_time, memory};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Dispatch;
use tracing::instrument::WithSubscriber;

/// Time between two visits of a host, spread.
const INTERVAL: Duration = Duration::from_secs(6);

/// The agent's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    // Without --bench it is run as a test: small then.
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let number = |name: &str, otherwise: usize| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let hosts = number("HOSTS", if is_bench { 1_000 } else { 5 });
    let rounds = number("ROUNDS", if is_bench { 5 } else { 2 });
    let intervals = number("INTERVALS", if is_bench { 3 } else { 0 });
    esxi_otel_agent::open_files::raise_limit();
    let lab = tempfile::tempdir()?;
    let simulator =
        Simulator::start(lab.path(), &["--vcenters", "0", "--collector", "--hosts", &hosts.to_string()])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let config = Arc::new(config(lab.path(), hosts)?);
    let began = memory("VmRSS:");
    for with_spans in [false, true] {
        println!("{hosts} hosts, {} spans", if with_spans { "with" } else { "without" });
        runtime.block_on(async {
            let stats = Stats::new();
            let stop = CancellationToken::new();
            let telemetry =
                Telemetry::start(&config, Readings::new(), Arc::clone(&stats), None, stop.clone())?;
            let (dispatch, spans) = match with_spans {
                true => (telemetry.dispatch.clone(), telemetry.past_spans()),
                false => (Dispatch::none(), PastSpans::default()),
            };
            let asking = Rounds::build_with(&config, Readings::new(), stats, spans, stop.clone());
            let asking = asking.with_subscriber(dispatch.clone()).await?;
            at_once(&asking, hosts, rounds).with_subscriber(dispatch.clone()).await;
            let now = memory("VmRSS:");
            let each = now.saturating_sub(began) / hosts.max(1) as u64;
            println!("  resident: {} MB, {} KB a session", now / 1_000_000, each / 1_000);
            spread(&asking, hosts, intervals).with_subscriber(dispatch).await;
            asking.poller.close().await;
            stop.cancel();
            telemetry.shutdown(Duration::from_secs(3)).await;
            Ok::<_, Box<dyn Error>>(())
        })?;
    }
    drop(simulator);
    Ok(())
}

async fn at_once(asking: &Rounds, hosts: usize, rounds: usize) {
    for round in 0..=rounds {
        let (started, cpu) = (Instant::now(), cpu_time());
        asking.round(|_| {}).await;
        let name = if round == 0 { "many at once, with login" } else { "many at once, kept sessions" };
        tell(name, started.elapsed(), cpu_time() - cpu, hosts);
    }
}

async fn spread(asking: &Rounds, hosts: usize, intervals: usize) {
    let stop = CancellationToken::new();
    let (_keep, pace) = watch::channel(asking.pace());
    let (_here, inventory) = watch::channel(asking.inventory());
    let (now, stats) = (Now::default(), Arc::clone(&asking.stats));
    let running = asking.poller.run_hosts(inventory, pace, &now, stats, stop.clone());
    let watching = async {
        if intervals > 0 {
            tokio::time::sleep(INTERVAL).await;
        }
        for _ in 0..intervals {
            let cpu = cpu_time();
            tokio::time::sleep(INTERVAL).await;
            tell("spread, kept sessions", INTERVAL, cpu_time() - cpu, hosts);
        }
        stop.cancel();
    };
    tokio::join!(running, watching);
}

fn tell(name: &str, took: Duration, cpu: Duration, visits: usize) {
    println!(
        "  {name:<28} {:>7.3} s  {:>7.3} s of CPU time, {:.3} ms a visit",
        took.as_secs_f64(),
        cpu.as_secs_f64(),
        cpu.as_secs_f64() * 1000.0 / visits.max(1) as f64
    );
}

/// Hosts alone, all of them at a time, traces to the lab's Collector, no metrics.
fn config(lab: &Path, hosts: usize) -> Result<Config, Box<dyn Error>> {
    let mut config = lab::config(lab, &[("OTEL_METRICS_EXPORTER", "none"), ("OTEL_LOGS_EXPORTER", "none")])?;
    config.overall_state = None;
    if let Some(critical) = &mut config.critical_service {
        (critical.interval, critical.max_in_flight) = (INTERVAL, hosts.max(1));
    }
    Ok(config)
}
