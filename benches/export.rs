//! What one export of a large fleet costs: `cargo bench --bench export`, or with other sizes
//! `HOSTS=3000 cargo bench --bench export`.
//!
//! Method. The readings are made by the agent's own collectors, and made anew before each export, as visits
//! and polls do; that is not part of what is measured. Each line is one run of a step: the CPU time of all
//! threads of this process (`CLOCK_PROCESS_CPUTIME_ID`), the time that passed, and the peak of resident
//! memory above what was resident before (`VmHWM`, set back before each step). After the first step the
//! allocator keeps pages, so the memory of the *first export* is the honest one. The sink, which decodes
//! every request, runs in a process of its own, so that its share is not counted. It rejects nothing; a
//! refused request ends the benchmark.

#[path = "export/fleet.rs"]
mod fleet;
#[path = "common/measure.rs"]
mod measure;

use esxi_otel_agent::config::{Compression, OtlpConfig, SpoolConfig};
use esxi_otel_agent::readings::{Readings, Snapshot};
use esxi_otel_agent::simulator::sink::{Sink, SinkOptions};
use esxi_otel_agent::stats::Stats;
use esxi_otel_agent::telemetry::catalog;
use esxi_otel_agent::telemetry::export::Gatherer;
use esxi_otel_agent::telemetry::export::encode::{Batch, Encoder, Limits, Times};
use esxi_otel_agent::telemetry::export::peer::{Peer, Presence};
use esxi_otel_agent::telemetry::export::queue::{Caps, Queue};
use esxi_otel_agent::telemetry::export::sender::{Closing, Sender};
use esxi_otel_agent::telemetry::export::spool::{Keeper, Spool, SpoolOptions};
use esxi_otel_agent::telemetry::export::transport::{GrpcTransport, Transport};
use esxi_otel_agent::telemetry::metrics::{Grouped, Instruments};
use esxi_otel_agent::telemetry::prometheus::{Format, Page};
use fleet::Fleet;
use measure::measure;
use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

const AS_SINK: &str = "BENCH_AS_SINK";
const ROUNDS: u32 = 3;
/// Length of the outage, at an export a minute.
const MINUTES: u32 = 20;
const MOST_SPOOLED: u64 = 1 << 30;

/// The agent's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    let mut transport = GrpcTransport::to(Peer::new(&config(&endpoint))?);
    let mut export = |gatherer: &mut Gatherer, readings: &Readings| -> Result<Vec<Batch>, Box<dyn Error>> {
        let batches = gatherer.everything(&readings.snapshot(), vec![])?.batches;
        runtime.block_on(send(&mut transport, &batches, Compression::Zstd))?;
        Ok(batches)
    };

    let fleet = Fleet::new(hosts);
    let readings = Readings::new();
    let changes = readings.follow();
    fleet.round(&readings, 0);
    changes.take();
    println!("{hosts} hosts, {} series", readings.snapshot().len());

    println!("\nthe goal: snapshot, collect, encode, compress, send");
    let resource = || opentelemetry_sdk::Resource::builder_empty().with_service_name("bench").build();
    let limits = Limits { points: 8_000, bytes: Limits::BYTES };
    let mut gatherer = Gatherer::new(Instruments::new(resource()), limits, SystemTime::now());
    let mut batches = measure("first export", || export(&mut gatherer, &readings))?;
    for round in 1..=ROUNDS {
        drop(std::mem::take(&mut batches));
        fleet.round(&readings, round);
        changes.take();
        batches = measure("export", || export(&mut gatherer, &readings))?;
    }
    report(&batches);

    println!("\nwhile the Collector is away, and back again");
    drop(std::mem::take(&mut batches));
    fleet.round(&readings, ROUNDS + 1);
    changes.take();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut spool = Spool::open(folder.path(), MOST_SPOOLED)?;
    batches = measure("collect, and into the spool", || gather_into(&mut spool, &mut gatherer, &readings))?;
    println!("  {:.2} MB on disk", spool.bytes() as f64 / 1e6);
    for _ in 1..MINUTES {
        let at = SystemTime::now();
        spool.append(batches.iter().map(|batch| (batch, at)), false)?;
    }
    drop(spool);
    let name = format!("{MINUTES} minutes, out of the spool");
    let began = Instant::now();
    measure(&name, || runtime.block_on(drain(folder.path(), &endpoint)))?;
    println!("  {:.0} x real time", f64::from(MINUTES) * 60.0 / began.elapsed().as_secs_f64());

    println!("\nits parts");
    for round in 1..=ROUNDS {
        measure("a round's readings", || fleet.round(&readings, ROUNDS + round));
    }
    let snapshot = measure("snapshot", || readings.snapshot());
    let grouped = measure("group by metric", || Grouped::new(snapshot.samples().cloned()));
    let instruments = Instruments::new(resource());
    let collected: Result<Vec<_>, _> = measure("SDK: observe and collect", || {
        grouped.into_metrics().flat_map(|(def, samples)| instruments.collect(def, samples)).collect()
    });
    let collected = collected?;
    let encoded = measure("encode", || {
        let times = Times { started: SystemTime::now(), collected: SystemTime::now() };
        let mut encoder = Encoder::new(instruments.resource(), times, limits);
        collected.iter().for_each(|metric| encoder.live(metric));
        encoder.finish()
    });
    drop((collected, encoded));
    measure("all of these, and the ends", || gatherer.everything(&snapshot, vec![]).map(drop))?;
    for compression in [Compression::Zstd, Compression::Gzip, Compression::None] {
        let mut transport = GrpcTransport::to(Peer::new(&config(&endpoint))?);
        let name = format!("compress and send, {compression:?}");
        measure(&name, || runtime.block_on(send(&mut transport, &batches, compression)))?;
    }
    drop(batches);

    println!("\nends");
    fleet.forget(&readings, 100);
    let changes = changes.take();
    measure("1 host of 100 leaves", || gatherer.changes(changes).map(drop))?;
    measure("everything ends", || gatherer.everything(&Snapshot::default(), vec![]).map(drop))?;

    println!("\nfor a scrape");
    let stats = Stats::default();
    for format in [Format::Text, Format::OpenMetrics] {
        let bytes: usize = measure(&format!("page, {format:?}"), || {
            Page::new(format, &catalog::all(), &readings, &stats).map(|chunk| chunk.len()).sum()
        });
        println!("  {:.1} MB", bytes as f64 / 1e6);
    }
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
        if let Some(partial) = sent.map_err(|error| format!("{error:?}"))? {
            return Err(format!("not all was taken: {}", partial.error_message).into());
        }
    }
    Ok(())
}

fn gather_into(
    spool: &mut Spool,
    gatherer: &mut Gatherer,
    readings: &Readings,
) -> Result<Vec<Batch>, Box<dyn Error>> {
    let batches = gatherer.everything(&readings.snapshot(), vec![])?.batches;
    let at = SystemTime::now();
    // As the agent does it: so many at once.
    for batches in batches.chunks(8) {
        spool.append(batches.iter().map(|batch| (batch, at)), false)?;
    }
    Ok(batches)
}

/// Sends what is in the spool, as the agent does.
async fn drain(folder: &Path, endpoint: &str) -> Result<(), Box<dyn Error>> {
    let age = Duration::from_secs(86_400);
    let queue = Arc::new(Queue::new(Caps { bytes: 128 << 20, age }));
    let config = SpoolConfig { path: folder.to_owned(), max_bytes: MOST_SPOOLED, max_age: age };
    let stats = Stats::new();
    let keeper = Keeper::start(&queue, SpoolOptions::new(config), Arc::clone(&stats))?;
    let transport = GrpcTransport::to(Peer::new(&self::config(endpoint))?);
    let presence = Arc::new(Presence::new(endpoint));
    let sender = Sender::new(transport, Arc::clone(&queue), presence, stats, Compression::Zstd);
    let (_closing, closes) = watch::channel(Closing::No);
    let sending = tokio::spawn(sender.run(closes));
    queue.wait_empty().await;
    sending.abort();
    if !queue.flush().await {
        return Err("the spool could not be written".into());
    }
    keeper.end().await;
    Ok(())
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

fn config(endpoint: &str) -> OtlpConfig {
    OtlpConfig {
        endpoint: endpoint.to_owned(),
        failover: Vec::new(),
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
        spool: None,
        resource: vec![],
        metrics: true,
        traces: None,
        logs: false,
        events: false,
    }
}
