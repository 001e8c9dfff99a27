//! `demo`: everything simulated in one process: vCenters and hosts with faults that come and go, the agent
//! itself, and a Collector that prints what arrives.

mod story;

use super::VerbError;
use super::output::{self, Reader};
use crate::accounts::Secret;
use crate::agent::Agent;
use crate::cli::DemoArgs;
use crate::config::{Config, ConfigError, Loaded, Overrides, Sources};
use crate::simulator::faults::FaultShare;
use crate::simulator::host::FleetSpec;
use crate::simulator::lab::{self, HostSource, LabFile};
use crate::simulator::scenario::{Scenario, ScenarioSpec};
use crate::simulator::scenario_vcenters::{self, VcentersSpec};
use crate::simulator::sink::{Sink, SinkOptions};
use crate::telemetry::{Console, Verbosity};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use story::Story;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Paces for somebody who watches, to whom a minute is long. Those of the hosts are limited by the
/// time-outs, which are shares of the interval: a slow script must be seen to be slow, and not be cut.
const PACES: [(&str, &str); 3] = [
    ("collectors.overall_state_collector.interval", "5s"),
    ("collectors.critical_service_collector.interval", "10s"),
    ("otlp.interval", "5s"),
];
/// About so often something breaks.
const INCIDENTS: Duration = Duration::from_secs(4);
/// Shortest pause between two looks at what arrived.
const LOOK: Duration = Duration::from_millis(250);
/// Longest pause between two looks, so that the summary comes in time.
const IDLE: Duration = Duration::from_secs(1);
/// What is wrong from the start, and stays.
const FAULTS: [&str; 3] = ["service-slow=0.04", "service-missing=0.04", "refuse-connection=0.04"];

/// Shows the agent at work until `stop`, or for the time that was asked for.
///
/// # Errors
/// When a simulated peer or the agent can't be started.
pub async fn demo(
    args: &DemoArgs,
    verbosity: Verbosity,
    stop: CancellationToken,
) -> Result<ExitCode, VerbError> {
    let folder = tempfile::tempdir().map_err(|error| simulator("a folder for its files", &error))?;
    let sink = Sink::start(SinkOptions::default()).map_err(|error| simulator("the Collector", &error))?;
    let (scenario, config) = estate(args, &folder, &sink).await?;
    // The story tells what happens: the agent's own words beside it are for who asks for more.
    let console = (verbosity > Verbosity::Quiet).then(|| Console::stderr(verbosity));
    let agent = Agent::build(Arc::new(config), Vec::new(), console).await?;
    let _ = output::print(greeting(&scenario, &agent))?;

    let agent_stop = CancellationToken::new();
    let agent = agent.run(agent_stop.clone());
    let incidents = scenario.play(INCIDENTS, stop.clone());
    let watching = async {
        let told = tell_what_arrives(&sink, &scenario, args.duration, &stop).await;
        agent_stop.cancel();
        stop.cancel();
        told
    };
    let ((), (), told) = tokio::join!(agent, incidents, watching);
    let summary = told.and_then(|()| output::print(format_args!("\n{}\n", Story::total(&sink))));
    scenario.shutdown().await;
    sink.stop().await;
    let _ = summary?;
    Ok(ExitCode::SUCCESS)
}

/// The peers, and the configuration of an agent that asks them.
async fn estate(args: &DemoArgs, folder: &TempDir, sink: &Sink) -> Result<(Scenario, Config), VerbError> {
    let fleet = FleetSpec {
        hosts: args.hosts as usize,
        seed: args.seed,
        latency: Duration::from_millis(40),
        password: Secret::new("simulated"),
        ..FleetSpec::default()
    };
    let faults = FAULTS.iter().filter_map(|fault| fault.parse::<FaultShare>().ok()).collect();
    let vcenters = (args.hosts as usize).div_ceil(100).clamp(2, 20);
    let scenario = Scenario::start(ScenarioSpec { vcenters, faults, fleet })
        .map_err(|error| simulator("the hosts", &error))?;
    let spec = VcentersSpec {
        user: "monitor@vsphere.local".to_owned(),
        password: Secret::new("simulated"),
        latency: Duration::from_millis(20),
        by_name: false,
    };
    let (scenario, access) =
        scenario_vcenters::start(scenario, spec).await.map_err(|error| simulator("the vCenters", &error))?;
    let files = lab::files(&scenario, &access, folder.path(), &sink.endpoint(), HostSource::Atlas);
    let variables = lab::variables(&scenario, &access, folder.path());
    let env = variables.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())).collect();
    let loaded = load(&files, env, folder.path()).map_err(|error| simulator("its configuration", &error))?;
    Ok((scenario, loaded.config))
}

/// Writes the files of the lab and reads them as any agent would, at a pace for somebody who watches.
fn load(
    files: &[LabFile],
    env: BTreeMap<String, OsString>,
    folder: &Path,
) -> Result<Loaded, DemoConfigError> {
    for file in files {
        std::fs::write(folder.join(file.name), &file.text)?;
    }
    let mut overrides = Overrides::default();
    for (key, pace) in PACES {
        overrides.set(key, "demo", pace);
    }
    overrides.set("otlp.traces.keep.slower_than", "demo", "1s");
    overrides.set("prometheus.listen", "demo", "127.0.0.1:0");
    Ok(Config::load(&Sources {
        config: Some(folder.join("config.yaml")),
        overrides,
        env,
        host_name: "demo".to_owned(),
        ..Sources::default()
    })?)
}

#[derive(Debug, thiserror::Error)]
enum DemoConfigError {
    #[error(transparent)]
    Write(#[from] io::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

fn simulator(what: &str, error: &dyn std::fmt::Display) -> VerbError {
    VerbError::Simulator(format!("{what}: {error}"))
}

fn greeting(scenario: &Scenario, agent: &Agent) -> String {
    let (hosts, vcenters) = (scenario.hosts.len(), scenario.vcenters.len());
    let page = match agent.handle().web {
        Some(web) => format!("Prometheus page: http://{web}/metrics\n"),
        None => String::new(),
    };
    format!(
        "{hosts} ESXi hosts and {vcenters} vCenters are simulated, faults come and go.\n\
         What follows is what a Collector receives. Ctrl-C ends.\n{page}\n"
    )
}

async fn tell_what_arrives(
    sink: &Sink,
    scenario: &Scenario,
    duration: Option<Duration>,
    stop: &CancellationToken,
) -> Result<(), VerbError> {
    let names: BTreeMap<String, String> =
        scenario.hosts.iter().map(|host| (host.address.to_string(), host.name.clone())).collect();
    let mut story = Story::new(names);
    let mut changes = sink.changes();
    let end = async {
        match duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = &mut end => return Ok(()),
            _ = changes.changed() => {}
            () = tokio::time::sleep(IDLE) => {}
        }
        for line in story.go_on(sink) {
            if output::print(format_args!("{line}\n"))? == Reader::Gone {
                return Ok(());
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}
