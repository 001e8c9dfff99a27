//! An estate to visit: simulated hosts, vCenters and a Collector, and the agent that a configuration makes.

use super::{LIMIT, in_time};
use esxi_otel_agent::accounts::Secret;
use esxi_otel_agent::agent::{Agent, AgentHandle};
use esxi_otel_agent::config::{Config, Loaded, Sources};
use esxi_otel_agent::simulator::host::{FleetHandle, FleetSpec};
use esxi_otel_agent::simulator::sink::{Sink, SinkOptions};
use esxi_otel_agent::simulator::vcenter::{Authority, VcenterHandle, VcenterSim, VcenterSpec};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Peers of an agent.
pub struct Estate {
    pub fleet: FleetHandle,
    pub vcenters: Vec<VcenterHandle>,
    pub sink: Sink,
    pub folder: TempDir,
    password: Option<String>,
}

impl Estate {
    /// Healthy hosts, all in each of the vCenters, and a Collector.
    pub async fn new(hosts: usize, vcenters: usize) -> Self {
        Self::with_password(hosts, vcenters, None).await
    }

    /// The same, where all accounts have this password.
    pub async fn with_password(hosts: usize, vcenters: usize, password: Option<&str>) -> Self {
        Self::with_fleet(FleetSpec { hosts, ..FleetSpec::default() }, vcenters, password).await
    }

    /// The same, with hosts of this kind.
    pub async fn with_fleet(spec: FleetSpec, vcenters: usize, password: Option<&str>) -> Self {
        Self::built(spec, vcenters, password, |_, _| {}).await
    }

    /// The same, with vCenters of one's own making: `change` gets the number of each.
    pub async fn with_vcenters(
        hosts: usize,
        vcenters: usize,
        change: impl Fn(usize, &mut VcenterSpec),
    ) -> Self {
        Self::built(FleetSpec { hosts, ..FleetSpec::default() }, vcenters, None, change).await
    }

    async fn built(
        mut spec: FleetSpec,
        vcenters: usize,
        password: Option<&str>,
        change: impl Fn(usize, &mut VcenterSpec),
    ) -> Self {
        let hosts = spec.hosts;
        if let Some(password) = password {
            spec.password = Secret::new(password);
        }
        let fleet = super::fleet(spec);
        let authority = Authority::new("estate").unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        let mut running = Vec::new();
        for vcenter in 0..vcenters {
            let mut spec = VcenterSpec::new(format!("vc-{vcenter}"));
            for host in 0..hosts {
                spec = spec.host("dc", "cluster", fleet.ip(host).to_string());
            }
            spec.authority = Some(authority.clone());
            if let Some(password) = password {
                spec.password = password.to_owned();
            }
            change(vcenter, &mut spec);
            running.push(VcenterSim::start(spec).await.unwrap());
        }
        let sink = Sink::start(SinkOptions::default()).unwrap();
        let password = password.map(str::to_owned);
        let estate = Self { fleet, vcenters: running, sink, folder, password };
        estate.write_atlas(0..hosts);
        estate
    }

    /// Value of `hostsystem` of a host.
    pub fn host(&self, index: usize) -> String {
        self.fleet.ip(index).to_string()
    }

    /// Writes these hosts into the inventory file.
    pub fn write_atlas(&self, hosts: impl IntoIterator<Item = usize>) {
        let rows: Vec<_> = hosts
            .into_iter()
            .map(|host| {
                serde_json::json!({"targets": [self.host(host)],
                    "labels": {"job": "vmware-esxi", "name": format!("h{host}"), "site": "eu-de-1a"}})
            })
            .collect();
        let beside = self.folder.path().join("atlas.new");
        std::fs::write(&beside, serde_json::to_string(&rows).unwrap()).unwrap();
        std::fs::rename(beside, self.folder.path().join("atlas.json")).unwrap();
    }

    /// The configuration of an agent for this estate, which asks once an hour unless `changes` (lines of
    /// YAML, one `key.path: value` each) say otherwise.
    pub fn config(&self, changes: &[(&str, &str)]) -> Loaded {
        Config::load(&self.sources(changes)).unwrap_or_else(|error| panic!("{error}"))
    }

    fn sources(&self, changes: &[(&str, &str)]) -> Sources {
        let (file, env) = self.write_config();
        let mut sources =
            Sources { config: Some(file), env, host_name: "test".to_owned(), ..Sources::default() };
        for (key, value) in changes {
            match key.strip_prefix('$') {
                Some(variable) => drop(sources.env.insert(variable.to_owned(), value.into())),
                None => sources.overrides.set(key, "test", value),
            }
        }
        sources
    }

    /// Writes the configuration's file; returns its path and the variables that go with it.
    pub fn write_config(&self) -> (PathBuf, BTreeMap<String, OsString>) {
        let vcenters: Vec<String> = self
            .vcenters
            .iter()
            .map(|vc| format!("{{address: '{}', site: eu-de-1a}}", vc.address()))
            .collect();
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let (atlas, ca, state) = (path("atlas.json"), path("ca.pem"), path("state"));
        let text = format!(
            "inventory: {{atlas: '{atlas}', host_address: '{{target}}', vcenters: [{}]}}
collectors:
  overall_state_collector: {{enabled: {}, interval: 1h}}
  critical_service_collector: {{interval: 1h, services: [hostd, vpxa, ntpd, nsx-opsagent, vvold]}}
state_dir: '{state}'
ssh: {{port: {}, timeouts: {{connect: 2s, login: 5s, command: 5s}}}}
vcenter: {{ca_file: '{ca}'}}
otlp: {{endpoint: '{}', interval: 1h, traces: {{keep: {{ratio: 1.0}}}}}}
prometheus: {{listen: '127.0.0.1:0'}}
",
            vcenters.join(", "),
            !self.vcenters.is_empty(),
            self.fleet.port(),
            self.sink.endpoint(),
        );
        let file = self.folder.path().join("config.yaml");
        std::fs::write(&file, text).unwrap();
        let account = FleetSpec::default();
        let vcenter = VcenterSpec::new("");
        let password = |own: &str| self.password.as_deref().unwrap_or(own).to_owned();
        let env = [
            ("ESXI_USER", account.user.clone()),
            ("ESXI_PASSWORD", password(account.password.expose())),
            ("VCENTER_USER", vcenter.user.clone()),
            ("VCENTER_PASSWORD", password(&vcenter.password)),
        ];
        (file, env.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect())
    }

    /// Puts `new` in the place of `old` in the configuration's file.
    pub fn edit_config(&self, old: &str, new: &str) {
        self.edit_config_at_once(&[(old, new)]);
    }

    /// The same in several places: nobody sees some of it.
    pub fn edit_config_at_once(&self, changes: &[(&str, &str)]) {
        let file = self.folder.path().join("config.yaml");
        let mut text = std::fs::read_to_string(&file).unwrap();
        for (old, new) in changes {
            assert!(text.contains(old), "{old} is not in\n{text}");
            text = text.replace(old, new);
        }
        let beside = self.folder.path().join("config.new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, file).unwrap();
    }

    /// An agent that runs until [`RunningAgent::stop`].
    pub async fn agent(&self, changes: &[(&str, &str)]) -> RunningAgent {
        self.begin(self.sources(changes)).await
    }

    /// The same, where `edit` changes the configuration's file before.
    pub async fn agent_of(&self, edit: impl FnOnce()) -> RunningAgent {
        let sources = self.sources(&[]);
        edit();
        self.begin(sources).await
    }

    async fn begin(&self, sources: Sources) -> RunningAgent {
        let Loaded { config, notes, file, .. } =
            Config::load(&sources).unwrap_or_else(|error| panic!("{error}"));
        let agent = Agent::build(Arc::new(config), notes, None).await.unwrap();
        let agent = agent.following(sources, file.as_deref());
        let (handle, stop) = (agent.handle(), CancellationToken::new());
        let task = tokio::spawn(agent.run(stop.clone()));
        RunningAgent { handle, stop, task }
    }

    /// Waits until the Collector has this value of the series that has at least these attributes.
    pub async fn arrives(&self, metric: &str, attributes: &[(&str, &str)], value: f64) {
        let arrived = self.sink.wait_until(|seen| seen.value(metric, attributes) == Some(value), LIMIT).await;
        arrived.unwrap_or_else(|error| panic!("{metric}{attributes:?} = {value}: {error}"));
    }
}

/// An agent at work.
pub struct RunningAgent {
    pub handle: AgentHandle,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl RunningAgent {
    /// Ends it in an orderly way; says how long that took.
    pub async fn stop(self) -> Duration {
        let began = std::time::Instant::now();
        self.stop.cancel();
        in_time("the end of the agent", self.task).await.unwrap();
        began.elapsed()
    }
}
