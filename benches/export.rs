//! What one export of a large fleet costs: `cargo bench --bench export`, or with other sizes
//! `HOSTS=3000 cargo bench --bench export`. The sink runs in a process of its own, so that its share is not
//! counted.

use esxi_otel_agent::config::{Compression, OtlpConfig};
use esxi_otel_agent::metric::{Attributes, Cadence, Kind, MetricDef, Sample, Unit};
use esxi_otel_agent::readings::{Reading, Readings, Report, Snapshot};
use esxi_otel_agent::simulator::sink::{Sink, SinkOptions};
use esxi_otel_agent::stats::Stats;
use esxi_otel_agent::target::TargetId;
use esxi_otel_agent::telemetry::export::Gatherer;
use esxi_otel_agent::telemetry::export::encode::{Batch, Limits};
use esxi_otel_agent::telemetry::export::peer::Peer;
use esxi_otel_agent::telemetry::export::transport::{GrpcTransport, Transport};
use esxi_otel_agent::telemetry::metrics::{Grouped, Instruments};
use esxi_otel_agent::telemetry::prometheus::{Format, Page};
use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

const AS_SINK: &str = "BENCH_AS_SINK";
const ROUNDS: usize = 3;

macro_rules! gauges {
    ($($id:ident $name:literal $attributes:expr;)+) => {
        $(static $id: MetricDef = MetricDef {
            name: $name,
            kind: Kind::Gauge,
            unit: Unit::None,
            cadence: Cadence::OnChange,
            help: "A sentence as long as those of the real metrics, which say what a value means.",
            attributes: $attributes,
        };)+
        static ALL: &[&MetricDef] = &[$(&$id),+];
    };
}

gauges! {
    SERVICE "esxi.critical_service.status" &["hostsystem", "service", "site"];
    UP "esxi.host.ssh.up" &["hostsystem", "site"];
    TOOK "esxi.host.ssh.visit.duration" &["hostsystem", "site"];
    SUCCESS "esxi.host.ssh.last_success.timestamp" &["hostsystem", "site"];
    OVERALL "esxi.overall_status" &["hostsystem", "site", "vcenter"];
    INFO "esxi.host.info" &["address", "build", "cluster", "datacenter", "hostsystem", "model", "site", "vcenter", "version"];
    CONNECTION "esxi.host.connection_state" &["address", "hostsystem", "site", "state", "vcenter"];
    POWER "esxi.host.power_state" &["address", "hostsystem", "site", "state", "vcenter"];
    MAINTENANCE "esxi.host.maintenance_mode" &["address", "hostsystem", "site", "vcenter"];
    QUARANTINE "esxi.host.quarantine_mode" &["address", "hostsystem", "site", "vcenter"];
    REBOOT "esxi.host.reboot_required" &["address", "hostsystem", "site", "vcenter"];
    BOOT "esxi.host.boot.timestamp" &["address", "hostsystem", "site", "vcenter"];
}

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::var_os(AS_SINK).is_some() {
        return be_sink();
    }
    // Without --bench it is run as a test: small then.
    let default = if std::env::args().any(|arg| arg == "--bench") { 10_000 } else { 50 };
    let hosts = std::env::var("HOSTS").ok().and_then(|hosts| hosts.parse().ok()).unwrap_or(default);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _guard = runtime.enter();
    let (mut child, endpoint) = spawn_sink()?;

    let readings = Readings::new();
    measure("fill the readings", || fill(&readings, hosts));
    let snapshot = readings.snapshot();
    println!("{hosts} hosts, {} series", snapshot.len());

    let resource = || opentelemetry_sdk::Resource::builder_empty().with_service_name("bench").build();
    let limits = Limits { points: 8_000, bytes: Limits::BYTES };
    for round in 1..=ROUNDS {
        println!("round {round}");
        measure("  snapshot", || readings.snapshot());
        measure("  group", || Grouped::new(snapshot.samples().cloned()));
    }
    let mut instruments = Instruments::new(resource());
    for _ in 0..ROUNDS {
        let grouped = Arc::new(Grouped::new(snapshot.samples().cloned()));
        measure("SDK collect", || instruments.collect(grouped).map(drop))?;
    }
    drop(instruments);
    let mut gatherer = Gatherer::new(Instruments::new(resource()), limits, SystemTime::now());
    let mut batches = vec![];
    for _ in 0..ROUNDS {
        let gathered =
            measure("whole: group, ends, collect, encode", || gatherer.everything(&snapshot, vec![]))?;
        batches = gathered.batches;
    }
    measure("everything ends", || gatherer.everything(&Snapshot::default(), vec![]).map(drop))?;
    report(&batches);
    for compression in [Compression::Zstd, Compression::Gzip, Compression::None] {
        let mut transport = GrpcTransport::new(Peer::new(&config(&endpoint))?);
        let name = format!("compress and send, {compression:?}");
        measure(&name, || runtime.block_on(send(&mut transport, &batches, compression)))?;
    }
    let stats = Stats::default();
    for format in [Format::Text, Format::OpenMetrics] {
        let bytes: usize = measure(&format!("page, {format:?}"), || {
            Page::new(format, ALL, &readings, &stats).map(|chunk| chunk.len()).sum()
        });
        println!("  {:.1} MB", bytes as f64 / 1e6);
    }
    println!("memory at the peak: {}", peak());
    drop(child.stdin.take());
    child.wait()?;
    Ok(())
}

fn be_sink() -> Result<(), Box<dyn Error>> {
    let sink = Sink::start(SinkOptions { record: false, ..SinkOptions::default() })?;
    println!("{}", sink.endpoint());
    // Until the parent closes it.
    std::io::stdin().read_to_end(&mut vec![])?;
    Ok(())
}

fn spawn_sink() -> Result<(Child, String), Box<dyn Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.env(AS_SINK, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut endpoint = String::new();
    BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut endpoint)?;
    Ok((child, endpoint.trim().to_owned()))
}

async fn send(
    transport: &mut GrpcTransport,
    batches: &[Batch],
    compression: Compression,
) -> Result<(), Box<dyn Error>> {
    for batch in batches {
        let sent = transport.send(batch.bytes.clone(), compression).await;
        sent.map_err(|error| format!("{error:?}"))?;
    }
    Ok(())
}

fn fill(readings: &Readings, hosts: usize) {
    for i in 0..hosts {
        let host = format!("node{i:05}-bb{:03}.cc.eu-de-1.example.org", i / 20);
        let ssh = Attributes::new([("hostsystem", host.as_str()), ("site", "eu-de-1a")]);
        let mut samples: Vec<_> = ["hostd", "opsAgent", "nsx-proxy", "nsxa", "ntpd", "vpxa", "vvold"]
            .into_iter()
            .map(|service| Sample::new(&SERVICE, ssh.with("service", service), 1.0))
            .collect();
        samples.push(Sample::new(&UP, ssh.clone(), 1.0));
        samples.push(Sample::new(&TOOK, ssh.clone(), 0.4 + i as f64 / 1e5));
        samples.push(Sample::new(&SUCCESS, ssh.clone(), 1.7e9 + i as f64 / 1e3));
        record(readings, TargetId::host(host.as_str()), samples);

        let vcenter = format!("vc-{}.cc.eu-de-1.example.org", i / 500);
        let seen = ssh.with("vcenter", vcenter.as_str());
        let joined = seen.with("address", host.as_str());
        let info = ["cluster", "datacenter", "model", "version", "build"];
        let info = info.iter().fold(joined.clone(), |all, key| all.with(*key, format!("{key}-{}", i / 20)));
        let mut samples = vec![Sample::new(&OVERALL, seen, 2.0), Sample::new(&INFO, info, 1.0)];
        for state in ["connected", "disconnected", "notResponding"] {
            samples.push(Sample::new(&CONNECTION, joined.with("state", state), 0.0));
        }
        for state in ["poweredOn", "poweredOff", "standBy", "unknown"] {
            samples.push(Sample::new(&POWER, joined.with("state", state), 0.0));
        }
        for def in [&MAINTENANCE, &QUARANTINE, &REBOOT, &BOOT] {
            samples.push(Sample::new(def, joined.clone(), 0.0));
        }
        record(readings, TargetId::vcenter(format!("{vcenter}/{i}")), samples);
    }
}

fn record(readings: &Readings, target: TargetId, samples: Vec<Sample>) {
    let readings_of_target = vec![Reading { part: "all".into(), samples }];
    readings.record(Report { target, collector: "bench", readings: readings_of_target, stale_after: None });
}

fn measure<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (wall, cpu) = (Instant::now(), cpu_time());
    let result = work();
    let (wall, cpu) = (wall.elapsed(), cpu_time() - cpu);
    println!("{what:<40} {:>8.1} ms CPU {:>8.1} ms", millis(cpu), millis(wall));
    result
}

fn report(batches: &[Batch]) {
    let points: usize = batches.iter().map(|batch| batch.points).sum();
    let bytes: usize = batches.iter().map(|batch| batch.bytes.len()).sum();
    let largest = batches.iter().map(|batch| batch.bytes.len()).max().unwrap_or(0);
    println!(
        "{} messages, {points} points, {:.1} MB, the largest {:.2} MB",
        batches.len(),
        bytes as f64 / 1e6,
        largest as f64 / 1e6
    );
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown").trim().to_owned()
}

fn config(endpoint: &str) -> OtlpConfig {
    OtlpConfig {
        endpoint: endpoint.to_owned(),
        compression: Compression::Zstd,
        headers: vec![],
        ca_file: None,
        cert_file: None,
        key_file: None,
        interval: Duration::from_secs(60),
        timeout: Duration::from_secs(30),
        max_points: 8_000,
        queue_max_bytes: 256 << 20,
        queue_max_age: Duration::from_secs(3_600),
        resource: vec![],
        metrics: true,
        traces: None,
        logs: false,
    }
}
