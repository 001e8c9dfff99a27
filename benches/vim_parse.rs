//! What reading 5,000 hosts costs: parsing 50 pages, and turning them into samples. Prints milliseconds of
//! CPU time an iteration. `cargo bench --bench vim_parse`.

#![allow(clippy::expect_used, reason = "a benchmark may fail")]

use esxi_otel_agent::collectors::overall_state::OverallState;
use esxi_otel_agent::collectors::{VcenterAnswer, VcenterCollector};
use esxi_otel_agent::config::{HostReport, OverallStateConfig};
use esxi_otel_agent::inventory::{Endpoint, Inventory, Vcenter};
use esxi_otel_agent::vim::model::Interner;
use esxi_otel_agent::vim::property::read_page;
use esxi_otel_agent::vim::soap::Method;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::time::{Duration, Instant};

const HOSTS: usize = 5000;
const PAGE: usize = 100;
const ITERATIONS: u32 = 20;

/// The properties of a host: path, type, value.
type Property = (&'static str, &'static str, &'static str);

/// What the goal is about: name, status and the state at run time.
const STATE: [Property; 5] = [
    ("overallStatus", "ManagedEntityStatus", "green"),
    ("parent", "ManagedObjectReference", "domain-c7"),
    ("runtime.connectionState", "HostSystemConnectionState", "connected"),
    ("runtime.inMaintenanceMode", "xsd:boolean", "false"),
    ("runtime.powerState", "HostSystemPowerState", "poweredOn"),
];
/// What each poll asks for beyond that.
const MORE: [Property; 8] = [
    ("configIssue", "ArrayOfEvent", ""),
    ("runtime.bootTime", "xsd:dateTime", "2026-03-01T04:05:06.789123Z"),
    ("runtime.inQuarantineMode", "xsd:boolean", "false"),
    ("summary.config.product.build", "xsd:string", "24022510"),
    ("summary.config.product.version", "xsd:string", "8.0.3"),
    ("summary.hardware.model", "xsd:string", "PowerEdge R760"),
    ("summary.rebootRequired", "xsd:boolean", "false"),
    ("triggeredAlarmState", "ArrayOfAlarmState", ""),
];

fn main() {
    round("name, status, run-time state", &STATE);
    round("all properties of a poll", &[&STATE[..], &MORE[..]].concat());
}

fn round(title: &str, properties: &[Property]) {
    let pages: Vec<String> = (0..HOSTS / PAGE).map(|number| page(number, properties)).collect();
    let bytes: usize = pages.iter().map(String::len).sum();
    println!("{title}: {HOSTS} hosts in {} pages, {:.1} MB", pages.len(), bytes as f64 / 1e6);
    let collector = OverallState::new(&OverallStateConfig {
        interval: Duration::from_secs(30),
        stale_after: Duration::from_secs(90),
        report: HostReport::default(),
    });
    let endpoint = Endpoint { host: "vc1.example.org".into(), port: None };
    let (address, site, labels) = ("vc1.example.org".into(), "eu-1a".into(), BTreeMap::new());
    let vcenter = Vcenter { address, endpoint, site, labels };
    let inventory = Inventory::default();

    let objects = read_all(&pages);
    assert_eq!(objects.len(), HOSTS);
    let answer = VcenterAnswer {
        vcenter: &vcenter,
        tree: &[],
        hosts: &objects,
        is_whole: true,
        inventory: &inventory,
        texts: &HashMap::new(),
    };
    let mut reader = collector.reader();
    measure("  parse", || read_all(&pages).len());
    measure("  collect", || reader.read(&answer).len());
}

fn read_all(pages: &[String]) -> Vec<esxi_otel_agent::vim::model::ManagedObject> {
    let mut strings = Interner::default();
    let read = |page: &String| {
        read_page(Method::RetrievePropertiesEx, page.as_bytes(), &mut strings).expect("a page")
    };
    pages.iter().map(read).flat_map(|page| page.objects).collect()
}

fn measure(name: &str, mut work: impl FnMut() -> usize) {
    let (cpu, wall) = (cpu_time(), Instant::now());
    let mut done = 0;
    for _ in 0..ITERATIONS {
        done += work();
    }
    let cpu = (cpu_time() - cpu) / ITERATIONS;
    let wall = wall.elapsed() / ITERATIONS;
    println!("{name}: {:.2} ms CPU, {:.2} ms wall an iteration ({done} objects)", ms(cpu), ms(wall));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn page(number: usize, properties: &[Property]) -> String {
    let mut text = String::from(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><RetrievePropertiesExResponse xmlns="urn:vim25"><returnval>"#,
    );
    for host in number * PAGE..(number + 1) * PAGE {
        let _ = write!(
            text,
            r#"<objects><obj type="HostSystem">host-{host}</obj><propSet><name>name</name><val xsi:type="xsd:string">esx{host:05}.cc.eu-1.example.org</val></propSet>"#
        );
        for (path, kind, value) in properties {
            let refers = if *path == "parent" { r#"type="ClusterComputeResource" "# } else { "" };
            let _ = write!(
                text,
                r#"<propSet><name>{path}</name><val {refers}xsi:type="{kind}">{value}</val></propSet>"#
            );
        }
        text.push_str("</objects>");
    }
    text.push_str("</returnval></RetrievePropertiesExResponse></soapenv:Body></soapenv:Envelope>");
    text
}
