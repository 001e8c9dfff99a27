//! How a simulated host is, beyond its state: alarms, configuration issues, hardware, sensors, services.
//! Only what differs from a healthy host is kept; the properties are made when they are asked for.

use super::vcenter_request::MoRef;
use std::collections::BTreeMap;

/// Sensors of a host: as many as make the 37 KB of a real one.
const SENSORS: usize = 72;
/// What a healthy host of 6.5 lists. `hostd` is not among them.
const SERVICES: [(&str, &str, bool, &str); 12] = [
    ("DCUI", "Direct Console UI", true, "on"),
    ("TSM", "ESXi Shell", false, "off"),
    ("TSM-SSH", "SSH", true, "on"),
    ("lbtd", "Load-Based Teaming Daemon", true, "on"),
    ("lwsmd", "Active Directory Service", false, "off"),
    ("ntpd", "NTP Daemon", true, "on"),
    ("pcscd", "PC/SC Smart Card Daemon", false, "off"),
    ("sfcbd-watchdog", "CIM Server", true, "on"),
    ("snmpd", "SNMP Server", false, "off"),
    ("vmsyslogd", "Syslog Server", true, "on"),
    ("vpxa", "VMware vCenter Agent", true, "automatic"),
    ("xorg", "X.Org Server", false, "on"),
];

/// An element of a data object: a text, or others.
#[derive(Debug, Clone, Default)]
pub(super) struct Member {
    pub name: &'static str,
    /// Its `xsi:type`, where it has to be told.
    pub kind: Option<String>,
    /// The `type` of a reference.
    pub refers_to: Option<String>,
    pub text: String,
    pub members: Vec<Member>,
}

impl Member {
    fn text(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, text: text.into(), ..Self::default() }
    }

    fn object(name: &'static str, members: Vec<Member>) -> Self {
        Self { name, members, ..Self::default() }
    }

    fn reference(name: &'static str, to: &MoRef) -> Self {
        Self { name, refers_to: Some(to.kind.clone()), text: to.id.clone(), ..Self::default() }
    }
}

/// An alarm that is triggered.
#[derive(Debug, Clone)]
pub(super) struct Triggered {
    pub alarm: MoRef,
    pub entity: MoRef,
    pub severity: String,
    pub acknowledged: bool,
}

/// How a host is.
#[derive(Debug, Clone, Default)]
pub(super) struct Condition {
    pub alarms: Vec<Triggered>,
    /// Type of the event, and its message.
    pub issues: Vec<(String, String)>,
    /// Of `cpu`, `memory` and `storage` components by their names: what is not green.
    pub hardware: BTreeMap<(String, String), String>,
    /// Type and state of sensors by their names: what is not green.
    pub sensors: BTreeMap<String, (String, String)>,
    /// What is not as usual, by the key.
    pub services: BTreeMap<String, (bool, String)>,
    /// Address of vmk0.
    pub management: Option<String>,
}

impl Condition {
    /// A property and its type; `None`: it is not set, or none of these.
    pub fn property(&self, path: &str, is_connected: bool) -> Option<(&'static str, Vec<Member>)> {
        match path {
            "triggeredAlarmState" => Some(("ArrayOfAlarmState", self.alarm_states())),
            "configIssue" => Some(("ArrayOfEvent", self.events())),
            "runtime.healthSystemRuntime.hardwareStatusInfo" => {
                Some(("HostHardwareStatusInfo", self.hardware_status()))
            }
            "runtime.healthSystemRuntime.systemHealthInfo.numericSensorInfo" => {
                Some(("ArrayOfHostNumericSensorInfo", self.sensor_infos()))
            }
            // A host that is disconnected has no `config`.
            "config.service.service" if is_connected => Some(("ArrayOfHostService", self.host_services())),
            "config.virtualNicManagerInfo.netConfig" if is_connected => {
                let address = self.management.as_ref()?;
                Some(("ArrayOfVirtualNicManagerNetConfig", net_config(address)))
            }
            _ => None,
        }
    }

    fn alarm_states(&self) -> Vec<Member> {
        let state = |triggered: &Triggered| {
            let Triggered { alarm, entity, severity, acknowledged } = triggered;
            let mut members = vec![
                Member::text("key", format!("{}.{}", alarm.id, entity.id)),
                Member::reference("entity", entity),
                Member::reference("alarm", alarm),
                Member::text("overallStatus", severity),
                Member::text("time", "2026-03-01T04:05:06.789Z"),
                Member::text("acknowledged", acknowledged.to_string()),
            ];
            if *acknowledged {
                members.push(Member::text("acknowledgedByUser", "VSPHERE.LOCAL\\operator"));
                members.push(Member::text("acknowledgedTime", "2026-03-01T05:05:06.789Z"));
            }
            members.push(Member::text("eventKey", "4711"));
            Member::object("AlarmState", members)
        };
        self.alarms.iter().map(state).collect()
    }

    fn events(&self) -> Vec<Member> {
        let event = |(kind, message): &(String, String)| {
            let mut members = vec![
                Member::text("key", "12"),
                Member::text("chainId", "12"),
                Member::text("createdTime", "2026-03-01T04:05:06.789Z"),
                Member::text("userName", ""),
                Member::text("fullFormattedMessage", message),
            ];
            // Kinds that came after the API have a type in common, and say which one they are.
            let is_extended = kind.contains('.');
            if is_extended {
                members.push(Member::text("eventTypeId", kind));
            }
            let kind = if is_extended { "EventEx".to_owned() } else { kind.clone() };
            Member { kind: Some(kind), ..Member::object("Event", members) }
        };
        self.issues.iter().map(event).collect()
    }

    fn hardware_status(&self) -> Vec<Member> {
        let mut all: BTreeMap<(String, String), String> = BTreeMap::new();
        for number in 1..=2 {
            all.insert(("cpu".to_owned(), format!("CPU {number}")), "Green".to_owned());
            all.insert(("memory".to_owned(), format!("Memory Device {number}")), "Green".to_owned());
        }
        all.extend(self.hardware.clone());
        let each = |((kind, component), state): (&(String, String), &String)| {
            let name = match kind.as_str() {
                "cpu" => "cpuStatusInfo",
                "memory" => "memoryStatusInfo",
                _ => "storageStatusInfo",
            };
            Member::object(name, vec![Member::text("name", component), description("status", state)])
        };
        all.iter().map(each).collect()
    }

    fn sensor_infos(&self) -> Vec<Member> {
        let usual =
            (1..=SENSORS).map(|number| (format!("Fan Device {number} Fan {number}"), ("fan", "green")));
        let own =
            self.sensors.iter().map(|(name, (kind, state))| (name.clone(), (kind.as_str(), state.as_str())));
        let all: BTreeMap<String, (&str, &str)> = usual.chain(own).collect();
        let each = |(name, (kind, state)): (String, (&str, &str))| {
            let words = if state == "green" { "Normal" } else { "Failure detected" };
            Member::object(
                "HostNumericSensorInfo",
                vec![
                    Member::text("name", format!("{name} --- {words}")),
                    description("healthState", state),
                    Member::text("currentReading", "560000"),
                    Member::text("unitModifier", "-2"),
                    Member::text("baseUnits", "RPM"),
                    Member::text("sensorType", kind),
                    Member::text("id", "0.29.1.72"),
                    Member::text("timeStamp", "2026-03-01T04:05:06Z"),
                ],
            )
        };
        all.into_iter().map(each).collect()
    }

    fn host_services(&self) -> Vec<Member> {
        let each = |(key, label, running, policy): &(&str, &str, bool, &str)| {
            let own = self.services.get(*key);
            let (running, policy) = own.map_or((*running, *policy), |(running, policy)| (*running, policy));
            let package = vec![
                Member::text("sourcePackageName", "esx-base"),
                Member::text(
                    "description",
                    "This VIB contains all of the base functionality of vSphere ESXi.",
                ),
            ];
            Member::object(
                "HostService",
                vec![
                    Member::text("key", *key),
                    Member::text("label", *label),
                    Member::text("required", "false"),
                    Member::text("uninstallable", "false"),
                    Member::text("running", running.to_string()),
                    Member::text("policy", policy),
                    Member::object("sourcePackage", package),
                ],
            )
        };
        SERVICES.iter().map(each).collect()
    }
}

/// An ElementDescription.
fn description(name: &'static str, state: &str) -> Member {
    let members = vec![
        Member::text("label", state),
        Member::text("summary", "Sensor is operating under normal conditions"),
        Member::text("key", state),
    ];
    Member { kind: Some("ElementDescription".to_owned()), ..Member::object(name, members) }
}

/// vmk0 for management, vmk1 for vMotion; both are candidates for both.
fn net_config(address: &str) -> Vec<Member> {
    let config = |kind: &'static str, selected: &str| {
        let mut members = vec![Member::text("nicType", kind), Member::text("multiSelectAllowed", "true")];
        for (nic, address) in [("vmk1", "192.0.2.1"), ("vmk0", address)] {
            let ip = vec![
                Member::text("dhcp", "false"),
                Member::text("ipAddress", address),
                Member::text("subnetMask", "255.255.255.0"),
            ];
            let spec = vec![Member::object("ip", ip), Member::text("mac", "00:50:56:00:00:01")];
            members.push(Member::object(
                "candidateVnic",
                vec![
                    Member::text("device", nic),
                    Member::text("key", format!("{kind}.key-vim.host.VirtualNic-{nic}")),
                    Member::text("portgroup", ""),
                    Member::object("spec", spec),
                ],
            ));
        }
        members.push(Member::text("selectedVnic", format!("{kind}.key-vim.host.VirtualNic-{selected}")));
        Member::object("VirtualNicManagerNetConfig", members)
    };
    vec![config("vmotion", "vmk1"), config("management", "vmk0")]
}
