//! What reading a large vCenter over a kept session costs the agent: `cargo bench --bench vcenter`, or with
//! another size `HOSTS=2000 cargo bench --bench vcenter`.
//!
//! Method. The vCenter runs in a process of its own (`esxi-otel-agent simulate`): TLS, pages of 100 as a real one
//! has them. Each line is one read of all hosts by the agent's client, from the request to the objects: the CPU time
//! of all threads of this process (`CLOCK_PROCESS_CPUTIME_ID`), the time that passed, and the peak of resident memory
//! above what was resident before. What the agent makes of the objects is in `cargo bench --bench vim_parse`.

#[path = "common/lab.rs"]
mod lab;
#[path = "common/measure.rs"]
mod measure;

use esxi_otel_agent::agent::access;
use esxi_otel_agent::config::VcenterConfig;
use esxi_otel_agent::inventory::{Endpoint, Vcenter};
use esxi_otel_agent::stats::Stats;
use esxi_otel_agent::vim::VimClient;
use esxi_otel_agent::vim::property::Query;
use lab::Simulator;
use measure::measure;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const READS: usize = 4;
/// What the goal is about.
const STATE: &[&str] =
    &["name", "overallStatus", "runtime.connectionState", "runtime.inMaintenanceMode", "runtime.powerState"];
/// What each poll asks for.
const EVERYTHING: &[&str] = &[
    "configIssue",
    "name",
    "overallStatus",
    "parent",
    "runtime.bootTime",
    "runtime.connectionState",
    "runtime.inMaintenanceMode",
    "runtime.inQuarantineMode",
    "runtime.powerState",
    "summary.config.product.build",
    "summary.config.product.version",
    "summary.hardware.model",
    "summary.rebootRequired",
    "triggeredAlarmState",
];

/// The agent's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    // Without --bench it is run as a test: small then.
    let default = if std::env::args().any(|arg| arg == "--bench") { 5_000 } else { 50 };
    let hosts: usize = std::env::var("HOSTS").ok().and_then(|hosts| hosts.parse().ok()).unwrap_or(default);
    let lab = tempfile::tempdir()?;
    let _simulator = Simulator::start(lab.path(), &["--vcenters", "1", "--hosts", &hosts.to_string()])?;
    let config = lab::config(lab.path(), &[])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let target = config.inventory.vcenters.first().ok_or("no vCenter")?;
    let vcenter = Arc::new(Vcenter {
        address: target.address.as_str().into(),
        endpoint: target.address.parse::<Endpoint>()?,
        site: target.site.as_str().into(),
        labels: BTreeMap::new(),
    });
    for unpaged in [false, true] {
        let settings = VcenterConfig { unpaged, ..config.vcenter.clone() };
        let stats = Stats::new();
        let access = runtime.block_on(access(&config, &stats));
        let mut client = VimClient::new(&settings, Arc::clone(&vcenter), access, Arc::clone(&stats))?;
        for (name, properties) in [("state", STATE), ("all properties", EVERYTHING)] {
            println!("{hosts} hosts, {name}, {}", if unpaged { "unpaged" } else { "in pages" });
            for read in 0..READS {
                let what = if read == 0 { "first read" } else { "read" };
                let before = received(&stats);
                let objects = measure(what, || {
                    let deadline = Instant::now() + Duration::from_secs(60);
                    runtime.block_on(client.retrieve(&Query::Tree(properties), deadline))
                })?;
                let found = objects.iter().filter(|object| &*object.kind == "HostSystem").count();
                if found != hosts {
                    return Err(format!("{found} hosts were found").into());
                }
                if read + 1 == READS {
                    println!("  {:.2} MB of SOAP", (received(&stats) - before) / 1e6);
                }
            }
        }
        runtime.block_on(client.logout());
    }
    Ok(())
}

/// Bytes of SOAP bodies so far.
fn received(stats: &Stats) -> f64 {
    let is = |sample: &&esxi_otel_agent::metric::Sample| {
        sample.def.name == "esxi.agent.soap.bytes" && sample.attributes.get("direction") == Some("received")
    };
    stats.samples().iter().filter(is).map(|sample| sample.value).sum()
}
