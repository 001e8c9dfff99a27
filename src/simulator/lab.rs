//! The files that let an agent visit a simulated estate: inventory, configuration, environment.

use super::scenario::Scenario;
use crate::accounts::Secret;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use zeroize::Zeroizing;

/// A file of the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabFile {
    /// Its name in the lab's folder.
    pub name: &'static str,
    /// What it holds.
    pub text: String,
    /// Whether it holds a password, so that nobody else may read it.
    pub secret: bool,
}

/// How an agent learns of the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostSource {
    /// By an inventory file.
    Atlas,
    /// The vCenters list them, with the addresses of their management interfaces.
    Discovery,
}

/// How the vCenters of a scenario are reached.
#[derive(Debug, Clone)]
pub struct VcenterAccess {
    /// `address:port` of each, in the order of the scenario.
    pub addresses: Vec<String>,
    /// The certificate authority that signed their certificates, PEM.
    pub ca: String,
    /// Account.
    pub user: String,
    /// Its password.
    pub password: Secret,
}

/// Without vCenters.
impl Default for VcenterAccess {
    fn default() -> Self {
        let none = String::new;
        Self { addresses: Vec::new(), ca: none(), user: none(), password: Secret::new(none()) }
    }
}

/// The files for an agent that runs in `folder`, an absolute path, and pushes to `otlp`.
/// `hosts` says how the agent learns of the hosts.
pub fn files(
    scenario: &Scenario,
    vcenters: &VcenterAccess,
    folder: &Path,
    otlp: &str,
    hosts: HostSource,
) -> Vec<LabFile> {
    let config = config(scenario, vcenters, folder, otlp, hosts);
    let public = |name, text| LabFile { name, text, secret: false };
    let mut files = vec![
        public("config.yaml", format!("# A simulated estate. Made anew at each start.\n{}", yaml(&config))),
        LabFile { name: "env", text: environment(scenario, vcenters, folder), secret: true },
    ];
    if hosts == HostSource::Atlas {
        files.push(public("atlas.json", format!("{:#}\n", atlas(scenario))));
    }
    if !vcenters.addresses.is_empty() {
        files.push(public("ca.pem", vcenters.ca.clone()));
    }
    files
}

/// The hosts as Prometheus's `file_sd` has them, in the shape of the atlas.
fn atlas(scenario: &Scenario) -> Value {
    let row = |host: &super::scenario::SimulatedHost| {
        json!({
            "targets": [host.address.to_string()],
            "labels": {
                "job": "vmware-esxi",
                "name": host.name,
                "server_name": host.name,
                "status": "Active",
                "site": host.site,
                "cluster": host.cluster,
            },
        })
    };
    scenario.hosts.iter().map(row).collect()
}

/// JSON is YAML, too, though less of a pleasure to read.
fn yaml(value: &Value) -> String {
    serde_yaml::to_string(value).unwrap_or_else(|_| format!("{value:#}\n"))
}

/// The configuration.
fn config(
    scenario: &Scenario,
    vcenters: &VcenterAccess,
    folder: &Path,
    otlp: &str,
    hosts: HostSource,
) -> Value {
    let at = |name: &str| folder.join(name).display().to_string();
    let pairs = vcenters.addresses.iter().zip(scenario.vcenters.iter());
    let list: Vec<Value> =
        pairs.map(|(address, vcenter)| json!({"address": address, "site": vcenter.site})).collect();
    let inventory = match hosts {
        HostSource::Atlas => {
            json!({"atlas": at("atlas.json"), "host_address": "{target}", "vcenters": list})
        }
        HostSource::Discovery => json!({"vcenters": list, "discover_hosts": {"address": "management"}}),
    };
    let mut config = json!({
        "inventory": inventory,
        "collectors": {
            "overall_state_collector": {"enabled": !list.is_empty()},
            "critical_service_collector": {
                "enabled": true,
                "services": ["hostd", "nsx-opsagent", "nsx-proxy", "nsxa", "ntpd", "vpxa", "vvold"],
            },
        },
        "state_dir": at("state"),
        "ssh": {"port": scenario.fleet.port()},
        "otlp": {"endpoint": otlp},
    });
    if !list.is_empty()
        && let Some(keys) = config.as_object_mut()
    {
        keys.insert("vcenter".to_owned(), json!({"ca_file": at("ca.pem")}));
    }
    config
}

/// The environment of an agent that runs in `folder`.
pub fn variables(
    scenario: &Scenario,
    vcenters: &VcenterAccess,
    folder: &Path,
) -> BTreeMap<&'static str, Zeroizing<String>> {
    let (user, password) = scenario.account();
    let config = folder.join("config.yaml").display().to_string();
    let mut variables =
        vec![("CONFIG_FILE", config.as_str()), ("ESXI_USER", user), ("ESXI_PASSWORD", password.expose())];
    if !vcenters.addresses.is_empty() {
        let account = [("VCENTER_USER", &*vcenters.user), ("VCENTER_PASSWORD", vcenters.password.expose())];
        variables.extend(account);
    }
    variables.into_iter().map(|(name, value)| (name, Zeroizing::new(value.to_owned()))).collect()
}

/// Variables for `set -a; . ./env`.
fn environment(scenario: &Scenario, vcenters: &VcenterAccess, folder: &Path) -> String {
    let variables = variables(scenario, vcenters, folder);
    variables.iter().map(|(name, value)| format!("{name}={}\n", quoted(value))).collect()
}

/// For a shell: in single quotes, the only character that needs care.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::super::host::FleetSpec;
    use super::super::scenario::ScenarioSpec;
    use super::*;

    fn lab(vcenters: &VcenterAccess) -> Vec<LabFile> {
        let fleet = FleetSpec { hosts: 3, ..FleetSpec::default() };
        let spec = ScenarioSpec { vcenters: vcenters.addresses.len(), faults: vec![], fleet };
        let scenario = Scenario::start(spec).unwrap();
        files(&scenario, vcenters, Path::new("/some/lab"), "http://localhost:4317", HostSource::Atlas)
    }

    fn text<'a>(files: &'a [LabFile], name: &str) -> &'a str {
        files.iter().find(|file| file.name == name).map_or("", |file| &file.text)
    }

    #[tokio::test]
    async fn passwords_stand_in_the_secret_file_alone() {
        let vcenters = VcenterAccess {
            addresses: vec!["127.0.0.1:8443".into()],
            ca: "PEM".into(),
            user: "monitor@vsphere.local".into(),
            password: Secret::new("it's"),
        };
        let files = lab(&vcenters);
        for file in &files {
            let passwords = file.text.contains("simulated\n")
                || file.text.contains("'simulated'")
                || file.text.contains("it'");
            assert_eq!(passwords, file.secret, "{}", file.name);
        }
        assert!(text(&files, "env").contains("VCENTER_PASSWORD='it'\\''s'\n"));
    }

    #[tokio::test]
    async fn the_configuration_is_yaml_and_names_what_it_needs() {
        let files = lab(&VcenterAccess::default());
        let config: Value = serde_yaml::from_str(text(&files, "config.yaml")).unwrap();
        assert_eq!(config["inventory"]["atlas"], "/some/lab/atlas.json");
        assert_eq!(config["collectors"]["overall_state_collector"]["enabled"], false);
        assert!(config.get("vcenter").is_none());
        let atlas: Value = serde_json::from_str(text(&files, "atlas.json")).unwrap();
        assert_eq!(atlas[1]["targets"][0], "127.16.0.2");
        assert_eq!(atlas[1]["labels"]["name"], "node002-bb001");
    }
}
