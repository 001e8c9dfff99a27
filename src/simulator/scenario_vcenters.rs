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
        let hosts = own.map(|host| HostSpec {
            name: host.address.to_string(),
            datacenter: vcenter.site.clone(),
            cluster: Some(host.cluster.clone()),
        });
        let mut own = VcenterSpec::new(vcenter.full_name.clone());
        own.user.clone_from(&spec.user);
        own.password = spec.password.expose().to_owned();
        own.latency = spec.latency;
        own.hosts = hosts.collect();
        own.authority = Some(authority.clone());
        running.push(VcenterSim::start(own).await?);
    }
    let access = VcenterAccess {
        addresses: running.iter().map(|vcenter| vcenter.address().to_string()).collect(),
        ca: authority.pem(),
        user: spec.user,
        password: spec.password,
    };
    Ok((scenario.with_vcenters(Arc::new(Running(running))), access))
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
struct Running(Vec<VcenterHandle>);

impl Vcenters for Running {
    fn set_overall_status(&self, vcenter: usize, host: &SimulatedHost, status: OverallStatus) {
        let status = match status {
            OverallStatus::Gray => Status::Gray,
            OverallStatus::Green => Status::Green,
            OverallStatus::Yellow => Status::Yellow,
            OverallStatus::Red => Status::Red,
        };
        let Some(vcenter) = self.0.get(vcenter) else { return };
        let address = host.address.to_string();
        vcenter.clear_alarms(&address);
        vcenter.repair(&address);
        give_cause(vcenter, &address, &status);
        vcenter.set_status(&address, &status);
    }

    fn restart(&self, vcenter: usize) {
        if let Some(vcenter) = self.0.get(vcenter) {
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
        };
        let (scenario, access) = start(scenario, spec).await.unwrap();
        assert_eq!(access.addresses.len(), 2);
        assert!(access.ca.contains("BEGIN CERTIFICATE"));
        let own = |vcenter| scenario.hosts.iter().filter(|host| host.vcenter == Some(vcenter)).count();
        assert_eq!((own(0), own(1)), (24, 16));
        scenario.shutdown().await;
    }
}
