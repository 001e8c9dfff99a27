//! Readings of a large fleet, made by the agent's own collectors, so that metrics, attributes and parts are
//! exactly those of real visits and polls: 10 series a host by SSH, 13 by its vCenter.

use esxi_otel_agent::collectors::critical_service::CriticalService;
use esxi_otel_agent::collectors::overall_state::OverallState;
use esxi_otel_agent::collectors::{Answer, HostCollector, Reply, VcenterCollector};
use esxi_otel_agent::config::{CriticalServiceConfig, NotInstalled, OverallStateConfig, Service};
use esxi_otel_agent::inventory::{Endpoint, Host, Inventory, Vcenter};
use esxi_otel_agent::poller::series::{conclude_poll, conclude_visit};
use esxi_otel_agent::readings::{Readings, Report};
use esxi_otel_agent::vim::model::{ManagedObject, Reference, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const SERVICES: [&str; 7] = ["hostd", "opsAgent", "nsx-proxy", "nsxa", "ntpd", "vpxa", "vvold"];
const HOSTS_OF_A_VCENTER: usize = 500;
const HOSTS_OF_A_CLUSTER: usize = 20;
const MINUTE: Duration = Duration::from_secs(60);

/// Hosts, their vCenters, and what these say.
pub struct Fleet {
    inventory: Inventory,
    answers: Vec<(Arc<Vcenter>, Vec<ManagedObject>)>,
    critical_service: CriticalService,
    overall_state: OverallState,
}

impl Fleet {
    /// As many hosts, all of them well.
    pub fn new(hosts: usize) -> Self {
        let vcenters = (0..hosts.div_ceil(HOSTS_OF_A_VCENTER)).map(vcenter).collect();
        let inventory = Inventory::new((0..hosts).map(host).collect(), vcenters);
        let of_vcenter = |i: usize| i * HOSTS_OF_A_VCENTER..hosts.min((i + 1) * HOSTS_OF_A_VCENTER);
        let answers = (0..).zip(&inventory.vcenters);
        let answers = answers.map(|(i, vcenter)| (Arc::clone(vcenter), objects(of_vcenter(i)))).collect();
        let service = |name: &&str| Service { name: (*name).into(), reported_as: (*name).into() };
        let critical_service = CriticalService::new(&CriticalServiceConfig {
            interval: MINUTE,
            stale_after: MINUTE * 3,
            max_in_flight: 512,
            services: SERVICES.iter().map(service).collect(),
            not_installed: NotInstalled::Stopped,
        });
        let overall_state = OverallStateConfig { interval: MINUTE, stale_after: MINUTE * 3 };
        Self { inventory, answers, critical_service, overall_state: OverallState::new(&overall_state) }
    }

    /// Visits every host and polls every vCenter, which takes a little longer each `round`.
    pub fn round(&self, readings: &Readings, round: u32) {
        for host in &self.inventory.hosts {
            let of = |question: &esxi_otel_agent::collectors::Question| {
                let line = format!("{} is running.", question.id);
                let result = Ok(Reply { lines: vec![line], exit: 0 });
                let answer = Answer { question: Arc::clone(&question.id), result, elapsed: Duration::ZERO };
                self.critical_service.read(host, &answer).readings
            };
            readings.record(Report {
                target: host.id(),
                collector: self.critical_service.name(),
                readings: self.critical_service.questions().iter().flat_map(of).collect(),
                stale_after: Some(self.critical_service.stale_after()),
            });
            conclude_visit(readings, host, None, Duration::from_millis(400) + MINUTE / 1_000 * round);
        }
        for (vcenter, objects) in &self.answers {
            readings.record(Report {
                target: vcenter.id(),
                collector: self.overall_state.name(),
                readings: self.overall_state.read(vcenter, objects, &self.inventory),
                stale_after: Some(self.overall_state.stale_after()),
            });
            conclude_poll(readings, vcenter, None, Duration::from_millis(900) + MINUTE / 1_000 * round);
        }
    }

    /// One host in `each` is gone.
    pub fn forget(&self, readings: &Readings, each: usize) {
        for host in self.inventory.hosts.iter().step_by(each) {
            readings.forget(&host.id());
        }
    }
}

fn address(i: usize) -> String {
    format!("node{i:05}-bb{:03}.cc.eu-de-1.example.org", i / HOSTS_OF_A_CLUSTER)
}

fn host(i: usize) -> Host {
    let endpoint = Endpoint { host: address(i).into(), port: None };
    Host { address: address(i).into(), endpoint, site: "eu-de-1a".into(), labels: BTreeMap::new() }
}

fn vcenter(i: usize) -> Vcenter {
    let address = format!("vc-{i:03}.cc.eu-de-1.example.org");
    let endpoint = Endpoint { host: address.as_str().into(), port: None };
    let labels = std::collections::BTreeMap::new();
    Vcenter { address: address.into(), endpoint, site: "eu-de-1a".into(), labels }
}

fn objects(hosts: std::ops::Range<usize>) -> Vec<ManagedObject> {
    let named = |kind: &str, id: String, name: String, parent: Option<Reference>| {
        let mut object = ManagedObject::new(kind, id);
        object.properties.push(("name".into(), Value::Text(name.into())));
        object.properties.extend(parent.map(|parent| ("parent".into(), Value::Reference(parent))));
        object
    };
    let mut all = vec![named("Datacenter", "datacenter-2".into(), "eu-de-1a".into(), None)];
    let mut clusters: Vec<usize> = hosts.clone().map(|i| i / HOSTS_OF_A_CLUSTER).collect();
    clusters.dedup();
    for cluster in clusters {
        let parent = Reference::new("Datacenter", "datacenter-2");
        let id = format!("domain-c{cluster}");
        all.push(named("ClusterComputeResource", id, format!("production-bb{cluster:03}"), Some(parent)));
    }
    for i in hosts {
        let cluster = format!("domain-c{}", i / HOSTS_OF_A_CLUSTER);
        let parent = Reference::new("ClusterComputeResource", cluster);
        let mut host = named("HostSystem", format!("host-{i}"), address(i), Some(parent));
        let text = |text: &str| Value::Text(text.into());
        host.properties.extend([
            ("overallStatus".into(), text("green")),
            ("runtime.connectionState".into(), text("connected")),
            ("runtime.powerState".into(), text("poweredOn")),
            ("runtime.inMaintenanceMode".into(), Value::Bool(false)),
            ("runtime.inQuarantineMode".into(), Value::Bool(false)),
            ("runtime.bootTime".into(), Value::Time(1.7e9 + i as f64)),
            ("summary.rebootRequired".into(), Value::Bool(false)),
            ("summary.config.product.version".into(), text("8.0.3")),
            ("summary.config.product.build".into(), text("24022510")),
            ("summary.hardware.model".into(), text("PowerEdge R760xs")),
        ]);
        all.push(host);
    }
    all
}
