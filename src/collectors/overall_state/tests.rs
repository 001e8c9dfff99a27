use super::*;
use crate::collectors::VcenterAnswer;
use crate::config::HostReport;
use crate::inventory::{Endpoint, Host, Inventory, Vcenter};
use crate::metric::Sample;
use crate::readings::Reading;
use crate::vim::management;
use crate::vim::model::{Interner, Item, ManagedObject, Reference, Value};
use crate::vim::property::read_page;
use crate::vim::soap::{FaultKind, Method};
use std::collections::{BTreeMap, HashMap};

fn collector() -> OverallState {
    OverallState::new(&OverallStateConfig {
        interval: Duration::from_secs(30),
        stale_after: Duration::from_secs(90),
        report: HostReport::default(),
    })
}

/// What the collector makes of these objects.
fn read(collector: &OverallState, objects: &[ManagedObject], inventory: &Inventory) -> Vec<Reading> {
    let (hosts, tree): (Vec<_>, Vec<_>) =
        objects.iter().cloned().partition(|object| &*object.kind == "HostSystem");
    let texts = HashMap::from([("alarm-4".into(), "Host memory usage".into())]);
    collector.reader().read(&VcenterAnswer {
        vcenter: &vcenter(),
        tree: &tree,
        hosts: &hosts,
        is_whole: true,
        inventory,
        texts: &texts,
    })
}

fn endpoint(host: &str) -> Endpoint {
    Endpoint { host: host.into(), port: None }
}

fn vcenter() -> Vcenter {
    Vcenter {
        address: "vc-a-0.example.org".into(),
        endpoint: endpoint("vc-a-0.example.org"),
        site: "eu-1a".into(),
        labels: BTreeMap::new(),
    }
}

fn inventory(addresses: &[&str]) -> Inventory {
    let host = |address: &&str| Host {
        address: (*address).into(),
        endpoint: endpoint(address),
        site: "eu-1a".into(),
        labels: BTreeMap::new(),
    };
    Inventory::new(addresses.iter().map(host).collect(), Vec::new())
}

fn recorded(name: &str) -> Vec<ManagedObject> {
    recorded_by("vcsim-2026-08", name)
}

fn recorded_by(version: &str, name: &str) -> Vec<ManagedObject> {
    let path = format!("{}/tests/fixtures/vim/{version}/{name}.xml", env!("CARGO_MANIFEST_DIR"));
    read_page(Method::RetrievePropertiesEx, &std::fs::read(path).unwrap(), &mut Interner::default())
        .unwrap()
        .objects
}

fn object(kind: &str, id: &str, name: &str, parent: Option<(&str, &str)>) -> ManagedObject {
    let mut object = ManagedObject::new(kind, id);
    object.properties.push(("name".into(), Value::Text(name.into())));
    if let Some((kind, id)) = parent {
        object.properties.push(("parent".into(), Value::Reference(Reference::new(kind, id))));
    }
    object
}

/// One host in a cluster in a folder in a datacenter.
fn tree(host: ManagedObject) -> Vec<ManagedObject> {
    vec![
        object("Folder", "group-d1", "Datacenters", None),
        object("Datacenter", "datacenter-2", "DC 1%2f2", Some(("Folder", "group-d1"))),
        object("Folder", "group-h3", "host", Some(("Datacenter", "datacenter-2"))),
        object("Folder", "group-h4", "prod", Some(("Folder", "group-h3"))),
        object("ClusterComputeResource", "domain-c5", "cl%252", Some(("Folder", "group-h4"))),
        object("ComputeResource", "domain-s6", "alone", Some(("Folder", "group-h4"))),
        host,
    ]
}

fn host_with(properties: &[(&str, Value)]) -> ManagedObject {
    let mut host =
        object("HostSystem", "host-9", "esx1.example.org", Some(("ClusterComputeResource", "domain-c5")));
    host.properties.extend(properties.iter().map(|(path, value)| ((*path).into(), value.clone())));
    host
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

/// The samples as `name{key=value,…} value`, the common attributes left out.
fn lines(readings: &[Reading]) -> Vec<String> {
    let line = |sample: &Sample| {
        let own =
            sample.attributes.iter().filter(|(key, _)| !["vcenter", "site", "hostsystem"].contains(key));
        let own: Vec<String> = own.map(|(key, value)| format!("{key}={value}")).collect();
        format!("{}{{{}}} {}", sample.def.name, own.join(","), sample.value)
    };
    readings.iter().flat_map(|reading| reading.samples.iter().map(line)).collect()
}

#[test]
fn a_recorded_vcenter_gives_each_host_its_status() {
    let readings =
        read(&collector(), &recorded("RetrievePropertiesEx-tree-traversal"), &Inventory::default());
    let status: Vec<&Sample> = readings
        .iter()
        .flat_map(|reading| &reading.samples)
        .filter(|sample| *sample.def == OVERALL_STATUS)
        .collect();
    assert!(status.len() >= 10);
    let first = status[0];
    let attributes: Vec<_> = first.attributes.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(attributes, ["hostsystem=DC0_H0", "site=eu-1a", "vcenter=vc-a-0.example.org"]);
    assert_eq!(first.value, 2.0);
    let cluster = readings
        .iter()
        .flat_map(|r| &r.samples)
        .find(|s| *s.def == INFO && s.attributes.get("cluster").is_some());
    let cluster = cluster.expect("a host in a cluster");
    assert_eq!(
        (cluster.attributes.get("cluster"), cluster.attributes.get("datacenter")),
        (Some("DC0_C0"), Some("DC0"))
    );
    let alone = readings[0].samples.iter().find(|sample| *sample.def == INFO).unwrap();
    assert_eq!((alone.attributes.get("cluster"), alone.attributes.get("datacenter")), (None, Some("DC0")));
}

#[test]
fn a_whole_host_gives_thirteen_series_with_the_join_key_on_all_but_the_status() {
    let host = host_with(&[
        ("overallStatus", text("yellow")),
        ("runtime.connectionState", text("notResponding")),
        ("runtime.powerState", text("standBy")),
        ("runtime.inMaintenanceMode", Value::Bool(true)),
        ("runtime.inQuarantineMode", Value::Bool(false)),
        ("runtime.bootTime", Value::Time(1_772_337_906.5)),
        ("summary.rebootRequired", Value::Bool(true)),
        ("summary.config.product.version", text("8.0.3")),
        ("summary.config.product.build", text("24022510")),
        ("summary.hardware.model", text(" PowerEdge R760 ")),
    ]);
    let inventory = inventory(&["esx1.cc.eu-1.example.org", "esx2.cc.eu-1.example.org"]);
    let readings = read(&collector(), &tree(host), &inventory);
    let address = "address=esx1.cc.eu-1.example.org";
    assert_eq!(&*readings[0].part, "host-9");
    assert_eq!(
        lines(&readings),
        [
            "esxi.overall_status{} 1".to_owned(),
            format!(
                "esxi.host.info{{{address},build=24022510,cluster=cl%2,datacenter=DC 1/2,model=PowerEdge R760,version=8.0.3}} 1"
            ),
            format!("esxi.host.connection_state{{{address},state=connected}} 0"),
            format!("esxi.host.connection_state{{{address},state=disconnected}} 0"),
            format!("esxi.host.connection_state{{{address},state=notResponding}} 1"),
            format!("esxi.host.power_state{{{address},state=poweredOn}} 0"),
            format!("esxi.host.power_state{{{address},state=poweredOff}} 0"),
            format!("esxi.host.power_state{{{address},state=standBy}} 1"),
            format!("esxi.host.power_state{{{address},state=unknown}} 0"),
            format!("esxi.host.maintenance_mode{{{address}}} 1"),
            format!("esxi.host.quarantine_mode{{{address}}} 0"),
            format!("esxi.host.reboot_required{{{address}}} 1"),
            format!("esxi.host.boot.timestamp{{{address}}} 1772337906.5"),
        ]
    );
}

#[test]
fn every_sample_carries_only_attributes_that_its_metric_declares() {
    let readings = read(&collector(), &recorded("RetrievePropertiesEx-full-set"), &inventory(&["DC0_H0"]));
    assert!(!readings.is_empty());
    for sample in readings.iter().flat_map(|reading| &reading.samples) {
        for (key, _) in sample.attributes.iter() {
            assert!(sample.def.attributes.contains(&key), "{}: {key}", sample.def.name);
        }
    }
    for def in METRICS {
        assert!(def.attributes.is_sorted(), "{}", def.name);
    }
}

#[test]
fn gray_and_words_that_nobody_knows_are_minus_one() {
    for (word, value) in
        [("green", 2.0), ("yellow", 1.0), ("red", 0.0), ("gray", -1.0), ("purple", -1.0), ("", -1.0)]
    {
        let readings =
            read(&collector(), &tree(host_with(&[("overallStatus", text(word))])), &Inventory::default());
        assert_eq!(readings[0].samples[0].value, value, "{word}");
    }
}

#[test]
fn an_unknown_power_state_is_unknown_and_an_unknown_connection_is_none_of_the_three() {
    let host =
        host_with(&[("runtime.connectionState", text("dreaming")), ("runtime.powerState", text("dreaming"))]);
    let lines = lines(&read(&collector(), &tree(host), &Inventory::default()));
    let on: Vec<_> = lines.iter().filter(|line| line.contains("_state") && line.ends_with(" 1")).collect();
    assert_eq!(on, ["esxi.host.power_state{state=unknown} 1"]);
    assert_eq!(lines.iter().filter(|line| line.contains("connection_state")).count(), 3);
}

#[test]
fn what_cannot_be_read_is_left_out_and_the_host_stays() {
    let mut host = host_with(&[("runtime.inMaintenanceMode", Value::Bool(false))]);
    host.missing.push(("overallStatus".into(), FaultKind::NoPermission.into()));
    let readings = read(&collector(), &tree(host), &Inventory::default());
    assert_eq!(
        lines(&readings),
        ["esxi.host.info{cluster=cl%2,datacenter=DC 1/2} 1", "esxi.host.maintenance_mode{} 0"]
    );
}

#[test]
fn a_host_without_a_name_and_a_second_one_of_the_same_name_are_left_out() {
    let mut objects = tree(host_with(&[]));
    let mut nameless = ManagedObject::new("HostSystem", "host-10");
    nameless.missing.push(("name".into(), FaultKind::NoPermission.into()));
    objects.push(nameless);
    objects.push(object("HostSystem", "host-11", "esx1.example.org", None));
    let readings = read(&collector(), &objects, &Inventory::default());
    assert_eq!(readings.iter().map(|reading| &*reading.part).collect::<Vec<_>>(), ["host-9"]);
}

#[test]
fn parents_that_go_round_in_circles_end() {
    let objects = vec![
        object("Folder", "a", "a", Some(("Folder", "b"))),
        object("Folder", "b", "b", Some(("Folder", "a"))),
        object("HostSystem", "host-1", "esx1", Some(("Folder", "a"))),
    ];
    let readings = read(&collector(), &objects, &Inventory::default());
    assert_eq!(lines(&readings), ["esxi.host.info{} 1"]);
}

fn item(name: &str, fields: &[(&str, &str)]) -> Item {
    let fields = fields.iter().map(|(path, text)| ((*path).into(), (*text).into())).collect();
    Item { name: name.into(), kind: "".into(), fields }
}

#[test]
fn alarms_of_one_name_are_one_series_a_severity_acknowledged_when_all_are() {
    let alarm = |id: &str, entity: &str, severity: &str, acknowledged: &str| {
        let own =
            [("entity", entity), ("alarm", id), ("overallStatus", severity), ("acknowledged", acknowledged)];
        item("AlarmState", &own)
    };
    let host = host_with(&[(
        "triggeredAlarmState",
        Value::Items(vec![
            alarm("alarm-4", "host-9", "red", "true"),
            alarm("alarm-4", "host-9", "red", "false"),
            alarm("alarm-4", "host-9", "yellow", "true"),
            alarm("alarm-5", "host-9", "red", "true"),
            alarm("alarm-6", "host-9", "green", "false"),
            alarm("alarm-7", "vm-1", "red", "false"),
            item("AlarmState", &[("entity", "host-9")]),
        ]),
    )]);
    assert_eq!(
        lines(&read(&collector(), &tree(host), &Inventory::default()))[1..],
        [
            "esxi.host.alarm{alarm=Host memory usage,severity=red} 1",
            "esxi.host.alarm{alarm=Host memory usage,severity=yellow} 1",
            "esxi.host.alarm.acknowledged{alarm=Host memory usage} 0",
            "esxi.host.alarm{alarm=alarm-5,severity=red} 1",
            "esxi.host.alarm.acknowledged{alarm=alarm-5} 1",
        ]
    );
}

#[test]
fn a_management_address_is_that_of_the_selected_adapter_ipv4_first() {
    let candidate = |key: &'static str, v6: &'static str, v4: &'static str| {
        [
            ("candidateVnic.key", key),
            ("candidateVnic.spec.ip.ipV6Config.ipV6Address.ipAddress", v6),
            ("candidateVnic.spec.ip.ipAddress", v4),
        ]
    };
    let mut fields = vec![("nicType", "management")];
    fields.extend(candidate("m.vmk0", "2001:db8::1", "10.0.0.1"));
    fields.extend(candidate("m.vmk1", "2001:db8::2", "10.0.0.2"));
    fields.push(("selectedVnic", "m.vmk1"));
    let other = item("VirtualNicManagerNetConfig", &[("nicType", "vmotion"), ("candidateVnic.key", "v")]);
    let configs = Value::Items(vec![other, item("VirtualNicManagerNetConfig", &fields)]);
    let host = host_with(&[("config.virtualNicManagerInfo.netConfig", configs)]);
    let addresses = |host: &ManagedObject| {
        management::addresses(host).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(addresses(&host), ["10.0.0.2", "2001:db8::2"]);
    assert!(addresses(&host_with(&[])).is_empty());
}

#[test]
fn a_recorded_alarm_gets_its_recorded_name() {
    let hosts = recorded_by("vcsim-0.56.0", "RetrievePropertiesEx-triggered-alarm");
    let lookup = collector().reader().lookup(&hosts).unwrap();
    assert_eq!((lookup.kind, lookup.property), ("Alarm", "info.name"));
    assert_eq!(lookup.ids.iter().map(|id| &**id).collect::<Vec<_>>(), ["alarm-interop"]);
    let alarm = recorded_by("vcsim-0.56.0", "RetrievePropertiesEx-alarm-name").remove(0);
    assert_eq!((&*alarm.kind, &*alarm.id), ("Alarm", "alarm-interop"));
    assert_eq!(alarm.text("info.name").map(|name| &**name), Some("Host memory status"));
    let found = lines(&read(&collector(), &hosts, &Inventory::default()));
    let alarms: Vec<_> = found.iter().filter(|line| line.contains("alarm")).collect();
    assert_eq!(
        alarms,
        [
            "esxi.host.alarm{alarm=alarm-interop,severity=red} 1",
            "esxi.host.alarm.acknowledged{alarm=alarm-interop} 0",
        ]
    );
}

#[test]
fn recorded_details_are_read() {
    let host = recorded_by("vcsim-0.56.0", "RetrievePropertiesEx-net-config").remove(0);
    assert_eq!(management::addresses(&host), [std::net::Ipv4Addr::LOCALHOST]);
    let host = recorded_by("vcsim-0.56.0", "RetrievePropertiesEx-hardware-status").remove(0);
    let own = crate::metric::Attributes::new([("hostsystem", "esx1")]);
    assert!(details::hardware(&host, &own).is_empty(), "all is green");
    let mut broken = host.clone();
    for (_, value) in &mut broken.properties {
        let Value::Items(items) = value else { panic!("{value:?}") };
        let (_, key) = items[1].fields.iter_mut().find(|(path, _)| &**path == "status.key").unwrap();
        *key = "Red".into();
    }
    let samples = details::hardware(&broken, &own);
    let labels: Vec<_> = samples[0].attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(labels, ["component=CPU socket #1", "hostsystem=esx1", "kind=cpu", "state=red"]);
    assert_eq!(samples.len(), 1);
    let host = recorded("RetrievePropertiesEx-services-one-host").remove(0);
    assert_eq!(details::services(&host, &own).len(), 12);
}
