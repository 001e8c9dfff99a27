//! A whole simulated estate: vCenters, their hosts, and what goes wrong with them; the same from the same
//! seed. Nothing of it needs a name server: hosts are visited by their addresses on the loopback network,
//! and vCenters call them by these, as they do with hosts that were added by address.

use super::faults::{Fault, FaultShare, ServiceState};
use super::host::{FleetError, FleetHandle, FleetSpec, HostFleet};
use super::timeline::{HostKind, Incident, OverallStatus, Step, Timeline};
use crate::accounts::Secret;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Region of the estate, from which sites and names are made.
const REGION: &str = "qa-de-1";
const DOMAIN: &str = "example.org";
/// Hosts in a cluster.
const CLUSTER: usize = 16;
/// The services that faults are given to: those that a healthy host has and that are usually asked for.
const ASKED: &[&str] = &["hostd", "vpxa", "ntpd", "vvold", "nsx-opsagent", "nsx-proxy"];

/// What an estate looks like.
#[derive(Debug, Clone)]
pub struct ScenarioSpec {
    /// Number of vCenters.
    pub vcenters: usize,
    /// Which hosts have which faults from the start.
    pub faults: Vec<FaultShare>,
    /// The hosts; its seed is the estate's.
    pub fleet: FleetSpec,
}

/// A host of the estate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedHost {
    /// Name, as an inventory has it.
    pub name: String,
    /// Where it is visited, and what its vCenter calls it.
    pub address: Ipv4Addr,
    /// Index of its vCenter; `None` in an estate without.
    pub vcenter: Option<usize>,
    /// Site.
    pub site: String,
    /// Cluster.
    pub cluster: String,
}

impl SimulatedHost {
    /// Its name with a domain. No name server knows it.
    pub fn full_name(&self) -> String {
        format!("{}.cc.{REGION}.{DOMAIN}", self.name)
    }
}

/// A vCenter of the estate. Its index is its place in [`Scenario::vcenters`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedVcenter {
    /// Full name, from which the site can be told.
    pub full_name: String,
    /// Site.
    pub site: String,
}

/// What an estate can do to its vCenters. Implemented for whatever simulates them.
pub trait Vcenters: Send + Sync + fmt::Debug {
    /// Sets what a vCenter thinks of a host.
    fn set_overall_status(&self, vcenter: usize, host: &SimulatedHost, status: OverallStatus);
    /// Lets a vCenter restart: sessions are lost, and it takes a while until it answers again.
    fn restart(&self, vcenter: usize);
}

/// An estate without vCenters.
impl Vcenters for () {
    fn set_overall_status(&self, _: usize, _: &SimulatedHost, _: OverallStatus) {}
    fn restart(&self, _: usize) {}
}

/// A running estate. Ends with [`Self::shutdown`], or when it is dropped.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The hosts, for changing what they do.
    pub fleet: FleetHandle,
    /// Who the hosts are, by the same index.
    pub hosts: Arc<[SimulatedHost]>,
    /// Who the vCenters are.
    pub vcenters: Arc<[SimulatedVcenter]>,
    control: Arc<dyn Vcenters>,
    seed: u64,
    user: String,
    password: Secret,
}

impl Scenario {
    /// Starts the hosts, and gives the faults to those that the seed picks. The vCenters are known, and
    /// are there once [`Self::with_vcenters`] says so.
    pub fn start(spec: ScenarioSpec) -> Result<Self, FleetError> {
        let ScenarioSpec { vcenters, faults, fleet } = spec;
        let (seed, user, password) = (fleet.seed, fleet.user.clone(), fleet.password.clone());
        allow_descriptors(fleet.hosts as u64 * 3 + 256);
        let fleet = HostFleet::start(fleet)?;
        let hosts = (0..fleet.len()).map(|index| host(index, fleet.ip(index), vcenters)).collect();
        let vcenters = (0..vcenters).map(vcenter).collect();
        distribute(&fleet, seed, &faults);
        Ok(Self { fleet, hosts, vcenters, control: Arc::new(()), seed, user, password })
    }

    /// From now on incidents reach the vCenters, too.
    #[must_use]
    pub fn with_vcenters(self, control: Arc<dyn Vcenters>) -> Self {
        Self { control, ..self }
    }

    /// The account of all hosts.
    pub fn account(&self) -> (&str, &Secret) {
        (&self.user, &self.password)
    }

    /// Lets one incident begin or end.
    pub fn act(&self, step: Step) {
        match step.incident {
            Incident::Service(host, service, kind) => {
                let state = if step.begins { kind.state() } else { ServiceState::Running };
                self.fleet.set_service(host, service, state);
            }
            Incident::Host(host, kind) if step.begins => {
                self.fleet.set_fault(host, kind.fault());
                if kind != HostKind::Hangs {
                    self.fleet.kill_sessions(host);
                }
            }
            Incident::Host(host, _) => self.fleet.clear_fault(host),
            Incident::Status(index, status) => {
                let status = if step.begins { status } else { OverallStatus::Green };
                if let Some(host) = self.hosts.get(index)
                    && let Some(vcenter) = host.vcenter
                {
                    self.control.set_overall_status(vcenter, host, status);
                }
            }
            Incident::VcenterRestart(vcenter) if step.begins => self.control.restart(vcenter),
            Incident::VcenterRestart(_) => {}
        }
    }

    /// Lets incidents come and go, a new one about every `pace`, until it is cancelled.
    pub async fn play(&self, pace: Duration, cancel: CancellationToken) {
        let started = Instant::now();
        for step in Timeline::new(self.seed, self.hosts.len(), self.vcenters.len(), pace) {
            let wait = tokio::time::sleep_until(started + step.at);
            if cancel.run_until_cancelled(wait).await.is_none() {
                return;
            }
            self.act(step);
        }
    }

    /// Ends the hosts.
    pub async fn shutdown(&self) {
        self.fleet.shutdown().await;
    }
}

fn site(vcenter: usize) -> String {
    format!("{REGION}{}", letter(vcenter))
}

fn letter(vcenter: usize) -> char {
    char::from(b'a' + u8::try_from(vcenter % 26).unwrap_or_default())
}

fn vcenter(index: usize) -> SimulatedVcenter {
    let full_name = format!("vc-{}-{}.cc.{REGION}.{DOMAIN}", letter(index), index / 26);
    SimulatedVcenter { full_name, site: site(index) }
}

fn host(index: usize, address: Ipv4Addr, vcenters: usize) -> SimulatedHost {
    let (cluster, node) = (index / CLUSTER, index % CLUSTER + 1);
    // Whole clusters belong to one vCenter.
    let vcenter = cluster.checked_rem(vcenters);
    let name = format!("node{node:03}-bb{:03}", cluster + 1);
    let site = site(vcenter.unwrap_or_default());
    SimulatedHost { name, address, vcenter, site, cluster: format!("bb{:03}", cluster + 1) }
}

/// Gives each fault to its share of the hosts, at least to one if there is a share at all, and to others
/// than the fault before as long as there are some.
fn distribute(fleet: &FleetHandle, seed: u64, faults: &[FaultShare]) {
    let mut random = StdRng::seed_from_u64(seed ^ 0x6661_756c_7473);
    let mut order: Vec<usize> = (0..fleet.len()).collect();
    order.shuffle(&mut random);
    let mut candidates = order.into_iter().cycle();
    for FaultShare { fault, share } in faults {
        let exact = (fleet.len() as f64 * share).round() as usize;
        let count = if *share > 0.0 { exact.max(1).min(fleet.len()) } else { 0 };
        for host in candidates.by_ref().take(count) {
            match fault {
                Fault::Host(fault) => fleet.set_fault(host, *fault),
                Fault::Service(state) => {
                    if let Some(service) = ASKED.get(random.random_range(0..ASKED.len())) {
                        fleet.set_service(host, service, *state);
                    }
                }
            }
        }
    }
}

/// Raises the process's soft limit of descriptors, as far as the hard one allows: a session is one.
fn allow_descriptors(wanted: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let possible = maximum.map_or(wanted, |maximum| wanted.min(maximum));
    if current.is_some_and(|current| current < possible) {
        // Where this fails, accepting connections says so soon enough.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(possible), maximum });
    }
}

#[cfg(test)]
mod tests {
    use super::super::faults::HostFault;
    use super::super::timeline::ServiceKind;
    use super::*;
    use std::collections::HashSet;
    use std::sync::Mutex;

    fn start(hosts: usize, vcenters: usize, faults: &[&str]) -> Scenario {
        let faults = faults.iter().map(|text| text.parse().unwrap()).collect();
        let spec = ScenarioSpec { vcenters, faults, fleet: FleetSpec { hosts, ..FleetSpec::default() } };
        Scenario::start(spec).unwrap()
    }

    #[tokio::test]
    async fn hosts_have_names_and_addresses_of_their_own_and_whole_clusters_one_vcenter() {
        let scenario = start(100, 3, &[]);
        let names: HashSet<_> = scenario.hosts.iter().map(|host| &host.name).collect();
        assert_eq!(names.len(), 100);
        assert_eq!(scenario.hosts[16].name, "node001-bb002");
        assert_eq!(scenario.hosts[16].vcenter, Some(1));
        assert_eq!(scenario.hosts[16].site, scenario.vcenters[1].site);
        assert_eq!(scenario.vcenters[1].full_name, "vc-b-0.cc.qa-de-1.example.org");
        for (index, host) in scenario.hosts.iter().enumerate() {
            assert_eq!(host.address, scenario.fleet.ip(index));
        }
    }

    #[tokio::test]
    async fn faults_fall_on_their_share_and_on_the_same_hosts_again() {
        let picked = || {
            let scenario = start(40, 1, &["wrong-password=0.1", "service-hung=0.05"]);
            let faults: Vec<_> = (0..40).map(|host| scenario.fleet.fault(host)).collect();
            let hung = |host| ASKED.iter().any(|s| scenario.fleet.service(host, s) == ServiceState::Hung);
            (faults, (0..40).filter(|host| hung(*host)).collect::<Vec<_>>())
        };
        let (faults, hung) = picked();
        assert_eq!(faults.iter().filter(|fault| **fault == Some(HostFault::WrongPassword)).count(), 4);
        assert_eq!(hung.len(), 2);
        assert_eq!(picked(), (faults, hung));
    }

    #[derive(Debug, Default)]
    struct Noted(Mutex<Vec<String>>);

    impl Vcenters for Noted {
        fn set_overall_status(&self, vcenter: usize, host: &SimulatedHost, status: OverallStatus) {
            self.0.lock().unwrap().push(format!("{vcenter} {} {status:?}", host.name));
        }

        fn restart(&self, vcenter: usize) {
            self.0.lock().unwrap().push(format!("{vcenter} restarts"));
        }
    }

    #[tokio::test]
    async fn incidents_begin_and_end() {
        let noted = Arc::new(Noted::default());
        let spec = ScenarioSpec { vcenters: 1, faults: vec![], fleet: FleetSpec::default() };
        let scenario = Scenario::start(spec).unwrap().with_vcenters(noted.clone());
        let act = |begins, incident| scenario.act(Step { at: Duration::ZERO, begins, incident });
        let stops = Incident::Service(0, "hostd", ServiceKind::Stops);
        act(true, stops);
        assert_eq!(scenario.fleet.service(0, "hostd"), ServiceState::Stopped);
        act(false, stops);
        assert_eq!(scenario.fleet.service(0, "hostd"), ServiceState::Running);
        act(true, Incident::Host(0, HostKind::Hangs));
        assert_eq!(scenario.fleet.fault(0), Some(HostFault::HangAtCommand));
        act(false, Incident::Host(0, HostKind::Hangs));
        assert_eq!(scenario.fleet.fault(0), None);
        act(true, Incident::Status(0, OverallStatus::Red));
        act(true, Incident::VcenterRestart(0));
        assert_eq!(*noted.0.lock().unwrap(), ["0 node001-bb001 Red", "0 restarts"]);
    }

    #[tokio::test]
    async fn a_play_ends_when_it_is_cancelled() {
        let scenario = start(3, 0, &[]);
        let cancel = CancellationToken::new();
        let play = tokio::spawn({
            let (scenario, cancel) = (scenario.clone(), cancel.clone());
            async move { scenario.play(Duration::from_millis(10), cancel).await }
        });
        let stopped = || {
            let services = |host| ASKED.iter().map(move |service| (host, *service));
            let mut all = (0..3).flat_map(services);
            all.any(|(host, service)| scenario.fleet.service(host, service) != ServiceState::Running)
        };
        let seen = async {
            while !stopped() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), seen).await.unwrap();
        cancel.cancel();
        tokio::time::timeout(Duration::from_secs(5), play).await.unwrap().unwrap();
    }
}
