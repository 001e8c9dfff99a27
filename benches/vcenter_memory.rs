//! What a large vCenter's answer takes in the agent's memory: `cargo bench --bench vcenter_memory`, or with another
//! size `HOSTS=2000 cargo bench --bench vcenter_memory`.
//!
//! Method. Every allocation of this process is counted (`peak_alloc` around the system's allocator), so the figures are
//! exact: the most bytes that were alive at one time during a step, above those that were alive before it. What an
//! allocator keeps for later is not in them; `cargo bench --bench vcenter` tells what is resident. The vCenter runs in a
//! process of its own. A vCenter of 20 hosts is asked first in everything, so that what the first connection of a
//! process costs (TLS, roots, threads) is not taken for a part of the answer.
//!
//! A *read* is from the request to the objects, by the agent's client; a *poll* is what the agent does: read, collect,
//! and store the readings, with all fourteen properties. It is set in relation to the bytes of SOAP, unpacked, that came
//! meanwhile.

#[path = "common/lab.rs"]
mod lab;

use esxi_otel_agent::agent::access;
use esxi_otel_agent::collectors::VcenterCollector;
use esxi_otel_agent::collectors::overall_state::OverallState;
use esxi_otel_agent::config::{Config, HostReport, OverallStateConfig, VcenterConfig};
use esxi_otel_agent::inventory::{Endpoint, Inventory, Vcenter};
use esxi_otel_agent::poller::poll::VcenterPoller;
use esxi_otel_agent::readings::Readings;
use esxi_otel_agent::stats::Stats;
use esxi_otel_agent::vim::VimClient;
use esxi_otel_agent::vim::property::Query;
use lab::Simulator;
use peak_alloc::PeakAlloc;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What the goal is about.
const STATE: &[&str] =
    &["name", "overallStatus", "runtime.connectionState", "runtime.inMaintenanceMode", "runtime.powerState"];
const INTERVAL: Duration = Duration::from_secs(300);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    // Without --bench it is run as a test: small then.
    let default = if std::env::args().any(|arg| arg == "--bench") { 5_000 } else { 50 };
    let hosts: usize = std::env::var("HOSTS").ok().and_then(|hosts| hosts.parse().ok()).unwrap_or(default);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (small, large) = (Site::start(20, &runtime)?, Site::start(hosts, &runtime)?);
    println!("{hosts} hosts; MB of SOAP, at the peak, times as much, kept");
    for unpaged in [false, true] {
        for (name, properties) in [("state", STATE), ("all properties", all_properties())] {
            let title = format!("read {name}, {}", pages(unpaged));
            small.read(&runtime, unpaged, properties, None)?;
            large.read(&runtime, unpaged, properties, Some(&title))?;
        }
    }
    for unpaged in [false, true] {
        small.poll(&runtime, unpaged, None)?;
        large.poll(&runtime, unpaged, Some(pages(unpaged)))?;
    }
    Ok(())
}

const fn pages(unpaged: bool) -> &'static str {
    if unpaged { "unpaged" } else { "in pages" }
}

/// A vCenter in a process of its own.
struct Site {
    hosts: usize,
    config: Config,
    vcenter: Arc<Vcenter>,
    stats: Arc<Stats>,
    access: esxi_otel_agent::vim::client::Access,
    _lab: tempfile::TempDir,
    _simulator: Simulator,
}

impl Site {
    fn start(hosts: usize, runtime: &Runtime) -> Result<Self> {
        let lab = tempfile::tempdir()?;
        let simulator = Simulator::start(lab.path(), &["--vcenters", "1", "--hosts", &hosts.to_string()])?;
        let config = lab::config(lab.path(), &[])?;
        let target = config.inventory.vcenters.first().ok_or("no vCenter")?;
        let vcenter = Arc::new(Vcenter {
            address: target.address.as_str().into(),
            endpoint: target.address.parse::<Endpoint>()?,
            site: target.site.as_str().into(),
            labels: BTreeMap::new(),
        });
        let stats = Stats::new();
        let access = runtime.block_on(access(&config, &stats));
        Ok(Self { hosts, config, vcenter, stats, access, _lab: lab, _simulator: simulator })
    }

    fn settings(&self, unpaged: bool) -> VcenterConfig {
        VcenterConfig { unpaged, ..self.config.vcenter.clone() }
    }

    /// In a session that there is: the second of two reads.
    fn read(&self, runtime: &Runtime, unpaged: bool, properties: &[&str], title: Option<&str>) -> Result<()> {
        let (vcenter, stats) = (Arc::clone(&self.vcenter), Arc::clone(&self.stats));
        let mut client = VimClient::new(&self.settings(unpaged), vcenter, self.access.clone(), stats)?;
        for title in [None, title] {
            let objects = self.step(title, || {
                runtime.block_on(client.retrieve(&Query::Tree(properties), Instant::now() + INTERVAL))
            })?;
            let found = objects.iter().filter(|object| &*object.kind == "HostSystem").count();
            if found != self.hosts {
                return Err(format!("{found} hosts were found").into());
            }
        }
        runtime.block_on(client.logout());
        Ok(())
    }

    fn poll(&self, runtime: &Runtime, unpaged: bool, title: Option<&str>) -> Result<()> {
        let readings = Readings::new();
        let changes = readings.follow();
        let settings = OverallStateConfig {
            interval: INTERVAL,
            stale_after: 3 * INTERVAL,
            report: HostReport::default(),
        };
        let collectors: Vec<Arc<dyn VcenterCollector>> = vec![Arc::new(OverallState::new(&settings))];
        let (vcenter, stats) = (Arc::clone(&self.vcenter), Arc::clone(&self.stats));
        let access = self.access.clone();
        let mut poller = VcenterPoller::new(vcenter, self.settings(unpaged), collectors, access, stats);
        for poll in ["first poll", "next poll", "next poll"] {
            let title = title.map(|pages| format!("{poll}, {pages}"));
            self.step(title.as_deref(), || {
                let polled = runtime.block_on(poller.poll(&Inventory::default()));
                polled.reports.into_iter().for_each(|report| readings.record(report));
                // As the export does within a second.
                drop(changes.take());
                polled.outcome
            })?;
        }
        runtime.block_on(poller.logout());
        Ok(())
    }

    /// Does `work`, and says what it took if there is a `title`.
    fn step<T>(&self, title: Option<&str>, work: impl FnOnce() -> T) -> T {
        let received = self.received();
        ALLOCATOR.reset_peak_usage();
        let before = ALLOCATOR.current_usage();
        let result = work();
        let (peak, kept) = (ALLOCATOR.peak_usage() - before, ALLOCATOR.current_usage());
        let received = self.received() - received;
        if let Some(title) = title {
            let (peak, kept) = (peak as f64, kept as f64 - before as f64);
            println!(
                "{title:<32} {:>7.2} {:>7.2} {:>7.2} x {:>7.2}",
                received / 1e6,
                peak / 1e6,
                peak / received,
                kept / 1e6
            );
        }
        result
    }

    /// Bytes of SOAP bodies so far.
    fn received(&self) -> f64 {
        let is = |sample: &&esxi_otel_agent::metric::Sample| {
            sample.def.name == "esxi.agent.soap.bytes"
                && sample.attributes.get("direction") == Some("received")
        };
        self.stats.samples().iter().filter(is).map(|sample| sample.value).sum()
    }
}

/// What each poll asks for.
fn all_properties() -> &'static [&'static str] {
    let config =
        OverallStateConfig { interval: INTERVAL, stale_after: 3 * INTERVAL, report: HostReport::default() };
    OverallState::new(&config).host_properties()
}
