//! What reading 5,000 hosts costs: parsing 50 pages, and turning them into samples. Prints milliseconds of
//! CPU time an iteration. `cargo bench --bench vim_parse`.

#![allow(clippy::expect_used, reason = "a benchmark may fail")]

use esxi_otel_agent::collectors::overall_state::OverallState;
use esxi_otel_agent::collectors::{VcenterAnswer, VcenterCollector};
use esxi_otel_agent::config::OverallStateConfig;
use esxi_otel_agent::inventory::{Endpoint, Inventory, Vcenter};
use esxi_otel_agent::vim::model::Interner;
use esxi_otel_agent::vim::property::read_page;
use esxi_otel_agent::vim::soap::Method;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

const HOSTS: usize = 5000;
const PAGE: usize = 100;
const ITERATIONS: u32 = 20;

fn main() {
    let pages: Vec<String> = (0..HOSTS / PAGE).map(page).collect();
    let bytes: usize = pages.iter().map(String::len).sum();
    println!("{HOSTS} hosts in {} pages, {:.1} MB", pages.len(), bytes as f64 / 1e6);
    let collector = OverallState::new(&OverallStateConfig {
        interval: Duration::from_secs(30),
        stale_after: Duration::from_secs(90),
    });
    let endpoint = Endpoint { host: "vc1.example.org".into(), port: None };
    let (address, site, labels) = ("vc1.example.org".into(), "eu-1a".into(), BTreeMap::new());
    let vcenter = Vcenter { address, endpoint, site, labels };
    let inventory = Inventory::default();

    let objects = read_all(&pages);
    assert_eq!(objects.len(), HOSTS);
    let answer = VcenterAnswer { vcenter: &vcenter, tree: &[], hosts: &objects, inventory: &inventory };
    measure("parse", || read_all(&pages).len());
    measure("collect", || collector.read(&answer).len());
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

fn page(number: usize) -> String {
    let mut text = String::from(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><RetrievePropertiesExResponse xmlns="urn:vim25"><returnval>"#,
    );
    for host in number * PAGE..(number + 1) * PAGE {
        let _ = write!(text, r#"<objects><obj type="HostSystem">host-{host}</obj>"#);
        for (path, kind, value) in [
            ("name", "xsd:string", format!("esx{host:05}.cc.eu-1.example.org")),
            ("overallStatus", "ManagedEntityStatus", "green".to_owned()),
            ("runtime.bootTime", "xsd:dateTime", "2026-03-01T04:05:06.789123Z".to_owned()),
            ("runtime.connectionState", "HostSystemConnectionState", "connected".to_owned()),
            ("runtime.inMaintenanceMode", "xsd:boolean", "false".to_owned()),
            ("runtime.inQuarantineMode", "xsd:boolean", "false".to_owned()),
            ("runtime.powerState", "HostSystemPowerState", "poweredOn".to_owned()),
            ("summary.config.product.build", "xsd:string", "24022510".to_owned()),
            ("summary.config.product.version", "xsd:string", "8.0.3".to_owned()),
            ("summary.hardware.model", "xsd:string", "PowerEdge R760".to_owned()),
            ("summary.rebootRequired", "xsd:boolean", "false".to_owned()),
        ] {
            let _ =
                write!(text, r#"<propSet><name>{path}</name><val xsi:type="{kind}">{value}</val></propSet>"#);
        }
        let _ = write!(
            text,
            r#"<propSet><name>parent</name><val type="ClusterComputeResource" xsi:type="ManagedObjectReference">domain-c{}</val></propSet></objects>"#,
            host / 32
        );
    }
    text.push_str("</returnval></RetrievePropertiesExResponse></soapenv:Body></soapenv:Envelope>");
    text
}
