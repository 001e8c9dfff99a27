//! What the stories about vCenters share.
#![allow(dead_code, reason = "each story uses some of it")]

pub mod watch;

use esxi_otel_agent::accounts::guard::Guard;
use esxi_otel_agent::accounts::{Account, Accounts, AccountsConfig, Proof, Secret, SecretSource};
use esxi_otel_agent::collectors::overall_state::OverallState;
use esxi_otel_agent::config::{HostReport, LockoutConfig, OverallStateConfig, VcenterConfig};
use esxi_otel_agent::file_stamp::Digest;
use esxi_otel_agent::inventory::{Endpoint, Vcenter};
use esxi_otel_agent::poller::poll::PollSetup;
use esxi_otel_agent::simulator::vcenter::VcenterHandle;
use esxi_otel_agent::stats::Stats;
use esxi_otel_agent::vim::VimClient;
use esxi_otel_agent::vim::client::Access;
use esxi_otel_agent::vim::model::ManagedObject;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

/// A client's surroundings, made for one simulated vCenter.
pub struct Setup {
    pub vcenter: Vcenter,
    pub config: VcenterConfig,
    pub stats: Arc<Stats>,
    password: String,
    ca_file: tempfile::NamedTempFile,
}

impl Setup {
    pub fn of(sim: &VcenterHandle) -> Self {
        let endpoint =
            Endpoint { host: sim.address().ip().to_string().into(), port: Some(sim.address().port()) };
        let mut ca_file = tempfile::NamedTempFile::new().unwrap();
        ca_file.write_all(sim.ca_pem().as_bytes()).unwrap();
        Self {
            vcenter: Vcenter {
                address: sim.address().to_string().into(),
                endpoint,
                site: "eu-1a".into(),
                labels: BTreeMap::new(),
            },
            config: VcenterConfig {
                ca_file: Some(ca_file.path().to_owned()),
                connect_timeout: Duration::from_secs(5),
                call_timeout: Duration::from_secs(30),
                ..VcenterConfig::default()
            },
            stats: Stats::new(),
            password: "p<&>w\"ö".to_owned(),
            ca_file,
        }
    }

    pub fn page_size(mut self, page_size: u32) -> Self {
        self.config.page_size = page_size;
        self
    }

    pub fn call_timeout(mut self, call_timeout: Duration) -> Self {
        self.config.call_timeout = call_timeout;
        self
    }

    pub fn password(mut self, password: &str) -> Self {
        self.password = password.to_owned();
        self
    }

    pub fn ca(mut self, pem: &str) -> Self {
        self.ca_file = tempfile::NamedTempFile::new().unwrap();
        self.ca_file.write_all(pem.as_bytes()).unwrap();
        self.config.ca_file = Some(self.ca_file.path().to_owned());
        self
    }

    pub fn system_roots(mut self) -> Self {
        self.config.ca_file = None;
        self
    }

    pub fn unverified(mut self) -> Self {
        self.config.ca_file = None;
        self.config.verify_tls = false;
        self
    }

    pub fn at(mut self, host: &str) -> Self {
        self.vcenter.endpoint.host = host.into();
        self
    }

    pub fn port(mut self, port: u16) -> Self {
        self.vcenter.endpoint.port = Some(port);
        self
    }

    pub fn access(&self) -> Access {
        let secret = SecretSource::Value(Secret::new(self.password.clone()));
        let account = Account { user: "monitor@vsphere.local".into(), proof: Proof::Password(secret) };
        let lockout = LockoutConfig {
            wait: Duration::from_secs(1000),
            max_wait: Duration::from_secs(86_400),
            unproven_tries: 3,
            volatile: true,
        };
        Access {
            accounts: Arc::new(Accounts::new(AccountsConfig {
                vcenter: Some(account),
                ..AccountsConfig::default()
            })),
            guard: Arc::new(Guard::new(lockout, Arc::clone(&self.stats))),
            allow: Arc::default(),
        }
    }

    /// Polls of everything by the overall state collector.
    pub fn polls(&self, interval: Duration) -> PollSetup {
        let settings = OverallStateConfig { interval, stale_after: interval, report: HostReport::default() };
        PollSetup {
            interval,
            config: self.config.clone(),
            files: Digest::default(),
            collectors: vec![Arc::new(OverallState::new(&settings))],
            access: self.access(),
            discovery: None,
        }
    }

    pub fn client(&self) -> VimClient {
        VimClient::new(&self.config, Arc::new(self.vcenter.clone()), self.access(), Arc::clone(&self.stats))
            .unwrap()
    }
}

/// The names of the hosts, sorted.
pub fn hosts_of(objects: &[ManagedObject]) -> Vec<String> {
    let hosts = objects.iter().filter(|object| &*object.kind == "HostSystem");
    let mut names: Vec<String> = hosts.map(|host| host.name().expect("a name")).collect();
    names.sort();
    names
}

/// The value of a counter of calls.
pub fn counted(stats: &Stats, metric: &str, method: &str, outcome: &str) -> f64 {
    let samples = stats.samples();
    let found = samples.iter().find(|sample| {
        sample.def.name == metric
            && sample.attributes.get("method") == Some(method)
            && sample.attributes.get("outcome") == Some(outcome)
    });
    found.map_or(0.0, |sample| sample.value)
}

/// Waits for a condition, ten seconds at most.
pub async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the condition never came true");
}
