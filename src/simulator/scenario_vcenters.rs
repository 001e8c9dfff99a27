//! The vCenters of an estate: started for its hosts, and put into its hands.

use super::lab::VcenterAccess;
use super::scenario::{Scenario, SimulatedHost, Vcenters};
use super::timeline::OverallStatus;
use super::vcenter::{Authority, HostSpec, Status, VcenterFault, VcenterHandle, VcenterSim, VcenterSpec};
use crate::accounts::Secret;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Calls that a vCenter answers with 503 when it restarts: some polls long, whatever their interval.
const CALLS_WHILE_STARTING: usize = 3;

/// What the vCenters of an estate have in common.
#[derive(Debug, Clone)]
pub struct VcentersSpec {
    /// The account, of all of them.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// Added to each answer.
    pub latency: Duration,
    /// Call hosts by names, which nobody can look up, instead of by their addresses.
    pub by_name: bool,
}

/// Starts the vCenters of `scenario`, each with its hosts, and puts them into its hands. They share one
/// certificate authority.
pub async fn start(scenario: Scenario, spec: VcentersSpec) -> io::Result<(Scenario, VcenterAccess)> {
    if scenario.vcenters.is_empty() {
        return Ok((scenario, VcenterAccess::default()));
    }
    let authority = Authority::new("simulated estate")?;
    let mut running = Vec::new();
    for (index, vcenter) in scenario.vcenters.iter().enumerate() {
        let own = scenario.hosts.iter().filter(|host| host.vcenter == Some(index));
        let hosts = own.clone().map(|host| HostSpec {
            name: called(host, spec.by_name),
            datacenter: vcenter.site.clone(),
            cluster: Some(host.cluster.clone()),
        });
        let mut spec_of = VcenterSpec::new(vcenter.full_name.clone());
        spec_of.user.clone_from(&spec.user);
        spec_of.password = spec.password.expose().to_owned();
        spec_of.latency = spec.latency;
        spec_of.hosts = hosts.collect();
        spec_of.authority = Some(authority.clone());
        let started = VcenterSim::start(spec_of).await?;
        for host in own {
            started.set_management_address(&called(host, spec.by_name), &host.address.to_string());
        }
        running.push(started);
    }
    let access = VcenterAccess {
        addresses: running.iter().map(|vcenter| vcenter.address().to_string()).collect(),
        ca: authority.pem(),
        user: spec.user,
        password: spec.password,
    };
    Ok((scenario.with_vcenters(Arc::new(Running { vcenters: running, by_name: spec.by_name })), access))
}

/// What a vCenter calls a host.
fn called(host: &SimulatedHost, by_name: bool) -> String {
    if by_name { host.full_name() } else { host.address.to_string() }
}

/// What may be behind a status; the same for the same host.
fn give_cause(vcenter: &VcenterHandle, host: &str, status: &Status) {
    let is_odd = host.bytes().last().is_some_and(|digit| digit % 2 == 1);
    match (status, is_odd) {
        (Status::Red, true) => {
            vcenter.trigger_alarm(host, "Host hardware power status", "red");
            vcenter.set_sensor(host, "Power Supply 2 Status", "power", "red");
        }
        (Status::Red, false) => {
            vcenter.trigger_alarm(host, "Host memory status", "red");
            vcenter.set_hardware(host, "memory", "Memory Device 2", "Red");
        }
        (Status::Yellow, true) => vcenter.trigger_alarm(host, "Host CPU usage", "yellow"),
        (Status::Yellow, false) => {
            vcenter.trigger_alarm(host, "Network uplink redundancy lost", "yellow");
            let message =
                "Lost uplink redundancy on virtual switch \"vSwitch0\". Physical NIC vmnic1 is down.";
            vcenter.set_issues(host, &[("esx.problem.net.redundancy.lost", message)]);
        }
        _ => {}
    }
}

#[derive(Debug)]
struct Running {
    vcenters: Vec<VcenterHandle>,
    by_name: bool,
}

impl Vcenters for Running {
    fn set_overall_status(&self, vcenter: usize, host: &SimulatedHost, status: OverallStatus) {
        let status = match status {
            OverallStatus::Gray => Status::Gray,
            OverallStatus::Green => Status::Green,
            OverallStatus::Yellow => Status::Yellow,
            OverallStatus::Red => Status::Red,
        };
        let Some(vcenter) = self.vcenters.get(vcenter) else { return };
        let name = called(host, self.by_name);
        vcenter.clear_alarms(&name);
        vcenter.repair(&name);
        give_cause(vcenter, &name, &status);
        vcenter.set_status(&name, &status);
    }

    fn restart(&self, vcenter: usize) {
        if let Some(vcenter) = self.vcenters.get(vcenter) {
            vcenter.restart();
            for _ in 0..CALLS_WHILE_STARTING {
                vcenter.fail_next(VcenterFault::Http503Text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::FleetSpec;
    use super::super::scenario::ScenarioSpec;
    use super::*;

    #[tokio::test]
    async fn each_vcenter_has_its_own_hosts_and_all_one_authority() {
        let fleet = FleetSpec { hosts: 40, ..FleetSpec::default() };
        let scenario = Scenario::start(ScenarioSpec { vcenters: 2, faults: vec![], fleet }).unwrap();
        let spec = VcentersSpec {
            user: "monitor".into(),
            password: Secret::new("simulated"),
            latency: Duration::ZERO,
            by_name: false,
        };
        let (scenario, access) = start(scenario, spec).await.unwrap();
        assert_eq!(access.addresses.len(), 2);
        assert!(access.ca.contains("BEGIN CERTIFICATE"));
        let own = |vcenter| scenario.hosts.iter().filter(|host| host.vcenter == Some(vcenter)).count();
        assert_eq!((own(0), own(1)), (24, 16));
        scenario.shutdown().await;
    }
}
