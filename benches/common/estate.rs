//! Simulated vCenters, a Collector and the agent in this process, for what is about time and not about work.

use esxi_otel_agent::agent::{Agent, AgentHandle};
use esxi_otel_agent::config::{Config, Sources};
use esxi_otel_agent::simulator::sink::{Sink, SinkOptions};
use esxi_otel_agent::simulator::vcenter::{Authority, VcenterHandle, VcenterSim, VcenterSpec};
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Peers of an agent.
pub struct Estate {
    pub vcenters: Vec<VcenterHandle>,
    pub sink: Sink,
    folder: TempDir,
    authority: Authority,
}

/// An agent at work.
pub struct RunningAgent {
    pub handle: AgentHandle,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Estate {
    /// So many vCenters with so many hosts each.
    pub async fn start(vcenters: usize, hosts: usize) -> Result<Self, Box<dyn Error>> {
        let authority = Authority::new("estate")?;
        let mut running = Vec::with_capacity(vcenters);
        for vcenter in 0..vcenters {
            let spec = VcenterSpec::new(format!("vc{vcenter}")).fleet(hosts);
            let spec = VcenterSpec { authority: Some(authority.clone()), ..spec };
            running.push(VcenterSim::start(spec).await?);
        }
        let sink = Sink::start(SinkOptions::default())?;
        Ok(Self { vcenters: running, sink, folder: tempfile::tempdir()?, authority })
    }

    /// The agent as it comes, but for the interval of its polls, and whether it is told of changes.
    pub async fn agent(&self, interval: &str, hints: bool) -> Result<RunningAgent, Box<dyn Error>> {
        let path = |name: &str| self.folder.path().join(name);
        std::fs::write(path("ca.pem"), self.authority.pem())?;
        let vcenters: Vec<String> = self
            .vcenters
            .iter()
            .map(|vcenter| format!("{{address: '{}', site: eu-1a}}", vcenter.address()))
            .collect();
        let text = format!(
            "inventory: {{vcenters: [{}]}}
collectors:
  overall_state_collector: {{enabled: true, interval: {interval}}}
  critical_service_collector: {{enabled: false}}
state_dir: '{}'
vcenter: {{ca_file: '{}', hints: {hints}}}
otlp: {{endpoint: '{}'}}
prometheus: {{listen: '127.0.0.1:0'}}
",
            vcenters.join(", "),
            path("state").display(),
            path("ca.pem").display(),
            self.sink.endpoint(),
        );
        std::fs::write(path("config.yaml"), text)?;
        let account = VcenterSpec::new("");
        let env: BTreeMap<String, OsString> =
            [("VCENTER_USER", account.user), ("VCENTER_PASSWORD", account.password)]
                .map(|(name, value)| (name.to_owned(), value.into()))
                .into();
        let sources = Sources { config: Some(path("config.yaml")), env, ..Sources::default() };
        let config = Config::load(&sources)?.config;
        let agent = Agent::build(Arc::new(config), Vec::new(), None).await?;
        let (handle, stop) = (agent.handle(), CancellationToken::new());
        let task = tokio::spawn(agent.run(stop.clone()));
        Ok(RunningAgent { handle, stop, task })
    }
}

impl RunningAgent {
    /// Ends it in an orderly way.
    pub async fn stop(self) -> Result<(), Box<dyn Error>> {
        self.stop.cancel();
        Ok(self.task.await?)
    }
}
